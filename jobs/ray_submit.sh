#!/usr/bin/env bash
# A training on a Ray cluster that is there already: an example of `dmlscale submit`, which does all of the work.
#
#   ADDRESS=http://HEAD:8265 SHARED=/mnt/shared jobs/ray_submit.sh
#   ADDRESS=http://HEAD:8265 SHARED=/mnt/shared jobs/ray_submit.sh configs/glyphs/proxy_anchor.yaml resources.workers=8
#
# ADDRESS is the cluster's dashboard. SHARED is a folder that all of its nodes see under this path: datasets and runs of the
# config, whose paths are relative, go there. A cluster with RAY_AUTH_MODE=token asks for RAY_AUTH_TOKEN or ~/.ray/auth_token.
# Ctrl-C ends only the log: `dmlscale jobs list`, `dmlscale jobs logs ID` and `dmlscale jobs stop ID` do what they say.
set -euo pipefail
cd "$(dirname "$0")/.."
: "${ADDRESS:?is the address of the dashboard, e.g. http://10.0.0.5:8265}"
: "${SHARED:?is a folder that all nodes share, e.g. /mnt/shared}"
config=${1:-configs/quickstart.yaml}
shift || true

PATH="$PWD/.venv/bin:$PATH"
exec dmlscale submit train "$config" --address "$ADDRESS" --shared "$SHARED" "$@"

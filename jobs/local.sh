#!/usr/bin/env bash
# A training on this machine, with a worker for each of its GPUs; where there is none, as the config says.
#
#   jobs/local.sh                                                    # configs/quickstart.yaml
#   jobs/local.sh configs/glyphs/proxy_anchor.yaml train.steps=500   # any other, and any key=value
#
# It is `dmlscale train` with the resources filled in; what you add comes later and counts. Ctrl-C saves and ends with 75,
# and the same with run.name=NAME goes on. `make quickstart` makes the environment that it needs.
set -euo pipefail
cd "$(dirname "$0")/.."
config=${1:-configs/quickstart.yaml}
shift || true

resources=()
if gpus=$(nvidia-smi --list-gpus 2>/dev/null) && [[ -n $gpus ]]; then
    resources=("resources.workers=$(wc -l <<<"$gpus")" resources.device=gpu)
fi
PATH="$PWD/.venv/bin:$PATH"
exec dmlscale train "$config" "${resources[@]}" "$@"

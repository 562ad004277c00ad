#!/usr/bin/env bash
# What a pod does before it stops: it asks the run to save itself, and waits until none of the run's processes is left here.
#
#   bash jobs/kuberay/save_before_stop.sh RUN_FOLDER SECONDS     # the preStop hook of jobs/kuberay/rayjob.yaml
#
# Kubernetes ends a pod when its node is drained or preempted, or its cluster deleted. Without this, a run would lose what it
# did since its newest checkpoint. SECONDS is the longest wait; terminationGracePeriodSeconds must be larger.
set -euo pipefail
folder=${1:?the folder of the run is missing}
seconds=${2:?the number of seconds is missing}

# A worker, or the process that started the run, in this pod. Not whatever has the word in it: Ray's own processes have the
# address of the cluster in their arguments, which begins with dmlscale.
at_work() {
    local file word words
    for file in /proc/[0-9]*/cmdline; do
        { mapfile -d '' words <"$file"; } 2>/dev/null || continue   # it has ended meanwhile
        for word in "${words[@]}"; do
            case $word in
                *RayTrainWorker* | dmlscale | */bin/dmlscale | dmlscale.cli | dmlscale.launch.jobs.entry) return 0 ;;
            esac
        done
    done
    return 1
}

[[ -d $folder ]] && at_work || exit 0
touch "$folder/stop-requested"
for ((waited = 0; waited < seconds; waited++)); do
    at_work || exit 0
    sleep 1
done
echo "the run in $folder was still at work after $seconds s" >&2

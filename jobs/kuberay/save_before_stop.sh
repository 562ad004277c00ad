#!/usr/bin/env bash
# What a pod does before it stops: it asks the run to save itself, and waits until none of the run's processes is left here.
#
#   bash jobs/kuberay/save_before_stop.sh RUN_FOLDER SECONDS     # the preStop hook of jobs/kuberay/rayjob.yaml
#
# Kubernetes ends a pod when its node is drained or preempted, or its cluster deleted. Without this, a run would lose what it
# did since its newest checkpoint. SECONDS is the longest wait; terminationGracePeriodSeconds must be larger.
#
# Where the run was started it stops. A pod that only has workers tells Ray that its node leaves: the run saves itself and goes
# on with other pods, see docs/faults.md.
set -euo pipefail
folder=${1:?the folder of the run is missing}
seconds=${2:?the number of seconds is missing}

# What of the run is in this pod: driver, the process that started it, else worker. Not whatever has the word in it: Ray's own
# processes have the address of the cluster in their arguments, which begins with dmlscale.
at_work() {
    local file word words found=''
    for file in /proc/[0-9]*/cmdline; do
        { mapfile -d '' words <"$file"; } 2>/dev/null || continue   # it has ended meanwhile
        for word in "${words[@]}"; do
            case $word in
                *RayTrainWorker*) found=worker ;;
                dmlscale | */bin/dmlscale | dmlscale.cli | dmlscale.launch.jobs.entry) echo driver && return 0 ;;
            esac
        done
    done
    echo "$found"
}

here=$(at_work)
[[ -d $folder && -n $here ]] || exit 0
if [[ $here == driver ]] || ! ray drain-node --reason DRAIN_NODE_REASON_PREEMPTION \
    --reason-message "its pod stops" --deadline-remaining-seconds "$seconds" >/dev/null 2>&1; then
    touch "$folder/stop-requested"
fi
for ((waited = 0; waited < seconds; waited++)); do
    [[ -n $(at_work) ]] || exit 0
    sleep 1
done
echo "the run in $folder was still at work after $seconds s" >&2

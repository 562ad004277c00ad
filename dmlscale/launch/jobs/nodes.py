"""What only the cluster can tell before a job's work begins: whether its nodes have what the command needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dmlscale.data.layout import DESCRIPTION_FILE
from dmlscale.data.storage.storage import Storage
from dmlscale.launch.cluster import ENVIRONMENT
from dmlscale.launch.doctor.dataset import check_dataset
from dmlscale.launch.doctor.finding import Finding
from dmlscale.launch.doctor.nodes import cluster_machines, unreachable
from dmlscale.launch.doctor.packages import check_packages
from dmlscale.launch.doctor.shared_folder import check_shared_folder
from dmlscale.launch.doctor.tracking import check_tracking


@dataclass(frozen=True)
class Needs:
    """What a command needs of every node.

    Args:
        folders: absolute paths that all nodes share and write.
        data: absolute path of the dataset, or of where it will be packed; None if it has none, or it is behind a URL.
        tracking_uri: MLflow store; None if the command has no run there.
    """

    folders: Sequence[str] = ()
    data: str | None = None
    tracking_uri: str | None = None


def look(needs: Needs) -> list[Finding]:
    """Looks on every node of the cluster that this process runs on.

    Returns:
        Findings of all nodes, good ones too.
    """
    import ray

    ray.init(address="auto", logging_level="ERROR", log_to_driver=False, runtime_env={"env_vars": ENVIRONMENT})
    try:
        with cluster_machines() as machines:
            found = [*unreachable(machines), *check_packages(machines)]
            for folder in needs.folders:
                found += check_shared_folder(machines, "storage", folder)
            if needs.data is not None and Storage.open(needs.data).local_path(DESCRIPTION_FILE).exists():
                found += check_dataset(machines, needs.data, {}, DESCRIPTION_FILE)
            elif needs.data is not None:
                found += check_shared_folder(machines, "data.path", needs.data)
            if needs.tracking_uri is not None:
                found += check_tracking(machines, needs.tracking_uri)
    finally:
        ray.shutdown()
    return found

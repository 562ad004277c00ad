"""Which rank records what."""

from pathlib import Path

from dmlscale.config.load import load_config
from dmlscale.distributed.world import World
from dmlscale.launch.recovery.attempt import Attempt
from dmlscale.launch.run.recorder import open_tracker
from dmlscale.launch.task import Task
from dmlscale.tracking.node_load import NodeLoad, load_folder
from dmlscale.tracking.sender import log_it


def sampling_ranks(folder: Path, hosts: tuple[str, ...], tracking_run: str | None = "") -> list[int]:
    config = load_config("configs/quickstart.yaml", ["tracking.system_metrics_every_s=60"])
    task = Task("train", config.model_dump(mode="json"), str(folder), tracking_run=tracking_run)
    ranks = []
    for rank in range(1, len(hosts)):
        tracker = open_tracker(task, Attempt(folder / "attempts", 3, hosts), World(rank, len(hosts)), log_it)
        tracker.close()
        if isinstance(tracker, NodeLoad):
            assert (load_folder(folder, 3) / f"rank_{rank}.json").exists()
            ranks.append(rank)
    return ranks


def test_of_each_machine_but_rank_0s_the_first_rank_samples_it(tmp_path: Path) -> None:
    assert sampling_ranks(tmp_path, ("n0", "n1", "n0", "n1", "n2")) == [1, 4]


def test_nobody_does_on_one_machine_or_without_tracking(tmp_path: Path) -> None:
    assert sampling_ranks(tmp_path, ("n0", "n0", "n0")) == []
    assert sampling_ranks(tmp_path, ("n0", "n1"), None) == []
    assert not list(tmp_path.iterdir())

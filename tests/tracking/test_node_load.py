"""System metrics of a run on several machines."""

import time
from collections.abc import Callable
from pathlib import Path

from mlflow.tracking import MlflowClient

from dmlscale.tracking.mlflow import MlflowTracker, begin_run
from dmlscale.tracking.node_load import NodeLoad, NodeLoads, first_ranks, load_folder
from dmlscale.tracking.spools import read_all

HOSTS = ("n0", "n0", "n1", "n1", "n2")
OWN = {"cpu": 5.0}


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def sampled_once(folder: Path, rank: int) -> None:
    NodeLoad(folder, rank, interval_s=60).close()  # one sample, at its end


def test_the_first_rank_of_each_machine_samples_it() -> None:
    assert first_ranks(HOSTS) == {0: "n0", 2: "n1", 4: "n2"}
    assert first_ranks(("b", "a", "b")) == {0: "b", 1: "a"}


def test_on_one_machine_names_stay_and_no_folder_is_made(tmp_path: Path) -> None:
    loads = NodeLoads(load_folder(tmp_path, 1), ("n0", "n0"))
    assert loads.named(OWN) == {"system/cpu": 5.0}
    assert not list(tmp_path.iterdir())


def test_each_sample_of_the_others_comes_once_under_mlflows_names(tmp_path: Path) -> None:
    folder = load_folder(tmp_path, 1)
    loads = NodeLoads(folder, HOSTS)
    assert loads.named(OWN) == {"system/n0/cpu": 5.0}  # nobody else has sampled yet
    sampled_once(folder, 2)
    first = loads.named(OWN)
    assert first["system/n0/cpu"] == 5.0
    assert first["system/n1/system_memory_usage_megabytes"] > 0
    assert not any(name.startswith("system/n2/") for name in first)
    assert loads.named(OWN) == {"system/n0/cpu": 5.0}  # n1 has left: it draws no flat line
    node = NodeLoad(folder, 4, interval_s=0.02)
    for _ in range(2):
        until(lambda: "system/n2/cpu_utilization_percentage" in loads.named(OWN))
    assert node.finish() == node.close() == 0


def test_a_damaged_file_is_no_sample(tmp_path: Path) -> None:
    folder = load_folder(tmp_path, 1)
    loads = NodeLoads(folder, HOSTS)
    sampled_once(folder, 2)
    whole = (folder / "rank_2.json").read_text()
    for text in (whole[:-9], "", "[]", "null", '{"number": 1}', '{"number": 2, "metrics": {"cpu": "high"}}'):
        (folder / "rank_2.json").write_text(text)
        assert loads.named(OWN) == {"system/n0/cpu": 5.0}
    (folder / "rank_2.json").write_text(whole)
    assert len(loads.named(OWN)) > 5


def test_workers_of_an_earlier_start_are_not_read_and_do_not_fail(tmp_path: Path) -> None:
    old = NodeLoad(load_folder(tmp_path, 1), 2, interval_s=0.02)
    until((load_folder(tmp_path, 1) / "rank_2.json").exists)
    loads = NodeLoads(load_folder(tmp_path, 2), HOSTS)
    time.sleep(0.1)
    assert loads.named(OWN) == {"system/n0/cpu": 5.0}
    old.close()
    sampled_once(load_folder(tmp_path, 2), 2)
    assert len(loads.named(OWN)) > 5


def test_a_folder_that_cannot_be_written_costs_the_samples_alone(tmp_path: Path) -> None:
    (tmp_path / "tracking").write_text("a file in its place")
    sampled_once(load_folder(tmp_path, 1), 2)
    assert NodeLoads(load_folder(tmp_path, 1), HOSTS).named(OWN) == {"system/n0/cpu": 5.0}


def test_samples_come_as_soon_as_the_folder_can_be_made(tmp_path: Path) -> None:
    folder = load_folder(tmp_path, 1)
    (tmp_path / "tracking").write_text("a file in its place")
    node = NodeLoad(folder, 2, interval_s=60)
    (tmp_path / "tracking").unlink()
    node.close()
    assert len(NodeLoads(folder, HOSTS).named(OWN)) > 5


def test_the_store_gets_all_machines_each_second_once(sqlite_uri: str, tmp_path: Path) -> None:
    run_id = begin_run(sqlite_uri, tmp_path, "tests", "run", tags={}, params={})
    folder = load_folder(tmp_path, 1)
    loads = NodeLoads(folder, ("a.cluster", "b.cluster"))
    tracker = MlflowTracker(sqlite_uri, tmp_path, system_interval_s=0.05, loads=loads)
    node = NodeLoad(folder, 1, interval_s=0.05)
    client = MlflowClient(sqlite_uri)
    began_ms = client.get_run(run_id).info.start_time

    def sampled_twice() -> bool:
        """Whether each machine was, in two seconds."""
        seconds: dict[str, set[int]] = {"a.cluster": set(), "b.cluster": set()}
        for fields in read_all(tmp_path):
            for name in fields.get("metrics", ()):
                seconds[name.split("/")[1]].add((fields["time_ms"] - began_ms) // 1000)
        return all(len(each) > 1 for each in seconds.values())

    until(sampled_twice)
    node.close()
    assert tracker.finish() == 0
    names = {name for name in client.get_run(run_id).data.metrics if name.startswith("system/")}
    of_a, of_b = ({n.split("/", 2)[2] for n in names if n.startswith(f"system/{m}.cluster/")} for m in "ab")
    assert of_a == of_b >= {"cpu_utilization_percentage", "system_memory_usage_percentage"}
    assert len(names) == len(of_a) + len(of_b)
    for machine in "ab":
        points = client.get_metric_history(run_id, f"system/{machine}.cluster/system_memory_usage_percentage")
        steps = [point.step for point in points]
        assert steps == sorted(set(steps))
        assert len(steps) >= 2

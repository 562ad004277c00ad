from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlscale.config.schema import ResourcesConfig
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.jobs.capacity import Cluster, check_room, check_version


def _silent(text: str) -> None:
    raise AssertionError(text)


def _cluster(cpus: list[float], gpus: list[float] | None = None, *, autoscaling: bool = False) -> Cluster:
    return Cluster("2.60.0", tuple(cpus), tuple(gpus or [0.0] * len(cpus)), autoscaling)


def test_too_few_gpus_or_cpus_are_refused_with_both_numbers() -> None:
    with pytest.raises(LaunchError, match=r"needs 8 CPUs and 8 GPUs; .* have 32 CPUs and 4 GPUs"):
        check_room(_cluster([16, 16], [2, 2]), ResourcesConfig(workers=8, device="gpu"), _silent)
    with pytest.raises(LaunchError, match=r"needs 4 CPUs; .* have 3 CPUs, room for 3"):
        check_room(_cluster([1, 1, 1]), ResourcesConfig(workers=4), _silent)
    check_room(_cluster([1, 1, 1]), ResourcesConfig(workers=3), _silent)
    check_room(_cluster([1, 1, 1]), ResourcesConfig(workers=6, cpus_per_worker=0.5), _silent)


def test_a_worker_does_not_span_two_nodes() -> None:
    with pytest.raises(LaunchError, match="room for 0"):
        check_room(_cluster([2, 2]), ResourcesConfig(workers=1, cpus_per_worker=3), _silent)


def test_a_cluster_that_grows_is_only_warned_about() -> None:
    said: list[str] = []
    check_room(_cluster([1], autoscaling=True), ResourcesConfig(workers=4), said.append)
    assert len(said) == 1
    assert "until it has grown" in said[0]


@given(
    nodes=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=5),
    workers=st.integers(1, 12),
    cpus=st.integers(1, 3),
)
def test_room_is_what_placing_one_by_one_finds(nodes: list[tuple[int, int]], workers: int, cpus: int) -> None:
    left = [list(node) for node in nodes]
    placed = 0
    for node in left:
        while node[0] >= cpus and node[1] >= 1:
            node[0], node[1], placed = node[0] - cpus, node[1] - 1, placed + 1
    cluster = _cluster([float(c) for c, _ in nodes], [float(g) for _, g in nodes])
    resources = ResourcesConfig(workers=workers, cpus_per_worker=cpus, device="gpu")
    if placed >= workers:
        check_room(cluster, resources, _silent)
    else:
        with pytest.raises(LaunchError, match=f"room for {placed} "):
            check_room(cluster, resources, _silent)


def test_versions_of_ray_must_agree_but_for_the_last_number() -> None:
    said: list[str] = []
    check_version(_cluster([1]), "2.60.0", _silent)
    check_version(_cluster([1]), "2.60.1", said.append)
    assert "2.60.1 here and 2.60.0" in said[0]
    with pytest.raises(LaunchError, match=r"2\.59\.0 here and 2\.60\.0 on the cluster"):
        check_version(_cluster([1]), "2.59.0", _silent)

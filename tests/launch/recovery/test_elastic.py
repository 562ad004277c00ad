"""How many workers fit, what Ray Train is asked for, and what is said of nodes that come and go."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dmlscale.config.schema import ResourcesConfig
from dmlscale.distributed.world import World
from dmlscale.launch.cluster import require, uses_gpu
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.recovery.attempt import begin_attempt, last_attempt
from dmlscale.launch.recovery.elastic import Node, most_workers, of_one_worker, room, scaling
from dmlscale.launch.recovery.membership import Membership, leaving_line, number_line
from dmlscale.launch.task import Task
from tests.distributed.pool import GlooPool

CPU = torch.device("cpu")
LOOKS_EVERY_S = 0.02


def node(name: str, cpus: float, free: float | None = None, *, gpus: float = 0, leaves_at: float | None = None) -> Node:
    total = {"CPU": cpus, "GPU": gpus, "memory": 1e9}
    return Node(f"key-{name}", name, total, total | {"CPU": cpus if free is None else free}, leaves_at)


class TestRoom:
    @given(st.lists(st.integers(0, 40), max_size=5), st.integers(1, 12), st.integers(1, 12))
    def test_workers_never_span_nodes(self, cpus: list[int], numerator: int, denominator: int) -> None:
        each = Fraction(numerator, denominator)
        there = [node(f"n{number}", cpu) for number, cpu in enumerate(cpus)]
        worker = of_one_worker(ResourcesConfig(cpus_per_worker=float(each)), use_gpu=False)
        assert room(there, worker) == sum(math.floor(cpu / each) for cpu in cpus)

    def test_the_scarcer_of_cpus_and_gpus_counts(self) -> None:
        worker = of_one_worker(ResourcesConfig(cpus_per_worker=4), use_gpu=True)
        assert room([node("a", 16, gpus=2), node("b", 4, gpus=8), node("c", 64)], worker) == 2 + 1

    def test_a_node_about_to_leave_has_none(self) -> None:
        worker = of_one_worker(ResourcesConfig(), use_gpu=False)
        assert room([node("a", 2), node("b", 2, leaves_at=0.0)], worker) == 2

    def test_what_others_use_is_not_free(self) -> None:
        worker = of_one_worker(ResourcesConfig(), use_gpu=False)
        there = [node("a", 4, free=1.5), node("b", 4, free=0)]
        assert (room(there, worker), room(there, worker, only_free=True)) == (8, 1)


class TestWhatIsAskedFor:
    def test_without_min_workers_it_is_all(self) -> None:
        assert scaling(ResourcesConfig(workers=3), use_gpu=True) == {
            "num_workers": 3,
            "use_gpu": True,
            "resources_per_worker": {"CPU": 1.0, "GPU": 1.0},
        }

    @pytest.mark.parametrize(
        ("there", "most"),
        [
            ([node("a", 1), node("b", 1), node("c", 1)], 4),  # a cluster that can grow is asked for all
            ([node("a", 8)], 4),
            ([node("a", 1), node("b", 1), node("c", 4, 1)], 3),  # others work there
            ([node("a", 1), node("b", 1), node("c", 1, leaves_at=0.0)], 2),
            ([node("a", 1), node("b", 4, 0)], 2),  # there is room for one: Ray is to wait for two
        ],
    )
    def test_room_that_is_none_is_not_asked_for(self, there: list[Node], most: int) -> None:
        resources = ResourcesConfig(workers=4, min_workers=2)
        assert most_workers(there, of_one_worker(resources, use_gpu=False), resources) == most

    def test_the_fewest_must_fit(self) -> None:
        resources = ResourcesConfig(workers=4, min_workers=2, device="gpu")
        require(resources, {"CPU": 2.0}, "the cluster")
        with pytest.raises(LaunchError, match=r"resources\.min_workers=2 .* needs 2 CPUs, the cluster has 1"):
            require(resources, {"CPU": 1.0}, "the cluster")
        assert uses_gpu(resources, {"GPU": 2.0})
        with pytest.raises(LaunchError, match=r"resources\.min_workers=2 needs as many GPUs, the cluster has 1"):
            uses_gpu(resources, {"GPU": 1.0})


class TestLines:
    @pytest.mark.parametrize(
        ("hosts", "before", "is_first", "line"),
        [
            (["a", "b", "c"], [], True, None),
            (["a", "b", "c"], ["a", "b", "c"], False, None),
            (["a", "b"], [], True, "going on with 2 of 3 workers: there is no room for more"),
            (["a", "b"], ["a", "b", "c"], False, "going on with 2 of 3 workers, without c"),
            (["a", "b", "c"], ["a", "b"], False, "3 workers again"),
            (["a", "b", "c"], ["a", "b"], True, None),  # the run was stopped with two and is gone on with by command
        ],
    )
    def test_of_the_number(self, hosts: list[str], before: list[str], is_first: bool, line: str | None) -> None:
        there = {"a", "b"} | set(hosts)
        assert number_line(hosts, before, there, 3, is_first=is_first) == line

    def test_of_a_notice(self) -> None:
        assert leaving_line([], 100.0) is None
        soon, later = node("b", 1, leaves_at=0.0), node("a", 1, leaves_at=130.0)
        assert (
            leaving_line([soon], 100.0) == "notice: b will be taken away soon: saving a checkpoint, to go on elsewhere"
        )
        line = leaving_line([soon, later], 100.0)
        assert line == "notice: a, b will be taken away in 30 s: saving a checkpoint, to go on elsewhere"


def hosts_on_rank(world: World, folder: Path) -> tuple[int, tuple[str, ...]]:
    """For the gloo pool."""
    begin_attempt(folder, world, CPU)
    return last_attempt(folder)


def test_an_attempt_tells_where_its_workers_are(gloo_pool: GlooPool, tmp_path: Path) -> None:
    assert last_attempt(tmp_path / "attempts") == (0, ())
    for number, num_ranks in enumerate((3, 1), start=1):
        found = gloo_pool.run(num_ranks, hosts_on_rank, tmp_path / "attempts")[0]
        assert found == (number, (socket.gethostname(),) * num_ranks)


class Cluster:
    """A cluster as a test sets it, and the workers that run on it.

    Args:
        folder: of the run.
        workers: wanted.
        min_workers: enough.
        nodes: at each look; None: those that the test puts into ``there``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        workers: int,
        min_workers: int | None = None,
        nodes: Callable[[], Sequence[Node]] | None = None,
    ) -> None:
        self.task = Task("train", {}, str(folder))
        self.there: Sequence[Node] = []
        self.said: list[str] = []
        self.num_looks = 0

        def counted() -> Sequence[Node]:
            self.num_looks += 1
            return self.there if nodes is None else nodes()

        self.membership = Membership(
            self.task,
            ResourcesConfig(workers=workers, min_workers=min_workers),
            use_gpu=False,
            say=self.said.append,
            nodes=counted,
            every_s=LOOKS_EVERY_S,
        )

    def start(self, *hosts: str) -> None:
        """Workers begin."""
        number = last_attempt(self.task.attempts)[0] + 1
        self.task.attempts.mkdir(exist_ok=True)
        unseen = self.task.attempts / f".{number:06d}"  # until it is whole, as `begin_attempt` does
        unseen.write_text(json.dumps({"hosts": hosts}))
        unseen.replace(self.task.attempts / f"{number:06d}")

    def looks(self, number: int = 5) -> None:
        """Waits for so many looks that began after this call and are over."""
        until, deadline = self.num_looks + number + 1, time.monotonic() + 60
        while self.num_looks < until:
            assert time.monotonic() < deadline
            time.sleep(LOOKS_EVERY_S / 4)


class TestMembership:
    def test_a_new_node_is_taken_in_once(self, tmp_path: Path) -> None:
        cluster = Cluster(tmp_path, workers=3, min_workers=1)
        cluster.there = [node("a", 1, 0), node("b", 1, 0)]
        with cluster.membership:
            cluster.start("a", "b")
            cluster.looks()
            assert cluster.said == ["going on with 2 of 3 workers: there is no room for more"]
            assert not cluster.task.is_stop_asked()
            cluster.there = [*cluster.there, node("c", 1)]
            cluster.looks()
            assert cluster.task.is_stop_asked()
        assert not cluster.task.is_stop_asked()
        with cluster.membership:  # Ray could not place it there: nothing is gained by asking again
            cluster.start("a", "b")
            cluster.looks()
            assert not cluster.task.is_stop_asked()
        assert cluster.said[1:] == [
            "there is room for 3 workers: saving a checkpoint, to go on with them",
            "going on with 2 of 3 workers: there is no room for more",
        ]

    def test_room_is_not_used_without_min_workers(self, tmp_path: Path) -> None:
        cluster = Cluster(tmp_path, workers=3)
        cluster.there = [node("a", 8)]
        with cluster.membership:
            cluster.start("a", "a", "a")
            cluster.looks()
            assert not cluster.task.is_stop_asked()
        assert cluster.said == []

    @pytest.mark.parametrize("looks_with_room", [1, 2])
    def test_room_must_last(self, tmp_path: Path, looks_with_room: int) -> None:
        """Workers that have just failed leave room too, until their start is over."""
        full, with_room = [node("a", 1, 0), node("b", 1, 0)], [node("a", 1, 0), node("b", 1, 1)]
        glances = iter([*[full] * 5, *[with_room] * looks_with_room])
        cluster = Cluster(tmp_path, workers=3, min_workers=1, nodes=lambda: next(glances, full))
        cluster.start("a", "b")  # before the first look, as they are counted
        with cluster.membership:
            cluster.looks(10)
            assert cluster.task.is_stop_asked() == (looks_with_room == 2)

    def test_nobody_is_asked_before_they_have_begun(self, tmp_path: Path) -> None:
        Cluster(tmp_path, workers=3, min_workers=1).start("a")  # of an earlier command
        cluster = Cluster(tmp_path, workers=3, min_workers=1)
        cluster.there = [node("a", 8, leaves_at=0.0), node("b", 8)]
        with cluster.membership:
            cluster.looks()
            assert not cluster.task.is_stop_asked()

    def test_a_notice_moves_the_workers_once(self, tmp_path: Path) -> None:
        cluster = Cluster(tmp_path, workers=2)
        cluster.there = [node("a", 1, 0), node("b", 1, 0), node("c", 1, leaves_at=0.0)]
        with cluster.membership:
            cluster.start("a", "b")
            cluster.looks()
            assert not cluster.task.is_stop_asked()  # nobody works on c
            cluster.there = [replace(cluster.there[0], leaves_at=time.time() + 30), *cluster.there[1:]]
            cluster.looks()
            assert cluster.task.is_stop_asked()
        with cluster.membership:
            cluster.start("a", "b")
            cluster.looks()
            assert not cluster.task.is_stop_asked()
        assert len(cluster.said) == 1

    def test_a_cluster_that_does_not_answer_is_asked_again(self, tmp_path: Path) -> None:
        answers = iter([False, True, False])

        def nodes() -> Sequence[Node]:
            if not next(answers, True):
                raise ConnectionError("the head does not answer")
            return [node("a", 1, 0), node("b", 1)]

        cluster = Cluster(tmp_path, workers=2, min_workers=1, nodes=nodes)
        with cluster.membership:
            cluster.start("a")
            cluster.looks()
            assert cluster.task.is_stop_asked()

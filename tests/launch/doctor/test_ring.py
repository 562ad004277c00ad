from __future__ import annotations

import multiprocessing
import socket
import time

import pytest
import torch

from dmlscale.distributed.link_speed import measure_links, measure_ring
from dmlscale.distributed.world import World
from dmlscale.launch.doctor.ring import check_ring, find_port, judge_ring, knock, open_door
from tests.distributed.pool import GlooPool
from tests.launch.doctor.machines import RoomsOfOne

INTERFACES = {"n0": "eth0", "n1": "eth0", "n2": "eth0"}


def links_of(world: World) -> dict[str, float]:
    return measure_links(world.rank, world.num_ranks, torch.device("cpu"), world.group)


@pytest.mark.parametrize("num_ranks", [2, 3, 4])
def test_every_link_has_a_speed_and_a_latency(gloo_pool: GlooPool, num_ranks: int) -> None:
    for link in gloo_pool.run(num_ranks, links_of):
        assert set(link) == {"latency_s", "bytes_per_s", "sum_bytes_per_s"}
        assert 0 < link["latency_s"] < 1
        assert link["bytes_per_s"] > 1e6
        assert link["sum_bytes_per_s"] > 1e5


def wait_for_rank_1() -> None:
    """In a process that has imported all: else another may have the port by then."""
    measure_ring(0, 2, f"127.0.0.1:{find_port('127.0.0.1')}", "gloo", 1.0)


def test_a_rank_that_never_comes_is_given_up() -> None:
    started = time.monotonic()
    with multiprocessing.get_context("spawn").Pool(1) as alone, pytest.raises(Exception, match=r"1/2|[Tt]imed? ?out"):
        alone.apply(wait_for_rank_1)
    assert time.monotonic() - started < 60


def speeds(**bytes_per_s: float) -> dict[str, dict[str, float]]:
    return {
        node: {"latency_s": 1e-4, "bytes_per_s": speed, "sum_bytes_per_s": 1e9} for node, speed in bytes_per_s.items()
    }


def test_a_link_much_slower_than_the_median_is_named() -> None:
    found = judge_ring("gloo", ["n0", "n1", "n2"], speeds(n0=1e9, n1=1e8, n2=1.1e9), INTERFACES)
    assert [(f.node, f.status) for f in found] == [("", "ok"), ("n0", "ok"), ("n1", "warn"), ("n2", "ok")]
    assert "slowest link n1 -> n2" in found[0].what
    assert "over eth0" in found[0].what
    assert found[2].what == "gloo to n2: 0.10 GB/s, 0.10 ms, where the median is 1.00 GB/s"


def test_links_of_one_speed_pass() -> None:
    found = judge_ring("nccl", ["n0", "n1", "n2"], speeds(n0=1e9, n1=3e8, n2=1.1e9), INTERFACES)
    assert {f.status for f in found} == {"ok"}


def test_a_door_is_open_for_a_while() -> None:
    port = open_door("127.0.0.1", 60.0)
    assert knock([("n1", "127.0.0.1", port)], 5.0) == {"interface": "lo", "closed": {}}
    port = open_door("127.0.0.1", 0.3)
    deadline = time.monotonic() + 60
    while not knock([("n1", "127.0.0.1", port)], 1.0)["closed"]:
        assert time.monotonic() < deadline
        time.sleep(0.5)  # longer than it waits for the next one


def test_a_closed_door_is_told_with_its_address() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]  # taken, so nobody else comes to listen on it
        closed = knock([("n1", "127.0.0.1", port)], 5.0)["closed"]
    assert closed["n1"].startswith("127.0.0.1: ")
    assert "refused" in closed["n1"]


def test_a_single_node_has_no_links() -> None:
    assert check_ring(RoomsOfOne(["n0"])) == []


def test_a_node_that_does_not_answer_is_named_before_the_others_wait_for_it() -> None:
    found = check_ring(RoomsOfOne(["n0", "n1", "n2"], silent=["n1"]))
    assert {f.node for f in found if f.status == "fail"} == {"n1"}

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from dmlscale.config.schema import ResourcesConfig
from dmlscale.distributed.beats import Limits
from dmlscale.distributed.world import World
from dmlscale.launch.recovery.watchdog import EXIT_BY_WATCHDOG, Watch, watch_limits
from tests.launch.recovery.watched import FAR_STEP, Behaviour, Ranks, ended_by_its_watch, here, start, steps_without_end

LIMITS = Limits(heartbeat_timeout_s=1.5, stall_timeout_s=60)
HUNG = Limits(heartbeat_timeout_s=20, stall_timeout_s=1.5)
FIRST = Limits(heartbeat_timeout_s=20, stall_timeout_s=0.9, first_step_timeout_s=2.0)
# On a machine that is busy with other tests, on top of what the limits say: still far from those that are not to count.
SLACK = 5.0
# Whoever ends first closes its connections, and a collective of another may raise before that one is ended as well.
ENDED = {EXIT_BY_WATCHDOG, 1}

Begin = Callable[..., Ranks]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    started: list[Ranks] = []

    def run(num_ranks: int, behaviour: Behaviour, limits: Limits, *, restartable: bool = True) -> Ranks:
        started.append(start(tmp_path, num_ranks, behaviour, limits, restartable=restartable))
        return started[0]

    yield run
    for ranks in started:
        ranks.close()


def waits_without_noticing(watch: Watch, world: World, folder: Path) -> None:
    """As in a kernel of NCCL, which sees no closed connection."""
    watch.at(57, "data")
    watch.at(58, "step")
    here(folder, "training", world)
    time.sleep(60)


def steps_until_ended(watch: Watch, world: World, folder: Path) -> None:
    with ended_by_its_watch():
        steps_without_end(watch, world, folder)


def test_a_stopped_rank_in_the_middle_of_collectives_is_lost(begin: Begin) -> None:
    ranks = begin(3, steps_until_ended, LIMITS)
    ranks.wait_for("training")
    ranks.signal(1, signal.SIGSTOP)
    assert ranks.exit_codes([0, 2], within=LIMITS.heartbeat_timeout_s + SLACK) == [EXIT_BY_WATCHDOG] * 2
    for rank in (0, 2):
        note = ranks.note(rank)
        assert (note["kind"], note["suspects"], note["rank"]) == ("lost", [1], rank)
        assert f"pid {ranks.processes[1].pid})" in note["message"]
        assert "has not been heard from for" in note["message"]
        assert f"last at step {note['step']} (" in note["message"]
        assert note["step"] >= FAR_STEP
        assert "\n" not in note["message"]


def test_a_killed_rank_is_lost_where_its_closed_connections_are_not_seen(begin: Begin) -> None:
    ranks = begin(3, waits_without_noticing, LIMITS)
    ranks.wait_for("training")
    ranks.signal(2, signal.SIGKILL)
    assert ranks.exit_codes([0, 1], within=LIMITS.heartbeat_timeout_s + SLACK) == [EXIT_BY_WATCHDOG] * 2
    assert [ranks.note(rank)["suspects"] for rank in (0, 1)] == [[2], [2]]


def test_a_killed_rank_ends_a_collective_of_gloo_at_once(begin: Begin) -> None:
    """What the watchdog need not do on CPUs; its limits are never reached here."""
    ranks = begin(3, steps_without_end, Limits(60, 60))
    ranks.wait_for("training")
    ranks.signal(1, signal.SIGKILL)
    assert ranks.exit_codes([0, 2], within=SLACK) == [1, 1]


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_rank_0_is_lost_to_the_others(begin: Begin, number: int) -> None:
    ranks = begin(3, waits_without_noticing, LIMITS)
    ranks.wait_for("training")
    ranks.signal(0, number)
    assert ranks.exit_codes([1, 2], within=LIMITS.heartbeat_timeout_s + SLACK) == [EXIT_BY_WATCHDOG] * 2
    for rank in (1, 2):
        note = ranks.note(rank)
        assert (note["kind"], note["suspects"], note["step"]) == ("lost", [0], 58)
        assert f"between it and rank {rank} (" in note["message"]


def sleeps_in_data(watch: Watch, world: World, folder: Path) -> None:
    for step in range(58):
        watch.at(step, "data")
        if world.rank == 2 and step == 57:
            time.sleep(60)
        watch.at(step, "step")
        with ended_by_its_watch():
            dist.all_reduce(torch.ones(1))


def test_a_rank_that_waits_for_data_is_named_and_those_that_wait_for_it(begin: Begin) -> None:
    ranks = begin(3, sleeps_in_data, HUNG)
    assert set(ranks.exit_codes([0, 1, 2], within=60)) <= ENDED
    note = ranks.note(1)
    assert (note["kind"], note["step"], note["suspects"]) == ("stalled", 57, [2])
    assert "has been at step 57 (data) for" in note["message"]
    stacks = ranks.folder / "attempts" / "000001.rank_2.stacks.txt"
    assert note["message"].endswith(f"ranks 0, 1 wait for it in step 57 (step) (stacks: {stacks})")
    assert "in sleeps_in_data" in stacks.read_text()


def waits_in_a_ring(watch: Watch, world: World, folder: Path) -> None:
    watch.at(0, "data")
    watch.at(7, "step")
    with ended_by_its_watch():
        dist.recv(torch.ones(1), src=(world.rank + 1) % world.num_ranks)


def test_a_collective_that_does_not_end_is_named(begin: Begin) -> None:
    ranks = begin(3, waits_in_a_ring, HUNG)
    assert set(ranks.exit_codes([0, 1, 2], within=60)) <= ENDED
    for rank in range(3):
        note = ranks.note(rank)
        assert (note["kind"], note["step"], note["suspects"]) == ("stalled", 7, [0, 1, 2])
        assert note["message"].startswith("all ranks have been at step 7 (step) for")


def hangs_before_its_first_step(watch: Watch, world: World, folder: Path) -> None:
    watch.at(0, "class means")
    time.sleep(2 * FIRST.first_step_timeout_s)  # this takes as long as it takes
    watch.at(4, "data")
    if world.rank == 1:
        time.sleep(60)
    watch.at(4, "step")
    dist.barrier()


def test_a_first_step_that_does_not_end_is_named(begin: Begin) -> None:
    ranks = begin(2, hangs_before_its_first_step, FIRST)
    assert set(ranks.exit_codes([0, 1], within=60)) <= ENDED
    note = ranks.note(0)
    assert (note["kind"], note["step"], note["suspects"]) == ("stalled", 4, [1])
    assert note["message"].startswith("rank 1 (")
    assert "has been at step 4 (data) for" in note["message"]
    stacks = ranks.folder / "attempts" / "000001.rank_1.stacks.txt"
    assert note["message"].endswith(f"(stacks: {stacks})")
    assert "in hangs_before_its_first_step" in stacks.read_text()


def hangs_at_the_start(watch: Watch, world: World, folder: Path) -> None:
    time.sleep(60)


def test_a_start_that_does_not_end_is_named(begin: Begin) -> None:
    ranks = begin(1, hangs_at_the_start, FIRST)
    assert ranks.exit_codes([0], within=60) == [EXIT_BY_WATCHDOG]
    assert "has been at step 0 (start) for" in ranks.note(0)["message"]


def test_the_first_step_has_at_least_the_time_of_any_other() -> None:
    config = ResourcesConfig(stall_timeout_s=3600)
    assert watch_limits(config).first_step_timeout_s == 3600
    assert watch_limits(ResourcesConfig(stall_timeout_s=60)).first_step_timeout_s == config.first_step_timeout_s


def test_a_later_start_of_the_workers_ends_an_orphan(begin: Begin) -> None:
    ranks = begin(1, waits_without_noticing, LIMITS)
    ranks.wait_for("training")
    (ranks.folder / "attempts" / "000002").touch()
    assert ranks.exit_codes([0], within=LIMITS.heartbeat_timeout_s + SLACK) == [EXIT_BY_WATCHDOG]
    assert ranks.note(0)["kind"] == "superseded"


def evaluates_for_long(watch: Watch, world: World, folder: Path) -> None:
    """Also the first step is long, and one rank is far behind the others."""
    limit = 1.5
    watch.at(0, "data")
    watch.at(0, "step")
    time.sleep(2 * limit if world.rank else 0)
    dist.barrier()
    watch.at(1, "evaluation" if world.rank == 0 else "step")
    time.sleep(2 * limit if world.rank == 0 else 0)
    dist.barrier()


def ends_one_after_the_other(watch: Watch, world: World, folder: Path) -> None:
    watch.at(9, "save")
    time.sleep(0.0 if world.rank == 1 else 3.0 + world.rank)


def test_a_long_evaluation_is_nobodys_fault(begin: Begin) -> None:
    ranks = begin(2, evaluates_for_long, Limits(20, 1.5))
    assert ranks.exit_codes([0, 1], within=60) == [0, 0]


def test_a_rank_that_has_ended_is_not_missed(begin: Begin) -> None:
    ranks = begin(3, ends_one_after_the_other, LIMITS)
    assert ranks.exit_codes([0, 1, 2], within=60) == [0, 0, 0]
    assert not any(ranks.has_note(rank) for rank in range(3))


def fails_alone(watch: Watch, world: World, folder: Path) -> None:
    watch.at(0, "data")
    watch.at(3, "data")
    here(folder, "training", world)
    if world.rank == 1:
        try:
            raise ValueError("shard 7 is gone\nand more")
        except ValueError as error:
            watch.end(error)
    time.sleep(60)  # an actor of Ray's lives on after an error


def test_what_a_rank_failed_with_is_told_to_those_that_wait_for_it(begin: Begin) -> None:
    ranks = begin(3, fails_alone, LIMITS)
    ranks.wait_for("training")
    assert ranks.exit_codes([0, 2], within=LIMITS.heartbeat_timeout_s + SLACK) == [EXIT_BY_WATCHDOG] * 2
    note = ranks.note(2)
    assert (note["kind"], note["suspects"]) == ("failed", [1])
    assert note["message"].endswith("failed at step 3, and the others wait for it: ValueError: shard 7 is gone")
    assert ranks.processes[1].is_alive()  # whoever started it is to see its own error


def hangs_alone(watch: Watch, world: World, folder: Path) -> None:
    watch.at(0, "data")
    watch.at(4, "data")
    began = time.monotonic()
    while not (folder / "told.0").exists() and time.monotonic() < began + 60:
        time.sleep(0.1)
    time.sleep(0.5)
    watch.at(4, "evaluation")  # which may take any time
    (folder / "hung_s").write_text(str(time.monotonic() - began))


def test_where_nobody_starts_it_again_a_hung_process_says_so_and_goes_on(begin: Begin) -> None:
    ranks = begin(1, hangs_alone, HUNG, restartable=False)
    assert ranks.exit_codes([0], within=60) == [0]
    told = (ranks.folder / "told.0").read_text().splitlines()
    assert 1 <= len(told) <= float((ranks.folder / "hung_s").read_text()) / HUNG.stall_timeout_s  # once in so long
    assert "has been at step 4 (data) for" in told[0]
    assert "in hangs_alone" in (ranks.folder / "attempts" / "000001.rank_0.stacks.txt").read_text()

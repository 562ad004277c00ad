"""Who is judged for what, on a clock that the tests turn; and the talk between hub and spokes over real sockets."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlscale.distributed.beats import PHASES, TIMED_PHASES, Beat, Limits, Peer
from dmlscale.distributed.heartbeats import Hub, Spoke
from dmlscale.distributed.verdicts import Judge, Verdict, named
from tests.distributed.loops import Watch, until, until_both_hear

LIMITS = Limits(heartbeat_timeout_s=60, stall_timeout_s=600)
PERIOD = LIMITS.period_s
PEERS = [Peer("n0", 10), Peer("n0", 11), Peer("n1", 12), Peer("n1", 13)]
QUICK = Limits(heartbeat_timeout_s=1.2, stall_timeout_s=60)


@dataclass
class Court:
    """A judge whose clock a test turns, and what the ranks say to it."""

    judge: Judge = field(default_factory=lambda: Judge(PEERS, LIMITS, 0.0))
    now: float = 0.0
    beats: dict[int, Beat] = field(default_factory=dict)
    counts: dict[int, int] = field(default_factory=dict)

    def say(self, rank: int, step: int, phase: str, since: float | None = None) -> None:
        seconds = 0.0 if since is None else self.now - since
        self.beats[rank] = Beat(step, phase, seconds, phase in TIMED_PHASES)
        self.counts[rank] = self.counts.get(rank, 0) + 1

    def look(self, after: float = PERIOD) -> Verdict | None:
        self.now += after
        return self.judge.look(self.beats, self.counts, self.now)

    def until_verdict(self, saying: Sequence[int], step: int, phase: str) -> Verdict:
        """Goes on with these ranks beating from one place."""
        since = self.now
        while self.now < since + 3 * LIMITS.stall_timeout_s:
            for rank in saying:
                self.say(rank, step, phase, since)
            if verdict := self.look():
                return verdict
        raise AssertionError("no verdict")


def training(court: Court, looks: int = 10) -> None:
    for step in range(looks):
        for rank in range(4):
            court.say(rank, step, "step")
        assert court.look() is None


def test_a_silent_rank_is_lost_within_the_timeout_and_not_long_before() -> None:
    court = Court()
    training(court)
    last_heard = court.now - PERIOD  # at the earliest, since a beat is said before a look
    verdict = court.until_verdict([0, 1, 2], 12, "evaluation")
    assert (verdict.kind, verdict.suspects, verdict.step) == ("lost", (3,), 9)
    assert 0.8 * LIMITS.heartbeat_timeout_s <= court.now - last_heard <= LIMITS.heartbeat_timeout_s + 1e-9
    assert verdict.message == (
        "rank 3 (n1, pid 13) has not been heard from for 55 s, last at step 9 (step): it is taken for lost"
    )


def test_all_of_a_machine_are_named_though_they_fell_silent_one_after_the_other() -> None:
    court = Court()
    training(court)
    for rank in (0, 1, 2):
        court.say(rank, 10, "step")
    court.look()
    verdict = court.until_verdict([0, 1], 12, "evaluation")
    assert verdict.suspects == (2, 3)
    assert verdict.message.startswith("ranks 2, 3 (n1) have not been heard from for")


def test_a_rank_that_never_spoke_is_lost_too() -> None:
    verdict = Court().until_verdict([0, 1, 3], 0, "start")
    assert verdict.suspects == (2,)
    assert "last at" not in verdict.message


def test_those_that_hold_up_the_others_are_named() -> None:
    court = Court()
    training(court)
    while True:
        court.say(0, 57, "step", 50)
        court.say(1, 57, "data", 50)
        court.say(2, 57, "step", 50)
        court.say(3, 58, "save", 50)
        if verdict := court.look():
            break
    assert (verdict.kind, verdict.suspects, verdict.step) == ("stalled", (1,), 57)
    seconds = f"{court.now - PERIOD - 50:.0f}"
    assert verdict.message == (
        f"rank 1 (n0, pid 11) has been at step 57 (data) for {seconds} s; "
        "ranks 0, 2 wait for it in step 57 (step); rank 3 waits for it in step 58 (save)"
    )
    assert LIMITS.stall_timeout_s <= court.now - 50 <= LIMITS.stall_timeout_s + 2 * PERIOD


def test_all_in_one_place_is_a_collective_that_does_not_end() -> None:
    verdict = Court().until_verdict(range(4), 57, "step")
    assert (verdict.kind, verdict.suspects) == ("stalled", (0, 1, 2, 3))
    assert verdict.message.startswith("all ranks have been at step 57 (step) for 6")


def test_before_the_first_step_is_done_a_limit_of_its_own_holds_and_is_named() -> None:
    limits = replace(LIMITS, first_step_timeout_s=900)
    court = Court(Judge(PEERS, limits, 0.0))
    while (verdict := court.look()) is None:
        assert court.now < 2 * limits.first_step_timeout_s
        for rank in range(4):
            # One has done its first step, and waits for those that compile in theirs.
            court.beats[rank] = Beat(5, "data", timed=True) if rank == 0 else Beat(4, "step", is_first=True)
            court.counts[rank] = court.counts.get(rank, 0) + 1
    assert (verdict.kind, verdict.suspects) == ("stalled", (1, 2, 3))
    assert limits.first_step_timeout_s <= court.now <= limits.first_step_timeout_s + 2 * PERIOD
    assert verdict.message.endswith("; if a start may take so long, raise resources.first_step_timeout_s")


@pytest.mark.parametrize("phase", sorted(set(PHASES) - set(TIMED_PHASES) - {"end", "failed"}))
def test_nobody_is_hung_while_one_may_take_any_time(phase: str) -> None:
    court = Court()
    while court.now < 5 * LIMITS.stall_timeout_s:
        for rank in range(4):
            court.say(rank, 57, "step" if rank else phase)
        assert court.look() is None


@given(st.lists(st.floats(0, 1e5), min_size=5, max_size=60), st.lists(st.integers(0, 3), min_size=60, max_size=60))
def test_whoever_beats_is_never_lost_however_the_clock_jumps(jumps: list[float], missed: list[int]) -> None:
    """Each look misses one rank's beat; twice in a row it is never the same one's."""
    court = Court()
    for number, jump in enumerate(jumps):
        for rank in range(4):
            if rank != missed[number] or (number and missed[number] == missed[number - 1]):
                court.say(rank, number, "step")
        verdict = court.look(jump)
        assert verdict is None


def test_a_suspended_machine_comes_back_to_a_run_that_goes_on() -> None:
    court = Court()
    training(court)
    assert court.look(after=8 * 3600) is None
    training(court)


def test_one_that_ended_is_not_missed_and_one_that_failed_is() -> None:
    court = Court()
    training(court)
    court.say(1, 10, "end")
    for step in range(100):
        for rank in (0, 2, 3):
            court.say(rank, step, "evaluation")
        assert court.look() is None
    court.beats[2] = Beat(10, "failed", error="DataError: shard 7 is gone")
    court.counts[2] += 1
    verdict = court.until_verdict([0, 3], 100, "evaluation")
    assert (verdict.kind, verdict.suspects) == ("failed", (2,))
    assert verdict.message == (
        "rank 2 (n1, pid 12) failed at step 10, and the others wait for it: DataError: shard 7 is gone"
    )


def test_one_that_is_silent_comes_before_one_whose_connection_to_it_broke() -> None:
    court = Court()
    training(court)
    court.say(3, 10, "step")
    court.beats[2] = Beat(10, "failed", error="RuntimeError: Connection reset by peer")
    court.counts[2] += 1
    verdict = court.until_verdict([0, 1], 10, "step")
    assert (verdict.kind, verdict.suspects) == ("lost", (3,))


def test_many_hosts_are_not_all_named() -> None:
    peers = [Peer(f"a-long-name-of-a-node-{rank}.of-a-long-domain.example.org", rank) for rank in range(1000)]
    assert len(named(range(1, 1000), peers)) < 1000
    assert named(range(1, 1000), peers).endswith(" and 991 more)")


def beat_of(step: int) -> Beat:
    return Beat(step, "evaluation")


def listening() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


def test_strangers_and_broken_connections_change_nothing() -> None:
    """Only silence counts: a spoke whose connection breaks makes a new one, and nobody else is listened to."""
    found: list[Verdict] = []

    async def talk() -> None:
        server = listening()
        port = server.getsockname()[1]
        hub = Hub(PEERS[:2], QUICK, "secret", lambda: beat_of(1))
        spoke = Spoke(1, PEERS[:2], QUICK, "secret", lambda: beat_of(2))
        sides = [
            asyncio.create_task(hub.watch(server, found.append, lambda: None)),
            asyncio.create_task(spoke.watch("127.0.0.1", port, found.append, lambda: None)),
        ]
        lies = [
            b"GET / HTTP/1.1\r\n\r\n",
            b"\xff\xfe\n" * 10,
            b"x" * 100_000,
            b"[" * 8000 + b"\n",
            json.dumps({"key": "wrong", "rank": 1}).encode() + b'\n{"step": 9, "phase": "failed"}\n',
            json.dumps({"key": "secret", "rank": 7}).encode() + b"\n",
            json.dumps(["secret"]).encode() + b"\n",
            json.dumps({"key": "secret", "rank": 1}).encode() + b'\n{"stop": 9}\n',
        ]
        broken = None
        for lie in lies:
            await until_both_hear(hub, spoke, broken)
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(lie)
                await asyncio.sleep(0.1)
                writer.close()
            broken = spoke._writer
            assert broken is not None
            broken.transport.abort()  # and the connection of the rank itself breaks
        await until_both_hear(hub, spoke, broken)
        for side in sides:
            assert not side.done()
            side.cancel()

    asyncio.run(talk())
    assert found == []


def test_the_hub_is_lost_where_its_port_is_open_and_nobody_answers() -> None:
    found: list[Verdict] = []

    async def talk() -> float:
        with listening() as server:
            spoke = Spoke(1, PEERS[:2], QUICK, "secret", lambda: beat_of(2))
            watch = Watch()
            await spoke.watch("127.0.0.1", server.getsockname()[1], found.append, lambda: None)
            return await watch.stop()

    assert asyncio.run(talk()) < 2 * QUICK.heartbeat_timeout_s + 1
    (verdict,) = found
    assert re.sub(r"for \d+ s", "for 1 s", verdict.message) == (  # more on a busy machine
        "rank 0 (n0, pid 10) has not been heard from for 1 s: it is taken for lost, or the network between it and "
        "rank 1 (n0, pid 11), at step 2 (evaluation), for cut"
    )


@pytest.mark.parametrize("order", [(3, 2, 1, 0), (0, 1, 2, 3)])
def test_an_orderly_end_is_told_at_once_and_without_a_word(
    order: tuple[int, ...], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    found: list[Verdict] = []
    has_ended: set[int] = set()
    slow = Limits(heartbeat_timeout_s=12, stall_timeout_s=60)  # a period of 2 s: the end must not wait for it

    def beat(rank: int) -> Beat:
        return Beat(9, "end" if rank in has_ended else "evaluation")

    async def talk() -> None:
        server = listening()
        host, port = server.getsockname()
        hub = Hub(PEERS, slow, "secret", partial(beat, 0))
        spokes = [Spoke(rank, PEERS, slow, "secret", partial(beat, rank)) for rank in (1, 2, 3)]
        watches = [hub.watch(server, found.append, lambda: None)]
        watches += [spoke.watch(host, port, found.append, lambda: None) for spoke in spokes]
        tasks = [asyncio.create_task(watch) for watch in watches]
        await until(lambda: len(hub._writers) == len(spokes) and hub._loop is not None)
        for rank in order:
            has_ended.add(rank)
            watch = Watch()
            await asyncio.to_thread([hub, *spokes][rank].end)
            assert await watch.stop() < slow.period_s / 2
        await asyncio.wait_for(asyncio.gather(*tasks), 60)

    gc.collect()  # what an earlier test left open is not to be told as ours
    recwarn.clear()
    asyncio.run(talk())
    gc.collect()  # what is left open here is
    assert found == []
    # Threads of other tests may still have something to say.
    assert [record for record in caplog.records if record.name.startswith(("asyncio", "dmlscale.distributed"))] == []
    assert [str(warning.message) for warning in recwarn] == []

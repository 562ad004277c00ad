"""Who of the ranks is lost, or holds the others up: judged from what each of them says of its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from dmlscale.distributed.beats import Beat, Limits, Patience, Peer

# Hosts in a message, which travels as one line of bounded length.
_MOST_NAMED = 8


@dataclass(frozen=True)
class Verdict:
    """Why this start of the workers must end.

    Args:
        kind: "superseded": by a later start of the workers; "failed": a rank ended with an error and is waited for.
        message: one line.
        step: steps that the suspects have done.
        suspects: ranks that it is about.
    """

    kind: Literal["lost", "stalled", "superseded", "failed"]
    message: str
    step: int
    suspects: tuple[int, ...]


class Judge:
    """Looks at the beats of all ranks, once a period.

    Args:
        peers: all ranks' processes.
        limits: when to judge.
        now: seconds, of a clock that only runs forward.
    """

    def __init__(self, peers: Sequence[Peer], limits: Limits, now: float) -> None:
        self._peers, self._limits, self._last_look = peers, limits, now
        # A beat that came right after a look is already one period old at the next: so nobody waits longer than said.
        silence = limits.heartbeat_timeout_s - limits.period_s
        self._silences = [Patience(silence, limits.period_s) for _ in peers]
        self._stall = Patience(limits.stall_timeout_s, limits.period_s)
        self._first_stall = Patience(limits.first_step_timeout_s, limits.period_s)
        self._counts = [0] * len(peers)
        self._heard_at = [now] * len(peers)
        self._places: dict[int, tuple[int, int]] = {}

    def look(self, beats: Mapping[int, Beat], counts: Mapping[int, int], now: float) -> Verdict | None:
        """The verdict, if there is one.

        Args:
            beats: the last of each rank that was heard from.
            counts: how many came from each rank so far.
            now: seconds, of the clock of the constructor.
        """
        passed, self._last_look = now - self._last_look, now
        return self._silent(beats, counts, passed, now) or self._hung(beats, passed)

    def _silent(
        self, beats: Mapping[int, Beat], counts: Mapping[int, int], passed: float, now: float
    ) -> Verdict | None:
        over = []
        for rank, silence in enumerate(self._silences):
            is_new = counts.get(rank, 0) != self._counts[rank]
            self._counts[rank] = counts.get(rank, 0)
            if is_new:
                self._heard_at[rank] = now
            last = beats.get(rank)
            # One that has ended in order is not waited for; one that has failed is, by all others.
            if silence.is_over(passed, in_vain=not is_new and not (last and last.phase == "end")):
                over.append(rank)
        if not over:
            return None
        # Others of the same machine fall silent at almost the same time: the line is to name them all.
        lost = [
            rank
            for rank, heard_at in enumerate(self._heard_at)
            if now - heard_at >= self._limits.heartbeat_timeout_s / 2 and not (rank in beats and beats[rank].is_last)
        ]
        failed = [rank for rank in over if rank in beats and beats[rank].phase == "failed"]
        # Where a rank is silent too, the others have failed because their connection to it broke.
        if failed and not lost:
            return self._failed(failed[0], beats[failed[0]])
        return _lost(lost or over, self._peers, beats, max(now - self._heard_at[rank] for rank in over))

    def _failed(self, rank: int, beat: Beat) -> Verdict:
        message = f"{named([rank], self._peers)} failed at step {beat.step}, and the others wait for it: {beat.error}"
        return Verdict("failed", message, beat.step, (rank,))

    def _hung(self, beats: Mapping[int, Beat], passed: float) -> Verdict | None:
        here = {rank: beat for rank, beat in sorted(beats.items()) if not beat.is_last}
        places = {rank: beat.place for rank, beat in here.items()}
        in_vain = bool(here) and len(beats) == len(self._peers) and places == self._places
        self._places = places
        timed = in_vain and all(beat.timed for beat in here.values())
        first = in_vain and all(beat.timed or beat.is_first for beat in here.values())
        # Both look, so that both count.
        is_over = [self._stall.is_over(passed, in_vain=timed), self._first_stall.is_over(passed, in_vain=first)]
        return self._stalled(here) if any(is_over) else None

    def _stalled(self, here: Mapping[int, Beat]) -> Verdict:
        first = min(beat.place for beat in here.values())
        behind = [rank for rank, beat in here.items() if beat.place == first]
        last = here[behind[0]]
        seconds = max(here[rank].seconds for rank in behind)
        ahead: dict[str, list[int]] = {}
        for rank, beat in here.items():
            if rank not in behind:
                ahead.setdefault(str(beat), []).append(rank)
        if ahead or len(here) == 1:
            has = "has" if len(behind) == 1 else "have"
            message = f"{named(behind, self._peers)} {has} been at {last} for {seconds:.0f} s"
            them = "it" if len(behind) == 1 else "them"
            message += "".join(
                f"; {_ranks(ranks)} wait{'s' if len(ranks) == 1 else ''} for {them} in {place}"
                for place, ranks in ahead.items()
            )
        else:
            message = f"all ranks have been at {last} for {seconds:.0f} s: a collective that does not end"
        if any(beat.is_first for beat in here.values()):
            message += "; if a start may take so long, raise resources.first_step_timeout_s"
        return Verdict("stalled", message, last.step, tuple(behind))


def lost_hub(peers: Sequence[Peer], observer: int, beat: Beat, seconds: float) -> Verdict:
    """That rank 0 has not been heard from for so long, as another rank sees it, which is at a place of its own."""
    message = (
        f"{named([0], peers)} has not been heard from for {seconds:.0f} s: it is taken for lost, or the network "
        f"between it and {named([observer], peers)}, at {beat}, for cut"
    )
    return Verdict("lost", message, beat.step, (0,))


def _lost(ranks: Sequence[int], peers: Sequence[Peer], beats: Mapping[int, Beat], seconds: float) -> Verdict:
    last = min((beats[rank] for rank in ranks if rank in beats), key=lambda beat: beat.place, default=None)
    one = len(ranks) == 1
    message = (
        f"{named(ranks, peers)} {'has' if one else 'have'} not been heard from for {seconds:.0f} s"
        f"{f', last at {last}' if last else ''}: {'it is' if one else 'they are'} taken for lost"
    )
    return Verdict("lost", message, last.step if last else 0, tuple(ranks))


def named(ranks: Sequence[int], peers: Sequence[Peer]) -> str:
    """``rank 1 (n1, pid 123)``, or ``ranks 8-15 (n1)``."""
    if len(ranks) == 1:
        peer = peers[ranks[0]]
        return f"rank {ranks[0]} ({peer.host}, pid {peer.pid})"
    hosts = list(dict.fromkeys(peers[rank].host for rank in ranks))
    more = f" and {len(hosts) - _MOST_NAMED} more" if len(hosts) > _MOST_NAMED else ""
    return f"{_ranks(ranks)} ({', '.join(hosts[:_MOST_NAMED])}{more})"


def _ranks(ranks: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for rank in sorted(ranks):
        if runs and rank == runs[-1][1] + 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    texts = [str(a) if a == b else f"{a}{', ' if b == a + 1 else '-'}{b}" for a, b in runs]
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(texts)}"

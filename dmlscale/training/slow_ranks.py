"""Which rank holds the others up: by how much, over how long, and beyond what noise makes of its times."""

from __future__ import annotations

import math
import statistics
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from dmlscale.training.pace import Pace, for_equal_batches

SLOW = 1.3  # times the others' own time
NO_LONGER = 1.15  # likewise
LEAST_S = 0.01  # a step; less is not worth a word
SPAN_S = 2.0  # times are averaged over so long, or a step that takes longer
SPANS = 5  # that are looked at together, and twice, four times ... as many
MOST_SPANS = 32 * SPANS
# How much it takes to tell a rank that is e times as slow as the others.
STEPS_TO_TELL, SPANS_TO_TELL = 20.0, 3.2
SILENT_S = 300.0  # between two words about the same rank


@dataclass(frozen=True)
class _Span:
    """One rank over a span: ``ratio`` times as slow as the others, 1 where that is not worth a word."""

    ratio: float
    own_s: float
    data_s: float
    others_s: float
    steps: int


class SlowRanks:
    """Says when a rank becomes slow, and when it no longer is.

    Readings are taken together to spans of `SPAN_S`, so that ``train.log_every`` hardly matters. In each, a rank is
    compared with the median of the others (the lower one of two): as it is, which is what others wait for, and for as
    many samples, so that one that was given more of the batch is not blamed; and both on average and in most readings,
    so that a pause in one step is not either. The smallest of these ratios counts.

    Slow is a rank whose ratio is above `SLOW` in most of the last `SPANS` spans, or of twice, four times ... as many,
    if they are enough: what it takes to tell a ratio from noise falls with the square of its logarithm. A ratio of 1.5
    takes 122 steps in 20 spans (40 s), one of 2 takes 42 steps in 10, one of 5 takes 8 steps in `SPANS` (10 s).

    Args:
        hosts: name of each rank's.
        fault: takes a line about a rank that is slow.
        message: takes a line about one that no longer is.
        clock: seconds.
    """

    def __init__(
        self,
        hosts: Sequence[str],
        *,
        fault: Callable[[str], None],
        message: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._hosts, self._fault, self._message, self._clock = hosts, fault, message, clock
        self._since, self._readings = clock(), list[Sequence[Pace]]()
        self._spans = [deque[_Span](maxlen=MOST_SPANS) for _ in hosts]
        self._said = [False] * len(hosts)
        self._silent_until = [float("-inf")] * len(hosts)

    def look(self, paces: Sequence[Pace]) -> None:
        """Takes each rank's pace since the last look."""
        self._readings.append(paces)
        now = self._clock()
        if now - self._since < SPAN_S:
            return
        means = _compared([_mean(of_rank) for of_rank in zip(*self._readings, strict=True)])
        each = zip(*map(_compared, self._readings), strict=True)
        self._since, self._readings = now, []
        for rank, (mean, readings) in enumerate(zip(means, each, strict=True)):
            ratio = min(mean.ratio, _usual_ratio(readings))  # a pause in one step is not the usual
            self._spans[rank].append(replace(mean, ratio=ratio))
            self._judge(rank, now)

    def _judge(self, rank: int, now: float) -> None:
        spans = self._spans[rank]
        if len(spans) < SPANS:
            return
        newest = list(spans)[-SPANS:]
        if self._said[rank]:
            if _usual_ratio(newest) <= NO_LONGER:
                self._said[rank] = False
                own_s, others_s = _usual(newest, "own_s"), _usual(newest, "others_s")
                self._message(f"{self._who(rank)} is no longer slow: {own_s:.2g} s a step, the others {others_s:.2g} s")
        elif now >= self._silent_until[rank] and (slow := _slow_spans(spans)):
            self._said[rank], self._silent_until[rank] = True, now + SILENT_S
            own_s, others_s, data_s = (_usual(slow, name) for name in ("own_s", "others_s", "data_s"))
            self._fault(
                f"{self._who(rank)} is slow: {own_s:.2g} s a step before it meets the others, which take "
                f"{others_s:.2g} s ({data_s:.2g} s of it waiting for data); all wait for it"
            )

    def _who(self, rank: int) -> str:
        return f"rank {rank} ({self._hosts[rank]})"


def _slow_spans(spans: Sequence[_Span]) -> list[_Span]:
    """The fewest of the last spans that show the rank to be slow; none if it is not."""
    count, newest_first = SPANS, list(reversed(spans))
    while count <= len(newest_first):
        looked_at = newest_first[:count]
        ratio = _usual_ratio(looked_at)
        if ratio > SLOW:
            steps = sum(span.steps for span in looked_at)
            if min(count / SPANS_TO_TELL, steps / STEPS_TO_TELL) * math.log(ratio) ** 2 >= 1:
                return looked_at
        count *= 2
    return []


def _usual_ratio(spans: Sequence[_Span]) -> float:
    return statistics.median_low(span.ratio for span in spans)


def _usual(spans: Sequence[_Span], name: str) -> float:
    return statistics.median(getattr(span, name) for span in spans)


def _mean(paces: Sequence[Pace]) -> Pace:
    """A rank's pace over several readings."""
    steps = sum(pace.steps for pace in paces)
    if not steps:
        return replace(paces[-1], steps=0)
    data_s, own_s, samples = (
        sum(getattr(pace, name) * pace.steps for pace in paces) / steps for name in ("data_s", "own_s", "samples")
    )
    return Pace(data_s, own_s, samples, steps)


def _compared(paces: Sequence[Pace]) -> list[_Span]:
    """Each rank beside the others."""
    equal = for_equal_batches(paces)
    others = _Others([pace.own_s if pace.samples else None for pace in paces])
    others_for_equal = _Others(equal)
    spans = []
    for pace, for_equal in zip(paces, equal, strict=True):
        ratio, usual_s = 1.0, others.median(pace.own_s)
        if for_equal is not None:
            ratio = min(_ratio(pace.own_s, usual_s), _ratio(for_equal, others_for_equal.median(for_equal)))
        spans.append(_Span(ratio, pace.own_s, pace.data_s, usual_s or 0.0, pace.steps))
    return spans


def _ratio(own_s: float, others_s: float | None) -> float:
    if others_s is None or own_s - others_s <= LEAST_S:
        return 1.0
    return own_s / others_s if others_s > 0 else math.inf


class _Others:
    """The median of all numbers but one; the lower one of two."""

    def __init__(self, numbers: Sequence[float | None]) -> None:
        self._sorted = sorted(number for number in numbers if number is not None)

    def median(self, but: float) -> float | None:
        """None if there are no others."""
        middle = (len(self._sorted) - 2) // 2  # of the others
        if middle < 0:
            return None
        return self._sorted[middle + (bisect_left(self._sorted, but) <= middle)]

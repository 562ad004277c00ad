"""What ranks say of themselves to each other while they train, and how long one waits for it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

# What a rank may be at after so many steps, in the order in which it gets there. "end" and "failed": it is done.
PHASES = ("start", "class means", "save", "evaluation", "report", "data", "mining", "step", "end", "failed")
# The others may take any time: one rank may draw for long while all others wait for it.
TIMED_PHASES = ("data", "step", "save")
# Until its first step is done a rank fetches, opens and compiles: here a limit of its own holds.
FIRST_PHASES = ("start", *TIMED_PHASES)


class Beat(NamedTuple):
    """What a rank says of itself.

    Args:
        step: steps that it has done.
        phase: one of `PHASES`.
        seconds: since it came there, by its own clock.
        timed: whether it may be taken for hung there.
        error: for "failed": first line of what it failed with.
        is_first: whether it may be taken for hung after the longer time that the start and the first step have.
    """

    step: int
    phase: str
    seconds: float = 0.0
    timed: bool = False
    error: str = ""
    is_first: bool = False

    @property
    def is_last(self) -> bool:
        """Whether the rank has ended, in order or with an error, so that no more beats follow."""
        return self.phase in ("end", "failed")

    @property
    def place(self) -> tuple[int, int]:
        """Grows on the way through a run."""
        return self.step, PHASES.index(self.phase)

    def __str__(self) -> str:
        return f"step {self.step} ({self.phase})"


@dataclass(frozen=True)
class Peer:
    """A rank's process.

    Args:
        host: name of its machine.
        pid: its process id there.
    """

    host: str
    pid: int


@dataclass(frozen=True)
class Limits:
    """After how many seconds a rank is taken for lost, or all of them for hung.

    Args:
        heartbeat_timeout_s: without a beat.
        stall_timeout_s: without a change of place.
        first_step_timeout_s: the same, before the first step of this start is done.
    """

    heartbeat_timeout_s: float
    stall_timeout_s: float
    first_step_timeout_s: float = math.inf

    @property
    def period_s(self) -> float:
        """Between two beats, and between two looks at them."""
        return min(5.0, self.heartbeat_timeout_s / 6, self.stall_timeout_s / 6)


class Patience:
    """Seconds that one has waited in vain.

    Only looks count: where the whole machine was suspended, or the process stopped, the time between two looks is not
    the fault of those that are waited for. So one look never counts for more than two periods.

    Args:
        limit_s: how long to wait.
        period_s: between two looks.
    """

    def __init__(self, limit_s: float, period_s: float) -> None:
        self._limit, self._most, self._waited = limit_s, 2 * period_s, 0.0

    def is_over(self, passed_s: float, *, in_vain: bool) -> bool:
        """One look. Once it is over, it begins anew.

        Args:
            passed_s: since the last one.
            in_vain: whether what is waited for has not come since then.
        """
        self._waited = self._waited + min(passed_s, self._most) if in_vain else 0.0
        if self._waited < self._limit:
            return False
        self._waited = 0.0
        return True

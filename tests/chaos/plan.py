"""Which fault strikes at which step: a function of the seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

FaultKind = Literal[
    "worker killed",
    "worker hung",
    "worker slow",
    "node off",
    "network cut",
    "driver killed",
    "driver stopped",
    "storage full",
    "checkpoint damaged",
    "tracker killed",
    "tracker hung",
]
KINDS: tuple[FaultKind, ...] = get_args(FaultKind)
# A fault is due this many steps after the one before, give or take a third.
STEPS_BETWEEN = 90
# The training goes on while some faults last, so the run is longer than the plan.
_LONGER = 1.3


@dataclass(frozen=True)
class Strike:
    """One fault.

    Args:
        step: of the run, from which on it strikes.
        kind: of fault.
        victim: what it strikes, where there is a choice: counted through whatever there is then.
    """

    step: int
    kind: FaultKind
    victim: int


def draw_plan(seed: int, count: int, kinds: Sequence[FaultKind] = KINDS) -> list[Strike]:
    """``count`` faults in the order in which they strike: each kind at least once if there are enough of them."""
    dice = random.Random(seed)
    drawn = dice.sample(kinds, min(count, len(kinds)))
    drawn += dice.choices(kinds, k=count - len(drawn))
    dice.shuffle(drawn)
    third = STEPS_BETWEEN // 3
    return [
        Strike(STEPS_BETWEEN * number + dice.randint(-third, third), kind, dice.randrange(6))
        for number, kind in enumerate(drawn, 1)
    ]


def steps_of_run(count: int) -> int:
    """Length of a run that is still on its way when the last of ``count`` faults strikes."""
    return round(_LONGER * STEPS_BETWEEN * (count + 2))

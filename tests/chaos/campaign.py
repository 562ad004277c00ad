"""Strikes a run with one fault after the other, and says how long each took to mend."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.faults import FAULTS, wait_until_told
from tests.chaos.plan import Strike
from tests.chaos.site import Site

_MENDED_WITHIN = 180  # seconds
_STEP_WITHIN = 240
_END_WITHIN = 300


@dataclass(frozen=True)
class Outcome:
    """What became of one fault.

    Args:
        strike: the fault.
        struck_at: last step that was logged when it struck.
        step_after: first step that was logged when it was mended.
        told_s: from its strike to the first line of the output that tells of it.
        seconds: from its strike to the step after.
        lines: of the output that tell of it.
    """

    strike: Strike
    struck_at: int
    step_after: int
    told_s: float
    seconds: float
    lines: list[str]


def run_campaign(site: Site, plan: Sequence[Strike]) -> list[Outcome]:
    """Starts the run, strikes it as planned and waits for its end.

    A fault waits until the run has reached its step and has got over the fault before.

    Raises:
        AssertionError: the run ended early or badly.
        TimeoutError: a fault was not told of, or the training did not go on after it.
    """
    site.start_driver()
    outcomes = []
    for strike in plan:
        site.wait_for_step(strike.step, seconds=_STEP_WITHIN)
        outcomes.append(_strike(site, strike))
        print(_row(outcomes[-1]), flush=True)
    assert site.wait_for_end(seconds=_END_WITHIN) == 0, site.ending()
    return outcomes


def table(outcomes: Sequence[Outcome]) -> str:
    """Of all faults, in the order in which they struck."""
    return "\n".join(["fault                at step  then  told s   total s", *map(_row, outcomes)])


def _row(outcome: Outcome) -> str:
    steps = f"{outcome.strike.kind:<20} {outcome.struck_at:>7} {outcome.step_after:>5}"
    return f"{steps} {outcome.told_s:>7.1f} {outcome.seconds:>9.1f}  {outcome.lines[0]}"


def _strike(site: Site, strike: Strike) -> Outcome:
    fault = FAULTS[strike.kind]
    attempt, step, began = site.progress.attempt, site.progress.step, time.monotonic()
    fault.strike(site, strike.victim)
    wait_until_told(site, strike.kind, began)
    now = site.progress.step

    def goes_on() -> bool:
        return site.progress.attempt > attempt if fault.restarts else site.progress.step > now

    site.wait_until(goes_on, f"training again after: {strike.kind}", seconds=_MENDED_WITHIN)
    seconds, lines = time.monotonic() - began, site.log.since(began, fault.says)
    return Outcome(strike, step, site.progress.step, lines[0].at - began, seconds, [line.text for line in lines])

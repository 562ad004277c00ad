"""The judge of the chaos test: it must see what it is there to see."""

from __future__ import annotations

from typing import Any

import pytest

from tests.chaos.same_run import assert_same_steps

STEPS = 6


def entry(step: int, attempt: int, *, loss: float | None = None, batch: str | None = None) -> dict[str, Any]:
    if loss is None and step != 3:
        loss = 0.1 * step
    metrics = {} if loss is None else {"train/loss": loss}
    return {"step": step, "attempt": attempt, "batch": batch or f"{step:08x}", "metrics": metrics}


ALONE = [entry(step, 1) for step in range(1, STEPS + 1)]
# Killed at step 4, and begun again from the checkpoint of step 2.
RESTARTED = [entry(step, 1) for step in (1, 2, 3, 4)] + [entry(step, 2) for step in (3, 4, 5, 6)]


def test_steps_may_be_repeated() -> None:
    assert_same_steps(ALONE, ALONE, STEPS)
    assert_same_steps(RESTARTED, ALONE, STEPS)


@pytest.mark.parametrize(
    ("place", "wrong"),
    [
        (4, entry(3, 2, loss=0.3)),  # where it was skipped
        (6, entry(5, 2, loss=0.5000001)),
        (6, entry(5, 2, batch="other")),
        (6, entry(5, 1)),  # from an orphan
        (6, entry(6, 2)),  # a step left out
        (4, entry(6, 2)),  # more than there was a checkpoint for
    ],
)
def test_anything_else_is_seen(place: int, wrong: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        assert_same_steps([*RESTARTED[:place], wrong, *RESTARTED[place + 1 :]], ALONE, STEPS)


def test_an_early_end_is_seen() -> None:
    with pytest.raises(AssertionError):
        assert_same_steps(RESTARTED[:-1], ALONE, STEPS)

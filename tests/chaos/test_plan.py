from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.plan import KINDS, draw_plan, steps_of_run


@given(st.integers(), st.integers(0, 60))
def test_a_plan_is_a_function_of_its_seed_and_has_all_kinds(seed: int, count: int) -> None:
    plan = draw_plan(seed, count)
    assert plan == draw_plan(seed, count)
    assert len(plan) == count
    assert len({strike.kind for strike in plan}) == min(count, len(KINDS))
    steps = [strike.step for strike in plan]
    assert steps == sorted(set(steps))
    assert all(0 < step < steps_of_run(count) for step in steps)


def test_other_seeds_have_other_plans() -> None:
    assert len({tuple(draw_plan(seed, 20)) for seed in range(20)}) == 20


def test_a_few_kinds_can_be_asked_for() -> None:
    assert {strike.kind for strike in draw_plan(3, 9, ("node off", "worker slow"))} == {"node off", "worker slow"}

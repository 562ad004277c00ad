import math
from dataclasses import replace

import numpy as np

from dmlscale.tuning.importance import importance
from dmlscale.tuning.outcomes import Outcome, Scalar
from tests.tuning.planted import METRIC, planted_trials


def test_the_planted_setting_comes_first() -> None:
    found = importance(planted_trials(40), METRIC)
    assert found.keys[0].key == "optim.backbone_lr"
    assert found.explained > 0.5
    assert found.num_trials == 40
    means = {key.key: key.mean for key in found.keys}
    assert means["optim.backbone_lr"] > 5 * means["model.embedding_dim"]


def test_a_conditional_setting_counts_over_the_trials_that_have_it() -> None:
    trials = planted_trials(80)
    found = {key.key: key for key in importance(trials, METRIC).keys}
    with_temperature = sum("losses.temperature" in outcome.drawn for outcome in trials)
    assert found["losses.temperature"].num_trials == with_temperature < 80
    assert found["losses.margin"].num_trials == 80 - with_temperature
    assert found["losses.temperature"].mean > 10 * max(found["losses.margin"].mean, 0)


def test_early_stops_do_not_mislead() -> None:
    """All trials are equal but for their steps, and the scheduler stopped those of one loss."""
    random = np.random.default_rng(0)
    trials = []
    for number in range(40):
        steps = int(random.choice([100, 200, 300, 400]))
        curve = ((steps, {METRIC: steps / 400 + float(random.normal(0, 0.001))}),)
        loss = "triplet" if steps > 200 or number % 8 == 0 else "contrastive"
        drawn: dict[str, Scalar] = {"losses.name": loss, "x": float(random.uniform())}
        trials.append(Outcome(trial=str(number), status="stopped", drawn=drawn, curve=curve))
    assert importance(trials, METRIC).keys[0].mean < 0.1
    unaware = [replace(outcome, curve=((1, outcome.metrics),)) for outcome in trials]
    assert importance(unaware, METRIC).keys[0].mean > 0.5


def test_the_same_trials_give_the_same_bits() -> None:
    assert importance(planted_trials(20), METRIC) == importance(planted_trials(20), METRIC)


def test_too_little_to_tell_is_said() -> None:
    trials = planted_trials(12)
    assert "5 trials" in importance(trials[:5], METRIC).reason
    failed = [replace(outcome, status="failed") for outcome in trials]
    assert "0 trials" in importance(failed, METRIC).reason
    nan = [replace(outcome, curve=((1, {METRIC: math.nan}),)) for outcome in trials]
    assert "0 trials" in importance(nan, METRIC).reason
    equal = [replace(outcome, curve=((1, {METRIC: 0.5}),)) for outcome in trials]
    assert "the same in all 12" in importance(equal, METRIC).reason
    alike = [replace(outcome, drawn={"x": 1}) for outcome in trials]
    assert "no setting differs" in importance(alike, METRIC).reason
    assert importance(trials[:5], METRIC).keys == ()


def test_settings_of_few_trials_are_left_out_by_name() -> None:
    trials = planted_trials(12)
    rare = [replace(o, drawn={**o.drawn, **({"rare": i} if i < 3 else {})}) for i, o in enumerate(trials)]
    found = importance(rare, METRIC)
    assert "rare" in found.left_out
    assert "rare" not in {key.key for key in found.keys}


def test_values_of_any_kind() -> None:
    values = [None, 3, True, "x", 0.5, 1e-9, "y", False]
    trials = [replace(o, drawn={"mixed": values[i % 8], "flag": i % 2 == 0}) for i, o in enumerate(planted_trials(16))]
    assert {key.key for key in importance(trials, METRIC).keys} == {"mixed", "flag"}

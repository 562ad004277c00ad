"""What is told of a `space:` that is none."""

from __future__ import annotations

import pytest

from dmlscale.launch.errors import LaunchError
from dmlscale.tuning.draw import RandomChooser
from tests.tuning.test_space import BASE, parsed


def errors_of(text: str, *losses: str) -> list[str]:
    with pytest.raises(LaunchError) as caught:
        parsed(text, *losses)
    head, *lines = str(caught.value).splitlines()
    assert head.startswith("space:")
    return lines or [head]


BAD = [
    ("losses.margin: {unifrm: [0, 1]}", "losses.margin: unknown 'unifrm'; did you mean 'uniform'"),
    ("losses.margin: {uniform: [1, 0]}", "losses.margin: the low end 1 must be below the high end 0"),
    ("losses.margin: {uniform: [1]}", "losses.margin: uniform needs its two ends, as uniform: [low, high], got [1]"),
    ("losses.margin: {uniform: [0, one]}", "losses.margin: bounds must be finite numbers, got 'one'"),
    (
        "losses.margin: {log_uniform: [0, 1]}",
        "losses.margin: the low end of a range of ratios must be above zero, got 0",
    ),
    ("losses.margin: {uniform: [0, 1], choice: [1]}", "losses.margin: needs exactly one of uniform, log_uniform, int"),
    (
        "losses.margin: {when: {losses.name: circle}}",
        "needs exactly one of uniform, log_uniform, int, choice, got none",
    ),
    ("losses.margin: {uniform: [1, 2], log: true}", "losses.margin: log belongs to int; log_uniform is"),
    ("train.steps: {int: [1, 2.5]}", "train.steps: bounds must be whole numbers, got 2.5"),
    ("train.steps: {int: [1, 2], log: 'yes'}", "train.steps: log must be true or false, got 'yes'"),
    ("train.steps: {choice: []}", "train.steps: needs at least one choice"),
    ("train.steps: {choice: [10, 1e1]}", "train.steps: the choice 10.0 stands there twice"),
    ("train.steps: [1, 2]", "train.steps: got [1, 2]; write {choice: [1, 2]}"),
    ("train.steps: 3", "train.steps: got 3; write {choice: [3]}"),
    ("steps: {choice: [1]}", "steps: write the whole key, as optim.backbone_lr"),
    (
        "losses.margn: {choice: [1]}",
        "losses.margn: circle: no option 'margn'; did you mean 'margin'? (it has: margin, scale",
    ),
    ("losses.bank_rl: {choice: [1]}", "did you mean 'bank_lr'?"),
    ("losses.margin: {choice: [1]}\nlosses.0.margin: {choice: [1]}", "losses.0.margin: is losses.margin, which stands"),
    ("losses.1.margin: {choice: [1]}", "losses.1.margin: there is one loss at a time; write losses.margin"),
    ("losses: all", "losses: must be `default`, got 'all'"),
    ("losses.name: {uniform: [0, 1]}", "losses.name: is drawn first, from a choice"),
    ("losses.name: {choice: [circle], when: {a.b: 1}}", "losses.name: is drawn first, from a choice"),
    ("losses.name: {choice: [circel]}", "losses.name: unknown loss 'circel'; did you mean 'circle'? (there are: am_"),
    ("losses.name: {choice: [{name: circle}]}", "losses.name: unknown loss {'name': 'circle'}"),
    (
        "losses.name: {choice: [circle, softmax, triplet]}\nlosses.margin: {uniform: [0, 1]}",
        "losses.margin: softmax: no option 'margin'; add when: {losses.name: [circle, triplet]}",
    ),
    (
        "losses.margin: {choice: [1], when: {losses.name: tripplet}}",
        "when: losses.name: unknown loss 'tripplet'; did you",
    ),
    ("losses.margin: {choice: [1], when: circle}", "losses.margin: when must be a mapping"),
    ("losses.margin: {choice: [1], when: {losses.scale: []}}", "when: losses.scale has no value"),
    (
        "losses.margin: {choice: [1], when: {losses.sale: 1}}",
        "when: losses.sale: circle: no option 'sale'; did you mean",
    ),
    (
        "losses.name: {choice: [circle, triplet]}\noptim.eps: {choice: [1], when: {losses.name: [circle, center]}}",
        "optim.eps: when: losses.name: unknown value 'center'",
    ),
    (
        "optim.eps: {uniform: [1, 2]}\nlosses.margin: {choice: [1], when: {optim.eps: 1}}",
        "losses.margin: when: optim.eps: is drawn from an interval, so it is never 1; give it a choice",
    ),
    ("a.b: {choice: [1], when: {a.c: 1}}\na.c: {choice: [1], when: {a.b: 1}}", "its when leads back to itself: a.b <-"),
    ("a.b: {choice: [1], when: {a.b: 1}}", "a.b: its when leads back to itself: a.b <- a.b"),
    ("a.b: {choice: [1]}\na.b.c: {choice: [1]}", "a.b.c: is inside of a.b, which is drawn as a whole"),
    ("{}", "space: must be a mapping of keys to ranges"),
    ("[1]", "space: must be a mapping of keys to ranges"),
]


@pytest.mark.parametrize(("text", "told"), BAD)
def test_a_bad_space_gets_one_line_that_names_the_key(text: str, told: str) -> None:
    (line,) = errors_of(text)
    assert told in line


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "losses.margin: {choice: [1]}",
            "losses.margin: which loss? losses.0 is softmax, losses.1 is center; write e.g.",
        ),
        ("losses.2.alpha: {choice: [1]}", "losses.2.alpha: which loss?"),
        ("losses.0.alpha: {choice: [1]}", "losses.0.alpha: softmax: no option 'alpha'"),
        ("losses: default", "losses: the default space is for a single loss"),
        ("losses.name: {choice: [circle]}", "losses.name: only a single loss is searched; the base config has softmax"),
    ],
)
def test_a_bad_key_among_several_losses(text: str, told: str) -> None:
    (line,) = errors_of(text, "softmax", "center")
    assert told in line


def test_a_loss_without_anything_to_search() -> None:
    assert errors_of("losses: default", "softmax") == ["  losses: softmax has nothing to search; name another key"]


def test_all_errors_come_at_once() -> None:
    lines = errors_of(
        "\n".join(text for text, _ in [BAD[0], BAD[8], BAD[11], BAD[15]]).replace("train.steps", "train.x", 1)
    )
    assert len(lines) == 4


def test_a_condition_on_a_key_that_nobody_has_is_refused_before_anything_is_drawn() -> None:
    space = parsed("losses.margin: {choice: [1], when: {data.sample_per_class: 4, optim.name: sgd}}")
    with pytest.raises(LaunchError) as caught:
        space.settings(RandomChooser(0, 0), BASE)
    told = str(caught.value)
    assert "when: data.sample_per_class is neither searched nor in the base config; did you mean" in told
    assert "'data.samples_per_class'" in told
    assert "when: optim.name is neither" in told


def test_a_key_through_a_value_is_refused() -> None:
    space = parsed("model.backbone.depth: {choice: [18]}")
    with pytest.raises(LaunchError, match=r"model\.backbone\.depth: model\.backbone of the base config is a value"):
        space.settings(RandomChooser(0, 0), BASE)

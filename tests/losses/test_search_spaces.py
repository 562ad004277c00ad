"""The losses' search spaces: every draw is a loss, the defaults are inside, and the documents tell the same."""

from __future__ import annotations

import dataclasses
import math
import random
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from dmlscale.cli import main
from dmlscale.losses import LOSSES
from dmlscale.losses.catalogue import spaces_as_markdown
from dmlscale.losses.hyper_parameters import make
from dmlscale.losses.search_space import Choice, Integer, LogUniform, Range, Uniform

DOCS = Path(__file__).parents[2] / "docs"
NUMERIC = (int, float, float | None, int | None)
# What None stands for, by the loss's docstring.
MEANT_BY_NONE = {("proxy_nca", "scale"): 1.0}

# Tuned on a validation set, on CUB-200, Cars196, Stanford Online Products (Musgrave et al. 2020, supplement). Their
# temperature of NormSoftmax and gamma of SoftTriple are turned over; a positive margin below zero is none of ours.
TUNED = [
    ("triplet", "margin", (0.0961, 0.1190, 0.0451)),
    ("contrastive", "margin", (0.3841, 0.5409, 0.5130)),
    ("contrastive", "positive_margin", (0.2652, 0.2850)),
    ("proxy_nca", "scale", (13.98, 7.97, 10.73)),
    ("norm_softmax", "scale", (1 / 0.1087, 1 / 0.0886, 1 / 0.0630)),
    ("soft_triple", "scale", (78, 17.7, 100)),
    ("soft_triple", "assignment_temperature", (1 / 58.95, 1 / 19.18, 1 / 47.9)),
    ("cosface", "margin", (0.618, 0.432, 0.336)),
    ("cosface", "scale", (100, 161.5, 100)),
    ("multi_similarity", "positive_scale", (0.01,)),
    ("multi_similarity", "negative_scale", (50.6,)),
    ("multi_similarity", "base", (0.56,)),
]


def drawn_from(searched: Range, chance: random.Random) -> Any:
    """Also the ends, where constraints break first."""
    if isinstance(searched, Choice):
        return chance.choice(searched.values)
    if isinstance(searched, Integer):
        return chance.randint(searched.low, searched.high)
    inside = (
        math.exp(chance.uniform(math.log(searched.low), math.log(searched.high)))
        if isinstance(searched, LogUniform)
        else chance.uniform(searched.low, searched.high)
    )
    return chance.choice([searched.low, inside, searched.high])


def is_inside(value: Any, searched: Range) -> bool:
    return value in searched.values if isinstance(searched, Choice) else searched.low <= value <= searched.high


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_with_a_number_to_tune_has_a_space_of_its_own_fields(name: str) -> None:
    cls = LOSSES[name]
    hints = get_type_hints(cls)
    fields = {field.name: hints[field.name] for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    numeric = [field for field, hint in fields.items() if hint in NUMERIC]
    assert set(cls.search_space) <= set(fields)
    assert any(field in cls.search_space for field in numeric) or not numeric
    for field, searched in cls.search_space.items():
        # A number is searched as a number, and a whole one as a whole one.
        kinds = {int: (Integer,), float: (Uniform, LogUniform)}.get(fields[field], (Uniform, LogUniform, Choice))
        assert isinstance(searched, kinds), field


@pytest.mark.parametrize("name", LOSSES)
def test_the_default_is_inside(name: str) -> None:
    made = LOSSES[name]()
    for field, searched in LOSSES[name].search_space.items():
        default = getattr(made, field)
        default = MEANT_BY_NONE[name, field] if default is None else default
        assert is_inside(default, searched), f"{field}={default} is not in {searched}"


@pytest.mark.parametrize(("name", "field", "optima"), TUNED)
def test_what_others_found_is_inside(name: str, field: str, optima: tuple[float, ...]) -> None:
    assert all(is_inside(optimum, LOSSES[name].search_space[field]) for optimum in optima)


@pytest.mark.parametrize("name", LOSSES)
def test_every_draw_is_a_valid_loss(name: str) -> None:
    chance = random.Random(0)
    for _ in range(200):
        options = {field: drawn_from(searched, chance) for field, searched in LOSSES[name].search_space.items()}
        made = make(LOSSES[name], name, options)
        assert {field: getattr(made, field) for field in options} == options


def test_a_positive_pair_is_never_to_be_farther_than_a_negative_one() -> None:
    chance = random.Random(0)
    space = LOSSES["contrastive"].search_space
    for _ in range(200):
        assert drawn_from(space["positive_margin"], chance) <= drawn_from(space["margin"], chance)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (lambda: Uniform(1, 1), "the low end 1 must be below the high end 1"),
        (lambda: Uniform(0, math.inf), "finite numbers, got inf"),
        (lambda: Uniform(True, 2), "finite numbers, got True"),
        (lambda: Uniform("1", 2), "finite numbers, got '1'"),  # type: ignore[arg-type]
        (lambda: LogUniform(math.nan, 1), "finite numbers, got nan"),
        (lambda: LogUniform(0, 1), "above zero, got 0"),
        (lambda: LogUniform(-1, 1), "above zero, got -1"),
        (lambda: Integer(1, 2.5), "whole numbers, got 2.5"),  # type: ignore[arg-type]
        (lambda: Integer(False, True), "finite numbers, got False"),
        (lambda: Integer(0, 4, log=True), "above zero, got 0"),
        (lambda: Choice([]), "at least one choice"),
        (lambda: Choice("abc"), "must be a list, got 'abc'"),
        (lambda: Choice([1, 2, True]), "the choice True stands there twice"),
        (lambda: Choice([[1], [1]]), r"the choice \[1\] stands there twice"),
    ],
)
def test_a_range_that_is_none_is_refused(made: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        made()


def test_the_document_and_the_command_tell_it(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    document = (DOCS / "losses.md").read_text()
    assert spaces_as_markdown() in document, "docs/losses.md is stale: run `make docs`"
    stale = tmp_path / "losses.md"
    stale.write_text(document.replace("`margin: log_uniform [0.02, 1]`", "`margin: uniform [7, 9]`"))
    assert main(["losses", "--renew", str(stale)]) == 0
    assert stale.read_text() == document
    capsys.readouterr()
    assert main(["losses", "soft_triple"]) == 0
    assert "centers_per_class: int [4, 25] log" in capsys.readouterr().out
    assert main(["losses", "softmax"]) == 0
    assert "none" in next(line for line in capsys.readouterr().out.splitlines() if "search space" in line)

"""Drawing from a space: at random, as a grid, by Optuna and by Ray's searcher around it."""

from __future__ import annotations

import itertools
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.tune.search.optuna import OptunaSearch

from dmlscale.launch.errors import LaunchError
from dmlscale.losses.search_space import Choice, Integer, LogUniform, Range, Uniform
from dmlscale.tuning.draw import OptunaChooser, RandomChooser, grid, grid_draws, optuna_space, random_draws
from dmlscale.tuning.space import Space

optuna.logging.set_verbosity(optuna.logging.WARNING)

BASE: dict[str, Any] = {"losses": {"name": "circle", "weight": 2.0}, "fixed": {"key": 1}}
MIXED = yaml.safe_load("""
losses.name: {choice: [triplet, proxy_anchor, soft_triple]}
losses: default
losses.margin: {uniform: [0.05, 0.5], when: {losses.name: [triplet]}}
optim.backbone_lr: {log_uniform: [5e-4, 8e-3]}
data.transform: {choice: [papers_train, {name: papers_train, size: 64}]}
evaluation.ks: {choice: [[1, 2], [1, 10]]}
optim.clip_norm: {choice: [null, 1.0, 5.0]}
model.embedding_dim: {int: [32, 256], log: true}
data.samples_per_class: {int: [2, 4]}
""")


@st.composite
def raw_spaces(draw: st.DrawFn, *, countable: bool) -> dict[str, Any]:
    """Spaces of up to five keys, each under conditions on those before it or on the fixed one."""
    space: dict[str, Any] = {}
    for number in range(draw(st.integers(1, 5))):
        kind = draw(st.sampled_from(["choice", "int"] if countable else ["choice", "int", "uniform", "log_uniform"]))
        low = draw(st.integers(1, 5))
        if kind == "choice":
            values: list[Any] = [1, 2, "text", [1], {"a": 1}, None, 0.5]
            entry: dict[str, Any] = {"choice": draw(st.permutations(values))[: draw(st.integers(1, 3))]}
        else:
            entry = {kind: [low, low + draw(st.integers(1, 2))]}
        if kind == "int" and not countable:
            entry["log"] = draw(st.booleans())
        earlier = [key for key in space if "choice" in space[key] or "int" in space[key]]
        when: dict[str, Any] = {}
        for key in draw(st.lists(st.sampled_from(earlier), max_size=2, unique=True)) if earlier else []:
            possible = values_of(space[key])
            when[key] = draw(st.lists(st.sampled_from(possible), min_size=1, max_size=2))
        if draw(st.booleans()):
            when["fixed.key"] = draw(st.sampled_from([[1], [1, 2], [2]]))
        space[f"group.k{number}"] = entry | ({"when": when} if when else {})
    # In the YAML, keys may stand in any order.
    return dict(draw(st.permutations(list(space.items()))))


def values_of(entry: dict[str, Any]) -> list[Any]:
    return list(entry["choice"]) if "choice" in entry else list(range(entry["int"][0], entry["int"][1] + 1))


def holds(raw: dict[str, Any], key: str, assigned: dict[str, Any]) -> bool:
    """Whether a key is drawn, by recursion over what its conditions are about."""
    for other, accepted in raw[key].get("when", {}).items():
        if other == "fixed.key":
            if 1 not in accepted:
                return False
        elif not holds(raw, other, assigned) or assigned[other] not in accepted:
            return False
    return True


def is_inside(value: Any, searched: Range) -> bool:
    if isinstance(searched, Choice):
        return any(type(value) is type(own) and value == own for own in searched.values)
    kind = int if isinstance(searched, Integer) else float
    return type(value) is kind and searched.low <= value <= searched.high


@given(raw_spaces(countable=True))
@settings(max_examples=150, deadline=None)
def test_a_grid_is_every_combination_once(raw: dict[str, Any]) -> None:
    wanted = set()
    for combination in itertools.product(*map(values_of, raw.values())):
        assigned = dict(zip(raw, combination, strict=True))
        wanted.add(frozenset((key, repr(assigned[key])) for key in raw if holds(raw, key, assigned)))
    found = [
        frozenset((f"group.{key}", repr(value)) for key, value in values.get("group", {}).items())
        for values, _ in grid_draws(Space.parse(raw, ["circle"]), BASE)
    ]
    assert len(found) == len(set(found))
    assert set(found) == wanted


@given(st.lists(st.integers(1, 4), min_size=1, max_size=4))
@settings(deadline=None)
def test_a_grid_without_conditions_has_the_size_of_the_product(sizes: list[int]) -> None:
    raw = {f"group.k{n}": {"choice": list(range(size))} for n, size in enumerate(sizes)}
    found = [tuple(drawn.values()) for _, drawn in grid_draws(Space.parse(raw, ["circle"]), BASE)]
    assert found == list(itertools.product(*map(range, sizes)))  # the last key changes fastest


@given(raw_spaces(countable=False), st.integers(0, 2**40), st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_random_draws_are_reproducible_inside_and_conditional(raw: dict[str, Any], seed: int, number: int) -> None:
    space = Space.parse(raw, ["circle"])
    values, drawn = space.settings(RandomChooser(seed, number), BASE)
    assert (values, drawn) == space.settings(RandomChooser(seed, number), BASE)
    group = {f"group.{key}": value for key, value in values.get("group", {}).items()}
    assert set(group) == set(drawn)
    for parameter in space.parameters:
        assert (parameter.key in group) == holds(raw, parameter.key, group | {k: None for k in raw if k not in group})
        if parameter.key in group:
            assert is_inside(group[parameter.key], parameter.range)
    assert values["losses"] == BASE["losses"]
    assert values["fixed"] == BASE["fixed"]


def test_a_draw_follows_from_its_number_and_name_alone() -> None:
    space = Space.parse(MIXED, ["circle"])
    assert random_draws(space, BASE, 8, seed=1)[:3] == random_draws(space, BASE, 3, seed=1)
    assert random_draws(space, BASE, 3, seed=1) != random_draws(space, BASE, 3, seed=2)
    fewer = Space.parse({key: entry for key, entry in MIXED.items() if key != "optim.clip_norm"}, ["circle"])
    for (_, more), (_, less) in zip(random_draws(space, BASE, 8, 1), random_draws(fewer, BASE, 8, 1), strict=True):
        assert more.items() >= less.items()


def test_random_draws_have_the_distribution_that_they_say() -> None:
    choosers = [RandomChooser(5, number) for number in range(2000)]
    for low, high, log in [(-1.0, 3.0, False), (1e-4, 1.0, True)]:
        drawn = np.array([chooser.uniform("x", low, high, log) for chooser in choosers])
        middle = np.sqrt(low * high) if log else (low + high) / 2
        assert abs((drawn < middle).mean() - 0.5) < 0.05
        assert drawn.min() < low + 0.01 * (high - low)
        assert drawn.max() > high - 0.05 * (high - low)
    counts = Counter(chooser.integer("n", 1, 4, False) for chooser in choosers)
    assert set(counts) == {1, 2, 3, 4}
    assert max(counts.values()) < 1.25 * min(counts.values())
    ratios = Counter(chooser.integer("n", 1, 8, True) for chooser in choosers)
    assert set(ratios) == set(range(1, 9))
    for number, count in ratios.items():
        share = np.log((number + 0.5) / (number - 0.5)) / np.log(8.5 / 0.5)
        assert abs(count / 2000 - share) < 4 * np.sqrt(share * (1 - share) / 2000)
    # Two parameters of one draw, and one parameter of two draws, do not follow each other.
    pairs = np.array([(c.uniform("x", 0, 1, False), c.uniform("y", 0, 1, False)) for c in choosers])
    assert abs(np.corrcoef(pairs.T)[0, 1]) < 0.08
    assert abs(np.corrcoef(pairs[:-1, 0], pairs[1:, 0])[0, 1]) < 0.08


def test_a_grid_of_intervals_says_what_to_write() -> None:
    space = Space.parse(MIXED, ["circle"])
    with pytest.raises(LaunchError) as caught:
        list(grid(space, BASE))
    told = str(caught.value)
    assert "optim.backbone_lr: is log_uniform [0.0005, 0.008]; a grid needs its values" in told
    assert "model.embedding_dim: is int [32, 256] log; a grid needs" in told
    assert "losses.scale of proxy_anchor: is log_uniform [8, 128]" in told
    assert "as losses.margin: {choice: [0.05, 0.5]}" in told
    assert "samples_per_class" not in told
    assert "clip_norm" not in told


def test_a_grid_over_losses_has_each_ones_options() -> None:
    raw = yaml.safe_load("""
    losses.name: {choice: [triplet, proxy_anchor, softmax]}
    losses.margin: {choice: [0.1, 0.2, 0.3], when: {losses.name: [triplet, proxy_anchor]}}
    losses.mining: {choice: [all, batch_hard], when: {losses.name: triplet}}
    """)
    drawn = [drawn for _, drawn in grid_draws(Space.parse(raw, ["circle"]), BASE)]
    assert Counter(d["losses.name"] for d in drawn) == {"triplet": 6, "proxy_anchor": 3, "softmax": 1}


def objective(values: dict[str, Any]) -> float:
    """Best for triplets, at a learning rate of 2e-3."""
    return float(values["losses"]["name"] == "triplet") - abs(np.log(values["optim"]["backbone_lr"] / 2e-3))


def test_an_optuna_study_keeps_one_range_for_a_name_and_learns() -> None:
    space = Space.parse(MIXED, ["circle"])
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    seen: dict[str, set[str]] = {}
    for _ in range(60):
        trial = study.ask()
        values, drawn = space.settings(OptunaChooser(trial), BASE)
        for parameter in space.parameters:
            if parameter.key in drawn and not isinstance(parameter.range, Choice):
                assert isinstance(drawn[parameter.key], int | float)
        for name, distribution in trial.distributions.items():
            seen.setdefault(name, set()).add(repr(distribution))
        assert values["evaluation"]["ks"] in ([1, 2], [1, 10])
        assert len(trial.params) == len(drawn)
        study.tell(trial, objective(values))
    assert all(len(distributions) == 1 for distributions in seen.values())
    assert {"triplet.margin", "proxy_anchor.margin", "soft_triple.margin", "soft_triple.centers_per_class"} <= set(seen)
    assert "losses.margin" not in seen
    names = [trial.params["losses.name"] for trial in study.trials]
    assert names[-20:].count("triplet") > 10


@given(raw_spaces(countable=False))
@settings(max_examples=60, deadline=None)
def test_optuna_draws_are_inside_and_conditional(raw: dict[str, Any]) -> None:
    space = Space.parse(raw, ["circle"])
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(3):
        values, _ = space.settings(OptunaChooser(study.ask()), BASE)
        group = {f"group.{key}": value for key, value in values.get("group", {}).items()}
        for parameter in space.parameters:
            assert (parameter.key in group) == holds(raw, parameter.key, dict.fromkeys(raw) | group)
            assert parameter.key not in group or is_inside(group[parameter.key], parameter.range)


def test_rays_searcher_hands_out_whole_configs_and_survives_a_restart(tmp_path: Path) -> None:
    function = optuna_space(Space.parse(MIXED, ["circle"]), BASE)

    def searcher() -> OptunaSearch:
        return OptunaSearch(function, metric="recall", mode="max", sampler=optuna.samplers.TPESampler(seed=0))

    search = searcher()
    for number in range(8):
        config = search.suggest(str(number))
        assert config is not None
        drawn, values = config["drawn"], config["values"]
        loss = values["losses"]["name"]
        assert loss == drawn["losses.name"] == config["losses.name"]
        assert values["losses"]["weight"] == 2.0
        assert drawn["losses.margin"] == config[f"{loss}.margin"] == values["losses"]["margin"]
        # Optuna stores the place of a list among its choices.
        assert values["evaluation"]["ks"] == [[1, 2], [1, 10]][config["evaluation.ks"]]
        assert search.suggest(str(number)) == config
        search.on_trial_complete(str(number), {"recall": objective(values), "training_iteration": 1})
    search.save(str(tmp_path / "search"))
    other = searcher()
    other.restore(str(tmp_path / "search"))
    following, restored = search.suggest("next"), other.suggest("next")
    assert following == restored
    assert pickle.loads(pickle.dumps(function)) == function


def test_a_condition_on_an_unknown_key_is_refused_before_the_search() -> None:
    space = Space.parse({"a.b": {"choice": [1], "when": {"fixed.kye": 1}}}, ["circle"])
    with pytest.raises(
        LaunchError, match=r"fixed\.kye is neither searched nor in the base config; did you mean 'fixed\.key'"
    ):
        optuna_space(space, BASE)


def test_ranges_are_what_they_are_called() -> None:
    """A guard for the strategies above: all four kinds are reached."""
    space = Space.parse({f"g.{k}": {k: [1, 2]} for k in ("uniform", "log_uniform", "int", "choice")}, ["circle"])
    assert [p.range for p in space.parameters] == [Uniform(1, 2), LogUniform(1, 2), Integer(1, 2), Choice([1, 2])]

"""A sweep's `space:`: what it draws in which order, and what a trial's config becomes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import yaml

from dmlscale.config.load import check_config
from dmlscale.losses import LOSSES
from dmlscale.tuning.draw import random_draws
from dmlscale.tuning.space import Space

BASE: dict[str, Any] = {
    "data": {"path": "data/none", "classes_per_batch": 32, "samples_per_class": 4},
    "model": {"backbone": "resnet18"},
    "losses": {"name": "circle", "margin": 0.3, "weight": 2.0, "bank_lr": "1e-3"},
    "train": {"steps": 10},
}
EXAMPLE = """
losses.name: {choice: [triplet, proxy_anchor, multi_similarity]}
losses: default
losses.margin: {uniform: [0.05, 0.5], when: {losses.name: [triplet]}}
optim.backbone_lr: {log_uniform: [5e-4, 8e-3]}
data.samples_per_class: {choice: [2, 4, 8]}
model.embedding_dim: {int: [32, 256], log: true}
"""


class Told:
    """Chooses what it is told by name, else the first of a range; remembers who asked."""

    def __init__(self, **told: Any) -> None:
        self.told = told
        self.asked: list[str] = []

    def choice(self, name: str, values: Sequence[Any]) -> Any:
        self.asked.append(name)
        value = self.told.get(name.replace(".", "_"), values[0])
        assert value in values
        return value

    def uniform(self, name: str, low: float, high: float, log: bool) -> float:
        self.asked.append(name)
        return low

    def integer(self, name: str, low: int, high: int, log: bool) -> int:
        self.asked.append(name)
        return low


def parsed(text: str, *losses: str) -> Space:
    return Space.parse(yaml.safe_load(text), list(losses or ("circle",)))


def test_the_example_draws_the_loss_then_its_own_options_then_no_others() -> None:
    chooser = Told(losses_name="triplet", triplet_mining="all")
    values, drawn = parsed(EXAMPLE).settings(chooser, BASE)
    assert chooser.asked[0] == "losses.name"
    assert chooser.asked[1:4] == ["optim.backbone_lr", "data.samples_per_class", "model.embedding_dim"]
    assert set(chooser.asked[4:]) == {"triplet.margin", "triplet.mining", "triplet.average"}
    assert drawn == {
        "losses.name": "triplet",
        "optim.backbone_lr": 5e-4,
        "data.samples_per_class": 2,
        "model.embedding_dim": 32,
        "losses.margin": 0.05,
        "losses.mining": "all",
        "losses.average": "all",
    }
    # Circle's margin is gone, and the rate of a bank that triplets have not; the weight stays.
    options = {"margin": 0.05, "mining": "all", "average": "all"}
    assert values["losses"] == {"name": "triplet", "weight": 2.0, **options}
    config = check_config(values, "drawn")
    assert (config.model.embedding_dim, config.optim.backbone_lr) == (32, 5e-4)
    assert BASE["losses"]["name"] == "circle"
    assert "embedding_dim" not in BASE["model"]


def test_a_default_range_is_drawn_where_no_own_one_is() -> None:
    chooser = Told(losses_name="proxy_anchor")
    _, drawn = parsed(EXAMPLE).settings(chooser, BASE)
    space: Any = LOSSES["proxy_anchor"].search_space
    assert (drawn["losses.margin"], drawn["losses.scale"]) == (space["margin"].low, space["scale"].low)
    assert "losses.mining" not in drawn


def test_the_base_losss_options_stay_where_it_is_drawn_itself() -> None:
    space = parsed(
        "losses.name: {choice: [circle, triplet]}\nlosses.scale: {choice: [9.0], when: {losses.name: circle}}"
    )
    values, _ = space.settings(Told(), BASE)
    assert values["losses"] == BASE["losses"] | {"scale": 9.0}


@pytest.mark.parametrize("form", [dict, lambda entry: [entry], lambda entry: (entry,)])
def test_a_base_config_may_be_written_or_dumped(form: Any) -> None:
    nested = {"name": "circle", "options": {"margin": 0.3, "scale": 80.0}, "weight": 2.0}
    values, _ = parsed("losses.margin: {choice: [0.7]}").settings(Told(), BASE | {"losses": form(nested)})
    (term,) = check_config(values, "drawn").losses
    assert (term.options, term.weight) == ({"margin": 0.7, "scale": 80.0}, 2.0)
    values, _ = parsed("losses.name: {choice: [softmax]}").settings(Told(), BASE | {"losses": form(nested)})
    assert check_config(values, "drawn").losses[0].options == {}


def test_the_default_space_of_the_base_configs_loss() -> None:
    space = parsed("losses: default\nlosses.0.scale: {choice: [1, 2]}", "proxy_anchor")
    chooser = Told()
    values, drawn = space.settings(chooser, BASE | {"losses": {"name": "proxy_anchor"}})
    assert sorted(chooser.asked) == ["losses.margin", "losses.scale"]
    assert drawn == {"losses.scale": 1, "losses.margin": 0.025}
    assert values["losses"] == {"name": "proxy_anchor", "scale": 1, "margin": 0.025}


def test_one_of_several_losses_is_named_by_its_number() -> None:
    losses = [{"name": "softmax"}, {"name": "center", "weight": 0.003}]
    space = parsed("losses.1.weight: {log_uniform: [1e-4, 1e-1]}\nlosses.1.alpha: {choice: [0.9]}", "softmax", "center")
    values, drawn = space.settings(Told(), BASE | {"losses": losses})
    assert drawn == {"losses.1.alpha": 0.9, "losses.1.weight": 1e-4}
    assert values["losses"] == [{"name": "softmax"}, {"name": "center", "weight": 1e-4, "alpha": 0.9}]
    check_config(values, "drawn")


def test_an_own_range_under_a_condition_leaves_the_default_elsewhere_with_a_name_of_its_own() -> None:
    text = "losses: default\nlosses.margin: {choice: [0.9], when: {data.samples_per_class: 8}}\n"
    space = parsed(text + "data.samples_per_class: {choice: [2, 8]}", "proxy_anchor")
    base = BASE | {"losses": {"name": "proxy_anchor"}}
    many, few = Told(data_samples_per_class=8), Told(data_samples_per_class=2)
    assert space.settings(many, base)[1]["losses.margin"] == 0.9
    assert space.settings(few, base)[1]["losses.margin"] == 0.025
    assert "losses.margin" in many.asked
    assert "losses.margin.default" in few.asked


def test_conditions_see_fixed_values_defaults_of_losses_and_chains() -> None:
    text = """
    optim.momentum: {choice: [0.5], when: {optim.name: sgd}}
    losses.margin: {choice: [0.7], when: {losses.mining: [semi_hard, all], data.samples_per_class: 4}}
    data.sampling: {choice: [classes, hierarchical]}
    data.super_classes_per_batch: {choice: [2, 4], when: {data.sampling: hierarchical}}
    data.window_shards: {choice: [1], when: {data.super_classes_per_batch: 4}}
    optim.eps: {choice: [1e-3], when: {optim.weight_decay: 1e-4}}
    """
    base = BASE | {"losses": {"name": "triplet"}, "optim": {"name": "sgd", "weight_decay": "1e-4"}}
    space = parsed(text, "triplet")
    _, drawn = space.settings(Told(), base)
    assert drawn == {"data.sampling": "classes", "losses.margin": 0.7, "optim.momentum": 0.5, "optim.eps": 1e-3}
    told = Told(data_sampling="hierarchical", data_super_classes_per_batch=4)
    assert space.settings(told, base)[1]["data.window_shards"] == 1
    _, drawn = space.settings(Told(), base | {"losses": {"name": "triplet", "mining": "batch_hard"}})
    assert "losses.margin" not in drawn


def test_values_of_any_kind_numbers_that_yaml_reads_as_text_and_missing_groups() -> None:
    text = """
    data.transform: {choice: [{name: papers_train, size: 64}]}
    evaluation.ks: {choice: [[1, 10]]}
    optim.eps: {choice: [1e-4]}
    data.source.test_fraction: {choice: ['10']}
    optim.clip_norm: {choice: [null, 1.0]}
    """
    space = parsed(text)
    values, drawn = space.settings(Told(), BASE)
    assert values["data"]["transform"] == {"name": "papers_train", "size": 64}
    assert values["evaluation"] == {"ks": [1, 10]}
    assert values["data"]["source"] == {"test_fraction": "10"}
    assert (drawn["optim.eps"], drawn["optim.clip_norm"]) == (1e-4, None)
    assert drawn["data.transform"] == '{"name": "papers_train", "size": 64}'
    values["evaluation"]["ks"].append(99)  # a trial's own: the space keeps its values
    assert space.settings(Told(), BASE)[0]["evaluation"]["ks"] == [1, 10]


def test_every_draw_of_every_loss_is_a_config() -> None:
    names = f"losses.name: {{choice: [{', '.join(LOSSES)}]}}"
    text = f"losses: default\n{names}\nlosses.bank_lr: {{log_uniform: [1e-3, 1e-1]}}"
    drawn_names = set()
    for values, drawn in random_draws(parsed(text), BASE, 60, seed=3):
        (term,) = check_config(values, "drawn").losses
        drawn_names.add(term.name)
        assert {k: term.options[k] for k in LOSSES[term.name].search_space} == {
            key.removeprefix("losses."): value
            for key, value in drawn.items()
            if key not in ("losses.name", "losses.bank_lr")
        }
    assert len(drawn_names) > 12

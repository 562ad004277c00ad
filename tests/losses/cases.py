"""Which losses the contract test runs, with which hyper-parameters and oracles.

A new loss brings its cases in its own test file: `CASES = [Case(...)]` in tests/losses/test_<name>.py. A registered
loss without a case, here or there, fails the contract test.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from dmlscale.losses import LOSSES
from dmlscale.losses.draws import Chance
from tests.losses import oracles

# GlobalLoss's seed in the contract test: random miners draw from it.
SEED = 5


@dataclass(frozen=True)
class Case:
    """One loss with some hyper-parameters and the slow loops that define it."""

    loss: str
    oracle: Callable[..., Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    own_names: dict[str, Any] | None = None  # the oracle's options, where they differ
    alone: bool = False  # a batch without positives or without negatives has a loss all the same
    ordered: bool = False  # which samples play which role follows their order in the batch

    def __str__(self) -> str:
        return "-".join([self.loss, *(f"{k}={v}" for k, v in self.options.items())])

    @property
    def drawn(self) -> bool:
        """Whether it draws random numbers."""
        return "chance" in self.oracle_options

    @property
    def oracle_options(self) -> dict[str, Any]:
        return self.options if self.own_names is None else self.own_names


def center_alpha(x: Tensor, y: Tensor, centers: Tensor, repulsion: float = 0.0) -> Tensor:
    """Centers that move by their own rule get a gradient from the repulsion alone."""
    whole = oracles.center(x, y, centers.detach())
    if not repulsion:
        return whole
    return whole + oracles.center(x.detach(), y, centers, repulsion=repulsion) - oracles.center(x.detach(), y, centers)


DRAWN = {"chance": Chance(SEED, 0)}

PAIRS = [
    Case("contrastive", oracles.contrastive, alone=True),
    Case("contrastive", oracles.contrastive, {"squared": False, "normalize": True, "average": "all"}, alone=True),
    Case("contrastive", oracles.contrastive, {"positive_margin": 0.5, "average": "pairs"}, alone=True),
    Case("lifted_structure", oracles.lifted_structure),
    Case("lifted_structure", oracles.lifted_structure, {"normalize": True, "margin": 0.5}),
    Case("lifted_structure", oracles.lifted_structure, {"form": "hard"}),
    Case("lifted_structure", oracles.lifted_structure, {"form": "per_anchor"}),
    Case("n_pairs", oracles.n_pairs, alone=True, ordered=True),
    Case("multi_similarity", oracles.multi_similarity),
    Case("multi_similarity", oracles.multi_similarity, {"miner_margin": None, "negative_scale": 40.0}, alone=True),
    Case("circle", oracles.circle),
    Case("circle", oracles.circle, {"margin": 0.25, "scale": 256.0}),  # beyond the range of a constant shift
    Case("supervised_contrastive", oracles.supervised_contrastive, alone=True),
    Case("supervised_contrastive", oracles.supervised_contrastive, {"base_temperature": 0.1}, alone=True),
    Case("clustering", oracles.clustering),
    Case("clustering", oracles.clustering, {"margin": 3.0, "refinements": 0}),
]
TRIPLETS = [
    Case("triplet", oracles.triplet),
    Case("triplet", oracles.triplet, {"normalize": False, "squared": False, "average": "active"}),
    Case("triplet", oracles.triplet, {"soft_margin": True}),
    Case("triplet", oracles.triplet, {"mining": "batch_hard"}),
    Case("triplet", oracles.triplet, {"mining": "batch_hard", "soft_margin": True}),
    Case("triplet", oracles.triplet, {"mining": "batch_hard", "normalize": True, "squared": True, "average": "active"}),
    Case("triplet", oracles.triplet, {"mining": "all"}),
    Case("triplet", oracles.triplet, {"mining": "all", "normalize": False, "squared": False, "average": "active"}),
    Case("triplet", oracles.triplet, {"mining": "all", "soft_margin": True}),
    Case("triplet", oracles.triplet, {"mining": "all_semi_hard"}),
    Case("triplet", oracles.triplet, {"mining": "all_semi_hard", "soft_margin": True, "squared": False}),
    Case("triplet", oracles.triplet, {"mining": "all_positives_hardest_negative"}),
    Case("triplet", oracles.triplet, {"mining": "all_positives_hardest_negative", "average": "active"}),
    Case("triplet", oracles.triplet_random, {"mining": "random"}, DRAWN, ordered=True),
    Case(
        "triplet",
        oracles.triplet_distance_weighted,
        {"mining": "distance_weighted", "squared": False},
        DRAWN | {"squared": False},
        ordered=True,
    ),
]
CLASSES = [
    Case("softmax", oracles.softmax),
    Case("norm_softmax", oracles.norm_softmax),
    Case("norm_softmax", oracles.norm_softmax, {"scale": 200.0}),  # beyond the range of a constant shift
    Case("cosface", oracles.cosface),
    Case("am_softmax", oracles.am_softmax),
    Case("arcface", oracles.arcface),
    Case("arcface", oracles.arcface, {"margin": 1.5, "scale": 8.0}),  # some angles pass pi
    Case("proxy_nca", oracles.proxy_nca),
    Case("proxy_nca", oracles.proxy_nca, {"form": "plus_plus"}),
    Case("proxy_anchor", oracles.proxy_anchor),
    Case("proxy_anchor", oracles.proxy_anchor, {"margin": 0.3, "scale": 8.0}),
    Case("circle_proxy", oracles.circle_proxy),
    Case("soft_triple", oracles.soft_triple, {"centers_per_class": 3}, {}),
    Case("soft_triple", oracles.soft_triple, {"centers_per_class": 1}, {}),
    Case("center", center_alpha),
    Case("center", center_alpha, {"repulsion": 0.5}),
    Case(
        "center",
        oracles.center,
        {"update": "gradient", "average": "sum", "repulsion": 0.3},
        {"average": "sum", "repulsion": 0.3},
    ),
    Case("triplet_center", oracles.triplet_center),
    Case("triplet_center", oracles.triplet_center, {"margin": 1.0, "average": "sum"}),
]


def all_cases() -> list[Case]:
    """The cases of this file and those of the losses' own test files."""
    found = [*PAIRS, *TRIPLETS, *CLASSES]
    for name in LOSSES:
        module = f"tests.losses.test_{name}"
        if importlib.util.find_spec(module):
            found += getattr(importlib.import_module(module), "CASES", [])
    return found

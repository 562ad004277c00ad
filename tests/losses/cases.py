"""Which losses the contract test runs, with which hyper-parameters and oracles.

A registered loss without a case here fails the contract test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tests.losses import oracles


@dataclass(frozen=True)
class Case:
    """One loss with some hyper-parameters and the slow loops that define it."""

    loss: str
    oracle: Callable[..., Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    oracle_options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return "-".join([self.loss, *(f"{k}={v}" for k, v in self.options.items())])


CASES = [
    Case("proxy_anchor", oracles.proxy_anchor),
    Case("proxy_anchor", oracles.proxy_anchor, *2 * [{"margin": 0.3, "scale": 8.0}]),
    Case("norm_softmax", oracles.norm_softmax),
    Case("norm_softmax", oracles.norm_softmax, *2 * [{"scale": 200.0}]),  # beyond the range of a constant shift
    Case("soft_triple", oracles.soft_triple, {"centers_per_class": 3}),
    Case("soft_triple", oracles.soft_triple, {"centers_per_class": 1}),
    Case("lifted_structure", oracles.lifted_structure),
    Case("lifted_structure", oracles.lifted_structure, *2 * [{"normalize": True, "margin": 0.5}]),
    Case("triplet", oracles.triplet_semi_hard),
    Case("triplet", oracles.triplet_semi_hard, *2 * [{"normalize": False, "squared": False}]),
    Case("triplet", oracles.triplet_batch_hard, {"mining": "batch_hard"}),
    Case(
        "triplet",
        oracles.triplet_batch_hard,
        {"mining": "batch_hard", "normalize": True, "squared": True, "margin": 0.1},
        {"normalize": True, "squared": True, "margin": 0.1},
    ),
]

"""Triplets with one drawn negative per positive pair: f(x (B, d), y (B,), **options) -> ()."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dmlscale.losses.draws import Chance
from tests.losses.oracles.measures import average_of, distance, negatives, positives, squared_distance, unit


def triplet_distance_weighted(
    x: Tensor, y: Tensor, margin: float = 0.2, squared: bool = True, chance: Chance | None = None
) -> Tensor:
    """Wu et al. 2017, section 4.1: weights 1/q(D), q(D) ~ D^(d-2) (1 - D^2/4)^((d-3)/2), cut off at 0.5 and 1.4."""
    dim, u = x.shape[1], unit(x)

    def weigh(i: int, j: int) -> float:
        true = distance(u[i], u[j]).item()
        d = max(true, 0.5)
        log_q = (dim - 2) * math.log(d) + (dim - 3) / 2 * math.log(1 - d * d / 4)
        return 0.0 if true > 1.4 else math.exp(-log_q)

    return _drawn(x, y, margin, squared, chance or Chance(), weigh)


def triplet_random(
    x: Tensor, y: Tensor, margin: float = 0.2, squared: bool = True, chance: Chance | None = None
) -> Tensor:
    """One negative for every positive pair, each as likely as the others."""
    return _drawn(x, y, margin, squared, chance or Chance(), lambda i, j: 1.0)


def _drawn(x: Tensor, y: Tensor, margin: float, squared: bool, chance: Chance, weigh: object) -> Tensor:
    """Negatives stand in the order of (label, place); the draw of (anchor, positive) points into their weights."""
    u = unit(x)
    measure = squared_distance if squared else distance
    terms = []
    for a in range(len(x)):
        others = sorted(negatives(y, a), key=lambda n: (int(y[n]), n))
        weights = [weigh(a, n) for n in others]  # type: ignore[operator]
        if sum(weights) == 0:
            weights = [1.0] * len(others)
        for p in positives(y, a):
            if not others:
                continue
            draw = float(chance.uniform(torch.tensor(a), torch.tensor(p)))
            heap, n = 0.0, others[-1]
            for candidate, weight in zip(others, weights, strict=True):
                heap += weight / sum(weights)
                if heap > draw:
                    n = candidate
                    break
            terms.append((measure(u[a], u[p]) - measure(u[a], u[n]) + margin).relu())
    return average_of(terms, x)

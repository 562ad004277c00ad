"""Losses over samples and class centers in plain space: f(x (B, d), y (B,), centers (C, K, d), **options) -> ()."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.losses.oracles.measures import average_of, squared_distance


def center(
    x: Tensor,
    y: Tensor,
    centers: Tensor,
    average: str = "mean",
    repulsion: float = 0.0,
    repulsion_margin: float = 5.0,
) -> Tensor:
    """Wen et al. 2016, eq. 2; the paper sums, its code averages. The repulsion of the present classes is our own."""
    c = centers[:, 0]
    loss = _reduced([squared_distance(x[i], c[int(y[i])]) / 2 for i in range(len(x))], x, average)
    if repulsion:
        apart = []
        for k in sorted(set(y.tolist())):
            others = [squared_distance(c[k], c[j]) / 2 for j in range(len(c)) if j != k]
            apart.append((repulsion_margin - min(others)).relu() if others else x.sum() * 0)
        loss = loss + repulsion * average_of(apart, x)
    return loss


def center_alpha_step(x: Tensor, y: Tensor, centers: Tensor, alpha: float = 0.5) -> Tensor:
    """Wen et al. 2016, eq. 4: the centers after one step with rate alpha."""
    moved = centers.detach().clone()
    for j in range(len(centers)):
        members = [i for i in range(len(x)) if y[i] == j]
        for i in members:
            moved[j, 0] -= alpha * (centers[j, 0] - x[i]).detach() / (1 + len(members))
    return moved


def triplet_center(x: Tensor, y: Tensor, centers: Tensor, margin: float = 5.0, average: str = "mean") -> Tensor:
    """He et al. 2018, with half the squared distance; a sample without another class counts as 0."""
    c = centers[:, 0]
    terms = []
    for i in range(len(x)):
        own = squared_distance(x[i], c[int(y[i])]) / 2
        others = [squared_distance(x[i], c[j]) / 2 for j in range(len(c)) if j != y[i]]
        terms.append((own + margin - min(others)).relu() if others else x.sum() * 0)
    return _reduced(terms, x, average)


def _reduced(terms: list[Tensor], like: Tensor, average: str) -> Tensor:
    if average == "sum" and terms:
        return torch.stack(terms).sum()
    return average_of(terms, like)

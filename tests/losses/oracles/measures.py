"""What the formulas share: lengths, distances, averages, who is a positive and who a negative."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Oracle = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum().sqrt()


def squared_distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum()


def average_of(terms: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(terms).sum() / len(terms) if terms else like.sum() * 0


def log_sum_exp(terms: list[Tensor]) -> Tensor:
    return torch.logsumexp(torch.stack(terms), 0)


def softplus(u: Tensor) -> Tensor:
    """log(1 + exp(u)), also where torch's own turns into u."""
    return torch.logaddexp(u, torch.zeros_like(u))


def positives(y: Tensor, i: int) -> list[int]:
    return [j for j in range(len(y)) if j != i and y[j] == y[i]]


def negatives(y: Tensor, i: int) -> list[int]:
    return [j for j in range(len(y)) if y[j] != y[i]]

"""Pair losses with a cross-batch memory: f(x (B, d), y (B,), past (m, d), past_y (m,), **options) -> ().

Rows are the samples of the batch, columns the same samples and those of the past; every entry of that B x (B + m) table
counts once, a sample with itself never. The past is taken as it was stored and gets no gradient.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.losses.oracles.measures import average_of, distance, log_sum_exp, softplus, squared_distance, unit

Anchor = tuple[Tensor, list[Tensor], list[Tensor]]


def anchors(x: Tensor, y: Tensor, past: Tensor, past_y: Tensor) -> Iterator[Anchor]:
    """Every row with its positive and its negative columns."""
    columns = [*zip(x, y.tolist(), strict=True), *zip(past.detach(), past_y.tolist(), strict=True)]
    for i, label in enumerate(y.tolist()):
        others = [column for n, column in enumerate(columns) if n != i]
        yield x[i], [c for c, of in others if of == label], [c for c, of in others if of != label]


def contrastive(x: Tensor, y: Tensor, past: Tensor, past_y: Tensor, average: str = "active") -> Tensor:
    """Hadsell et al. 2006, eq. 4, with margin 1."""
    pull: list[Tensor] = []
    push: list[Tensor] = []
    for a, alike, other in anchors(x, y, past, past_y):
        pull += [distance(a, p).square() / 2 for p in alike]
        push += [(1 - distance(a, n)).relu().square() / 2 for n in other]
    if average == "pairs":
        return average_of(pull + push, x)
    if average == "active":
        pull, push = [term for term in pull if term > 0], [term for term in push if term > 0]
    return average_of(pull, x) + average_of(push, x)


def batch_hard(x: Tensor, y: Tensor, past: Tensor, past_y: Tensor, margin: float = 0.2) -> Tensor:
    """Hermans et al. 2017, eq. 5."""
    terms = []
    for a, alike, other in anchors(x, y, past, past_y):
        if alike and other:
            farthest = torch.stack([distance(a, p) for p in alike]).max()
            nearest = torch.stack([distance(a, n) for n in other]).min()
            terms.append((farthest - nearest + margin).relu())
    return average_of(terms, x)


def hardest_negative(
    x: Tensor, y: Tensor, past: Tensor, past_y: Tensor, margin: float = 0.2, average: str = "all"
) -> Tensor:
    """Every positive pair with the anchor's nearest negative; squared distances on the sphere."""
    terms = []
    for a, alike, other in anchors(unit(x), y, past, past_y):
        if other:
            nearest = torch.stack([squared_distance(a, n) for n in other]).min()
            terms += [(squared_distance(a, p) - nearest + margin).relu() for p in alike]
    return average_of([term for term in terms if term > 0] if average == "active" else terms, x)


def multi_similarity(x: Tensor, y: Tensor, past: Tensor, past_y: Tensor, miner_margin: float | None = 0.1) -> Tensor:
    """Wang et al. 2019, eq. 10, 11 and 15, with scales 2 and 50 and base 0.5."""
    terms = []
    for a, positives, negatives in anchors(unit(x), y, past, past_y):
        alike, other = [a @ p for p in positives], [a @ n for n in negatives]
        if miner_margin is not None:
            if not alike or not other:
                terms.append(x.sum() * 0)
                continue
            hardest, farthest = max(other), min(alike)
            alike = [s for s in alike if s < hardest + miner_margin]
            other = [s for s in other if s > farthest - miner_margin]
        zero = x.sum() * 0  # the 1 of log(1 + ...)
        pull = log_sum_exp([zero, *(-2 * (s - 0.5) for s in alike)]) / 2
        push = log_sum_exp([zero, *(50 * (s - 0.5) for s in other)]) / 50
        terms.append(pull + push)
    return average_of(terms, x)


def circle(x: Tensor, y: Tensor, past: Tensor, past_y: Tensor, margin: float = 0.4, scale: float = 80.0) -> Tensor:
    """Sun et al. 2020, eq. 6."""
    terms = []
    for a, positives, negatives in anchors(unit(x), y, past, past_y):
        alike, other = [a @ p for p in positives], [a @ n for n in negatives]
        pull = [-scale * (1 + margin - s).relu().detach() * (s - (1 - margin)) for s in alike]
        push = [scale * (s + margin).relu().detach() * (s - margin) for s in other]
        if pull and push:
            terms.append(softplus(log_sum_exp(pull) + log_sum_exp(push)))
    return average_of(terms, x)


def supervised_contrastive(x: Tensor, y: Tensor, past: Tensor, past_y: Tensor, temperature: float = 0.07) -> Tensor:
    """Khosla et al. 2020, eq. 2."""
    terms = []
    for a, positives, negatives in anchors(unit(x), y, past, past_y):
        alike, other = [a @ p / temperature for p in positives], [a @ n / temperature for n in negatives]
        if alike:
            terms.append(log_sum_exp(alike + other) - torch.stack(alike).mean())
    return average_of(terms, x)


def lifted_per_anchor(x: Tensor, y: Tensor, past: Tensor, past_y: Tensor) -> Tensor:
    """Hermans et al. 2017, eq. 6, with margin 1."""
    terms = []
    for a, positives, negatives in anchors(x, y, past, past_y):
        if positives and negatives:
            far = log_sum_exp([distance(a, p) for p in positives])
            near = log_sum_exp([1 - distance(a, n) for n in negatives])
            terms.append((far + near).relu())
    return average_of(terms, x)

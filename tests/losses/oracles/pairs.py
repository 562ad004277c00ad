"""Losses over pairs of samples: f(x (B, d), y (B,), **options) -> ()."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.losses.oracles.measures import average_of, distance, log_sum_exp, negatives, positives, softplus, unit


def contrastive(
    x: Tensor,
    y: Tensor,
    margin: float = 1.0,
    positive_margin: float = 0.0,
    squared: bool = True,
    average: str = "active",
    normalize: bool = False,
) -> Tensor:
    """Hadsell et al. 2006, eq. 4; un-squared terms and averages over active pairs as in Musgrave et al. 2020."""
    x = unit(x) if normalize else x
    pull: list[Tensor] = []
    push: list[Tensor] = []
    for i in range(len(x)):
        for j in range(i + 1, len(x)):
            d = distance(x[i], x[j])
            u = (d - positive_margin if y[i] == y[j] else margin - d).relu()
            (pull if y[i] == y[j] else push).append(u.square() / 2 if squared else u)
    if average == "pairs":
        return average_of(pull + push, x)
    if average == "active":
        pull, push = [term for term in pull if term > 0], [term for term in push if term > 0]
    return average_of(pull, x) + average_of(push, x)


def lifted_structure(
    x: Tensor, y: Tensor, margin: float = 1.0, normalize: bool = False, form: str = "smooth"
) -> Tensor:
    """Song et al. 2016, eq. 4 (smooth) and eq. 3 (hard); Hermans et al. 2017, the generalised L_G (per_anchor)."""
    x = unit(x) if normalize else x
    if form == "per_anchor":
        return _lifted_per_anchor(x, y, margin)
    terms = []
    for i in range(len(x)):
        for j in range(i + 1, len(x)):
            if y[i] != y[j]:
                continue
            near = [margin - distance(x[i], x[k]) for k in negatives(y, i)]
            near += [margin - distance(x[j], x[k]) for k in negatives(y, j)]
            if near:
                violation = (max(near) if form == "hard" else log_sum_exp(near)) + distance(x[i], x[j])
                terms.append(violation.relu().square() / 2)
            else:
                terms.append(x.sum() * 0)
    return average_of(terms, x)


def _lifted_per_anchor(x: Tensor, y: Tensor, margin: float) -> Tensor:
    terms = []
    for a in range(len(x)):
        far = [distance(x[a], x[p]) for p in positives(y, a)]
        near = [margin - distance(x[a], x[n]) for n in negatives(y, a)]
        if far and near:
            terms.append((log_sum_exp(far) + log_sum_exp(near)).relu())
    return average_of(terms, x)


def n_pairs(x: Tensor, y: Tensor, l2_weight: float = 0.002) -> Tensor:
    """Sohn 2016, N-pair loss; a class's pair is its first two samples in the batch; the l2 term as in TensorFlow."""
    pairs = []
    for c in sorted(set(y.tolist())):
        members = [i for i in range(len(x)) if y[i] == c]
        if len(members) >= 2:
            pairs.append((x[members[0]], x[members[1]]))
    terms = []
    for i, (anchor, positive) in enumerate(pairs):
        logits = [anchor @ other for _, other in pairs]
        terms.append(log_sum_exp(logits) - logits[i])
        terms[-1] = terms[-1] + l2_weight / 4 * (anchor.square().sum() + positive.square().sum())
    return average_of(terms, x)


def multi_similarity(
    x: Tensor,
    y: Tensor,
    positive_scale: float = 2.0,
    negative_scale: float = 50.0,
    base: float = 0.5,
    miner_margin: float | None = 0.1,
) -> Tensor:
    """Wang et al. 2019, eq. 15, with the mining of eq. 10 and 11; an anchor without a kept pair counts as 0."""
    x = unit(x)
    terms = []
    for a in range(len(x)):
        alike = [x[a] @ x[p] for p in positives(y, a)]
        other = [x[a] @ x[n] for n in negatives(y, a)]
        if miner_margin is not None:
            if not alike or not other:
                terms.append(x.sum() * 0)
                continue
            hardest, farthest = max(other), min(alike)
            alike = [s for s in alike if s < hardest + miner_margin]
            other = [s for s in other if s > farthest - miner_margin]
            if not alike or not other:
                terms.append(x.sum() * 0)
                continue
        zero = x.sum() * 0  # the 1 of log(1 + ...)
        pull = log_sum_exp([zero] + [-positive_scale * (s - base) for s in alike]) / positive_scale
        push = log_sum_exp([zero] + [negative_scale * (s - base) for s in other]) / negative_scale
        terms.append(pull + push)
    return average_of(terms, x)


def circle(x: Tensor, y: Tensor, margin: float = 0.4, scale: float = 80.0) -> Tensor:
    """Sun et al. 2020, eq. 6, for every anchor that has a positive and a negative; weights are constants."""
    x = unit(x)
    terms = []
    for a in range(len(x)):
        pull, push = [], []
        for p in positives(y, a):
            s = x[a] @ x[p]
            pull.append(-scale * (1 + margin - s).relu().detach() * (s - (1 - margin)))
        for n in negatives(y, a):
            s = x[a] @ x[n]
            push.append(scale * (s + margin).relu().detach() * (s - margin))
        if pull and push:
            terms.append(softplus(log_sum_exp(pull) + log_sum_exp(push)))
    return average_of(terms, x)


def supervised_contrastive(
    x: Tensor, y: Tensor, temperature: float = 0.07, base_temperature: float | None = None
) -> Tensor:
    """Khosla et al. 2020, eq. 2 (L_out), over the anchors with a positive; the factor of the authors' code if given."""
    x = unit(x)
    terms = []
    for a in range(len(x)):
        everyone_else = log_sum_exp([x[a] @ x[k] / temperature for k in range(len(x)) if k != a]) if len(x) > 1 else 0
        likelihoods = [x[a] @ x[p] / temperature - everyone_else for p in positives(y, a)]
        if likelihoods:
            terms.append(-torch.stack(likelihoods).sum() / len(likelihoods))
    factor = 1.0 if base_temperature is None else temperature / base_temperature
    return factor * average_of(terms, x)

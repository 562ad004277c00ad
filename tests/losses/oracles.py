"""The papers' formulas as slow, obvious loops over samples, pairs and classes. No tile, no mask, no rank."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Oracle = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum().sqrt()


def _average(terms: list[Tensor], like: Tensor) -> Tensor:
    return torch.stack(terms).sum() / len(terms) if terms else like.sum() * 0


def proxy_anchor(x: Tensor, y: Tensor, proxies: Tensor, margin: float = 0.1, scale: float = 32.0) -> Tensor:
    """Kim et al. 2020, eq. 4."""
    x, p = _unit(x), _unit(proxies[:, 0])
    pull, push = [], []
    for c in range(len(p)):
        positive = [torch.exp(-scale * (x[i] @ p[c] - margin)) for i in range(len(x)) if y[i] == c]
        negative = [torch.exp(scale * (x[i] @ p[c] + margin)) for i in range(len(x)) if y[i] != c]
        if positive:
            pull.append(torch.log(1 + torch.stack(positive).sum()))
        push.append(torch.log(1 + torch.stack(negative).sum()) if negative else x.sum() * 0)
    return _average(pull, x) + _average(push, x)


def norm_softmax(x: Tensor, y: Tensor, proxies: Tensor, scale: float = 20.0) -> Tensor:
    """Cross-entropy over scaled cosines."""
    x, p = _unit(x), _unit(proxies[:, 0])
    terms = []
    for i in range(len(x)):
        logits = torch.stack([scale * (x[i] @ p[c]) for c in range(len(p))])
        terms.append(torch.log(torch.exp(logits).sum()) - logits[y[i]])
    return _average(terms, x)


def soft_triple(
    x: Tensor,
    y: Tensor,
    centers: Tensor,
    scale: float = 20.0,
    assignment_temperature: float = 0.1,
    margin: float = 0.01,
    regularizer_weight: float = 0.2,
) -> Tensor:
    """Qian et al. 2019, eq. 8 to 10; the regulariser as in idstcv/SoftTriple."""
    x, w = _unit(x), _unit(centers)
    C, K, _ = w.shape  # noqa: N806
    terms = []
    for i in range(len(x)):
        logits = []
        for c in range(C):
            s = torch.stack([x[i] @ w[c, k] for k in range(K)])
            weight = torch.exp(s / assignment_temperature)
            similarity = (weight / weight.sum() * s).sum()
            logits.append(scale * (similarity - (margin if c == y[i] else 0.0)))
        stacked = torch.stack(logits)
        terms.append(torch.log(torch.exp(stacked).sum()) - stacked[y[i]])
    loss = _average(terms, x)
    if regularizer_weight and K > 1:
        spread = [
            torch.sqrt(2 + 1e-5 - 2 * (w[c, s] @ w[c, t])) for c in range(C) for s in range(K) for t in range(s + 1, K)
        ]
        loss = loss + regularizer_weight * torch.stack(spread).sum() / (C * K * (K - 1))
    return loss


def lifted_structure(x: Tensor, y: Tensor, margin: float = 1.0, normalize: bool = False) -> Tensor:
    """Song et al. 2016, eq. 4."""
    x = _unit(x) if normalize else x
    terms = []
    for i in range(len(x)):
        for j in range(i + 1, len(x)):
            if y[i] != y[j]:
                continue
            negative = [torch.exp(margin - _distance(x[i], x[k])) for k in range(len(x)) if y[k] != y[i]]
            negative += [torch.exp(margin - _distance(x[j], x[k])) for k in range(len(x)) if y[k] != y[j]]
            if negative:
                violation = torch.log(torch.stack(negative).sum()) + _distance(x[i], x[j])
                terms.append(violation.relu().square() / 2)
            else:
                terms.append(x.sum() * 0)
    return _average(terms, x)


def triplet_semi_hard(
    x: Tensor, y: Tensor, margin: float = 0.2, normalize: bool = True, squared: bool = True
) -> Tensor:
    """Schroff et al. 2015, section 3.2, with TensorFlow's fallback to the farthest negative."""
    x = _unit(x) if normalize else x
    terms = []
    for a in range(len(x)):
        negatives = [_distance(x[a], x[n]) for n in range(len(x)) if y[n] != y[a]]
        if not negatives:
            continue
        for p in range(len(x)):
            if p == a or y[p] != y[a]:
                continue
            positive = _distance(x[a], x[p])
            farther = [d for d in negatives if d > positive]
            chosen = min(farther) if farther else max(negatives)
            if squared:
                terms.append((positive**2 - chosen**2 + margin).relu())
            else:
                terms.append((positive - chosen + margin).relu())
    return _average(terms, x)


def triplet_batch_hard(
    x: Tensor, y: Tensor, margin: float = 0.2, normalize: bool = False, squared: bool = False
) -> Tensor:
    """Hermans et al. 2017, eq. 5."""
    x = _unit(x) if normalize else x
    power = 2 if squared else 1
    terms = []
    for a in range(len(x)):
        positive = [_distance(x[a], x[p]) for p in range(len(x)) if p != a and y[p] == y[a]]
        negative = [_distance(x[a], x[n]) for n in range(len(x)) if y[n] != y[a]]
        if positive and negative:
            terms.append((max(positive) ** power - min(negative) ** power + margin).relu())
    return _average(terms, x)

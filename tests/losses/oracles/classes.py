"""Losses over samples and class proxies: f(x (B, d), y (B,), proxies (C, K, d), **options) -> ()."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tests.losses.oracles.measures import average_of, log_sum_exp, softplus, squared_distance, unit


def proxy_anchor(x: Tensor, y: Tensor, proxies: Tensor, margin: float = 0.1, scale: float = 32.0) -> Tensor:
    """Kim et al. 2020, eq. 4."""
    x, p = unit(x), unit(proxies[:, 0])
    pull, push = [], []
    for c in range(len(p)):
        positive = [torch.exp(-scale * (x[i] @ p[c] - margin)) for i in range(len(x)) if y[i] == c]
        negative = [torch.exp(scale * (x[i] @ p[c] + margin)) for i in range(len(x)) if y[i] != c]
        if positive:
            pull.append(torch.log(1 + torch.stack(positive).sum()))
        push.append(torch.log(1 + torch.stack(negative).sum()) if negative else x.sum() * 0)
    return average_of(pull, x) + average_of(push, x)


def norm_softmax(x: Tensor, y: Tensor, proxies: Tensor, scale: float = 20.0) -> Tensor:
    """Cross-entropy over scaled cosines."""
    x, p = unit(x), unit(proxies[:, 0])
    terms = []
    for i in range(len(x)):
        logits = torch.stack([scale * (x[i] @ p[c]) for c in range(len(p))])
        terms.append(torch.log(torch.exp(logits).sum()) - logits[y[i]])
    return average_of(terms, x)


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
    x, w = unit(x), unit(centers)
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
    loss = average_of(terms, x)
    if regularizer_weight and K > 1:
        spread = [
            torch.sqrt(2 + 1e-5 - 2 * (w[c, s] @ w[c, t])) for c in range(C) for s in range(K) for t in range(s + 1, K)
        ]
        loss = loss + regularizer_weight * torch.stack(spread).sum() / (C * K * (K - 1))
    return loss


def _cross_entropy(logits: list[Tensor], target: int) -> Tensor:
    return log_sum_exp(logits) - logits[target]


def softmax(x: Tensor, y: Tensor, proxies: Tensor) -> Tensor:
    """Cross-entropy over the logits x . w, without bias and without normalisation."""
    w = proxies[:, 0]
    return average_of([_cross_entropy([x[i] @ w[c] for c in range(len(w))], int(y[i])) for i in range(len(x))], x)


def cosface(x: Tensor, y: Tensor, proxies: Tensor, margin: float = 0.35, scale: float = 64.0) -> Tensor:
    """Wang et al. 2018 (CosFace), eq. 4."""
    x, p = unit(x), unit(proxies[:, 0])
    terms = []
    for i in range(len(x)):
        logits = [scale * (x[i] @ p[c] - (margin if c == y[i] else 0.0)) for c in range(len(p))]
        terms.append(_cross_entropy(logits, int(y[i])))
    return average_of(terms, x)


def am_softmax(x: Tensor, y: Tensor, proxies: Tensor, margin: float = 0.35, scale: float = 30.0) -> Tensor:
    """Wang et al. 2018 (additive margin softmax): CosFace with another scale."""
    return cosface(x, y, proxies, margin, scale)


def arcface(x: Tensor, y: Tensor, proxies: Tensor, margin: float = 0.5, scale: float = 64.0) -> Tensor:
    """Deng et al. 2019, eq. 3; beyond pi - margin the straight continuation of InsightFace."""
    x, p = unit(x), unit(proxies[:, 0])
    terms = []
    for i in range(len(x)):
        cosines = [x[i] @ p[c] for c in range(len(p))]
        theta = torch.acos(cosines[int(y[i])])
        if theta + margin > math.pi:
            cosines[int(y[i])] = torch.cos(theta) - margin * math.sin(margin)
        else:
            cosines[int(y[i])] = torch.cos(theta + margin)
        terms.append(_cross_entropy([scale * cosine for cosine in cosines], int(y[i])))
    return average_of(terms, x)


def proxy_nca(x: Tensor, y: Tensor, proxies: Tensor, form: str = "paper", scale: float | None = None) -> Tensor:
    """Movshovitz-Attias et al. 2017 (paper: the positive not below); Proxy-NCA++ 2020 (plus_plus: all below)."""
    if scale is None:
        scale = 1.0 if form == "paper" else 9.0
    x, p = unit(x), unit(proxies[:, 0])
    terms = []
    for i in range(len(x)):
        logits = [-scale * squared_distance(x[i], p[c]) for c in range(len(p))]
        below = [logits[c] for c in range(len(p)) if form == "plus_plus" or c != y[i]]
        terms.append(log_sum_exp(below) - logits[int(y[i])] if below else x.sum() * 0)
    return average_of(terms, x)


def circle_proxy(x: Tensor, y: Tensor, proxies: Tensor, margin: float = 0.25, scale: float = 256.0) -> Tensor:
    """Sun et al. 2020, eq. 6 with class-level labels: one positive, the other proxies; weights are constants."""
    x, p = unit(x), unit(proxies[:, 0])
    terms = []
    for i in range(len(x)):
        pull, push = x.sum() * 0, []
        for c in range(len(p)):
            s = x[i] @ p[c]
            if c == y[i]:
                pull = -scale * (1 + margin - s).relu().detach() * (s - (1 - margin))
            else:
                push.append(scale * (s + margin).relu().detach() * (s - margin))
        terms.append(softplus(log_sum_exp(push) + pull) if push else x.sum() * 0)
    return average_of(terms, x)

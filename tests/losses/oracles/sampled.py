"""Class losses that look at some classes: f(x (B, d), y (B,), proxies (C, K, d), weights {class: weight}) -> ().

``weights`` holds the classes that are looked at, and how many classes each stands for in a sum over other classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tests.losses.oracles.measures import average_of, log_sum_exp, softplus, squared_distance, unit

Weights = Mapping[int, float]
Logit = Callable[[int, int], Tensor]


def _over(x: Tensor, y: Tensor, weights: Weights, logit: Logit, own: Logit, *, bounded: bool = True) -> Tensor:
    """The mean of log(1 + sum_c w_c exp(logit_c - own)), or without the 1."""
    terms = []
    for i, label in enumerate(y.tolist()):
        others = [logit(i, c) + math.log(w) for c, w in weights.items() if c != label]
        if others:
            excess = log_sum_exp(others) - own(i, label)
            terms.append(softplus(excess) if bounded else excess)
        else:
            terms.append(x.sum() * 0)
    return average_of(terms, x)


def softmax(x: Tensor, y: Tensor, proxies: Tensor, weights: Weights) -> Tensor:
    def logit(i: int, c: int) -> Tensor:
        return x[i] @ proxies[c, 0]

    return _over(x, y, weights, logit, logit)


def norm_softmax(x: Tensor, y: Tensor, proxies: Tensor, weights: Weights, scale: float = 20.0) -> Tensor:
    return cosface(x, y, proxies, weights, margin=0.0, scale=scale)


def cosface(
    x: Tensor, y: Tensor, proxies: Tensor, weights: Weights, margin: float = 0.35, scale: float = 64.0
) -> Tensor:
    x, p = unit(x), unit(proxies[:, 0])

    def logit(i: int, c: int) -> Tensor:
        return scale * (x[i] @ p[c])

    return _over(x, y, weights, logit, lambda i, c: logit(i, c) - scale * margin)


def arcface(
    x: Tensor, y: Tensor, proxies: Tensor, weights: Weights, margin: float = 0.5, scale: float = 64.0
) -> Tensor:
    x, p = unit(x), unit(proxies[:, 0])

    def own(i: int, c: int) -> Tensor:
        theta = torch.acos(x[i] @ p[c])
        beyond = torch.cos(theta) - margin * math.sin(margin)
        return scale * (beyond if theta + margin > math.pi else torch.cos(theta + margin))

    return _over(x, y, weights, lambda i, c: scale * (x[i] @ p[c]), own)


def proxy_nca(x: Tensor, y: Tensor, proxies: Tensor, weights: Weights, form: str = "paper") -> Tensor:
    x, p = unit(x), unit(proxies[:, 0])
    scale = 1.0 if form == "paper" else 9.0

    def logit(i: int, c: int) -> Tensor:
        return -scale * squared_distance(x[i], p[c])

    return _over(x, y, weights, logit, logit, bounded=form != "paper")


def circle_proxy(
    x: Tensor, y: Tensor, proxies: Tensor, weights: Weights, margin: float = 0.25, scale: float = 256.0
) -> Tensor:
    x, p = unit(x), unit(proxies[:, 0])

    def push(i: int, c: int) -> Tensor:
        s = x[i] @ p[c]
        return scale * (s + margin).relu().detach() * (s - margin)

    def own(i: int, c: int) -> Tensor:
        s = x[i] @ p[c]
        return scale * (1 + margin - s).relu().detach() * (s - (1 - margin))

    return _over(x, y, weights, push, own)


def soft_triple(x: Tensor, y: Tensor, proxies: Tensor, weights: Weights) -> Tensor:
    """Scale 20, temperature 0.1, margin 0.01; the regulariser of weight 0.2 is estimated as the sum of exponentials."""
    x, w = unit(x), unit(proxies)
    C, K, _ = w.shape  # noqa: N806

    def logit(i: int, c: int) -> Tensor:
        s = torch.stack([x[i] @ w[c, k] for k in range(K)])
        return 20 * (torch.softmax(s / 0.1, 0) @ s)

    loss = _over(x, y, weights, logit, lambda i, c: logit(i, c) - 20 * 0.01)
    spread = [
        weight * torch.sqrt(2 + 1e-5 - 2 * (w[c, s] @ w[c, t]))
        for c, weight in weights.items()
        for s in range(K)
        for t in range(s + 1, K)
    ]
    return loss + 0.2 * torch.stack(spread).sum() / (C * K * (K - 1)) if spread else loss

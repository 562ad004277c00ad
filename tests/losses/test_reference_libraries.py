"""Value and gradient beside pytorch-metric-learning, where it computes the same thing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_metric_learning import distances, losses, miners, reducers
from torch import Tensor, nn

import dmlscale

NUM_CLASSES, DIM, CENTERS = 8, 16, 3


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, DIM, generator=generator, dtype=torch.float64), torch.arange(64) % NUM_CLASSES


def euclidean() -> Any:
    return distances.LpDistance(normalize_embeddings=False)


def batch_hard(x: Tensor, y: Tensor) -> Tensor:
    """The paper's form: un-normalised, un-squared, mean over anchors."""
    miner = miners.BatchHardMiner(distance=euclidean())
    loss = losses.TripletMarginLoss(0.2, distance=euclidean(), reducer=reducers.MeanReducer())
    value: Tensor = loss(x, y, miner(x, y))
    return value


PAIRS: dict[str, tuple[dict[str, Any], Callable[[Tensor, Tensor], Tensor]]] = {
    "lifted_structure": ({}, losses.LiftedStructureLoss(1, distance=euclidean())),
    "triplet": ({"mining": "batch_hard"}, batch_hard),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pair_losses(name: str) -> None:
    options, reference = PAIRS[name]
    x, y = batch()
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    value = dmlscale.GlobalLoss(name, embedding_dim=DIM, **options)(ours, y)
    wanted = reference(theirs, y)
    torch.testing.assert_close(value, wanted, rtol=1e-9, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(value, ours), torch.autograd.grad(wanted, theirs), rtol=1e-7, atol=1e-10
    )


def proxy_anchor() -> tuple[nn.Module, str]:
    return losses.ProxyAnchorLoss(NUM_CLASSES, DIM), "proxies"


def norm_softmax() -> tuple[nn.Module, str]:
    return losses.NormalizedSoftmaxLoss(NUM_CLASSES, DIM, temperature=0.05), "W"


def soft_triple() -> tuple[nn.Module, str]:
    """Without its regulariser: the library's has its 1e-5 elsewhere."""
    return losses.SoftTripleLoss(NUM_CLASSES, DIM, centers_per_class=CENTERS, la=20, gamma=0.1, margin=0.01), "fc"


CLASSES: dict[str, tuple[dict[str, Any], Callable[[], tuple[nn.Module, str]]]] = {
    "proxy_anchor": ({}, proxy_anchor),
    "norm_softmax": ({}, norm_softmax),
    "soft_triple": ({"centers_per_class": CENTERS, "regularizer_weight": 0.0}, soft_triple),
}


@pytest.mark.parametrize("name", CLASSES)
def test_class_losses(name: str) -> None:
    options, make = CLASSES[name]
    x, y = batch()
    ours = dmlscale.GlobalLoss(name, num_classes=NUM_CLASSES, embedding_dim=DIM, **options).double()
    assert ours.bank is not None
    reference, weight_name = make()
    reference = reference.double()
    weight: nn.Parameter = getattr(reference, weight_name)
    rows = ours.bank.weight.detach().flatten(0, 1)
    is_column_wise = weight.shape != rows.shape
    with torch.no_grad():
        weight.copy_(rows.T if is_column_wise else rows)
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    value, wanted = ours(a, y), reference(b, y)
    torch.testing.assert_close(value, wanted, rtol=1e-8, atol=0)
    by_x, by_bank = torch.autograd.grad(value, (a, ours.bank.weight))
    wanted_x, wanted_bank = torch.autograd.grad(wanted, (b, weight))
    torch.testing.assert_close(by_x, wanted_x, rtol=1e-6, atol=1e-9)
    wanted_bank = wanted_bank.T if is_column_wise else wanted_bank
    torch.testing.assert_close(by_bank.flatten(0, 1), wanted_bank, rtol=1e-6, atol=1e-9)

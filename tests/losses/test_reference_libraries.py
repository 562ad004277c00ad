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

Options = dict[str, Any]
PairLoss = Callable[[Tensor, Tensor], Tensor]
MakeClassLoss = Callable[[], tuple[nn.Module, str]]  # the module and the name of its weight


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(64, DIM, generator=generator, dtype=torch.float64), torch.arange(64) % NUM_CLASSES


def identify(row: tuple[str, Options, Any]) -> str:
    return "-".join([row[0], *(f"{k}={v}" for k, v in row[1].items())])


def euclidean() -> Any:
    return distances.LpDistance(normalize_embeddings=False)


def squared_on_sphere() -> Any:
    return distances.LpDistance(power=2)


class HalfSquares(losses.ContrastiveLoss):
    """The terms of Hadsell et al.: half the square of the library's."""

    def get_per_pair_loss(self, pair_dists: Tensor, pos_or_neg: str) -> Tensor:
        return super().get_per_pair_loss(pair_dists, pos_or_neg).square() / 2


def averaged(make: Callable[..., PairLoss], **arguments: Any) -> PairLoss:
    """A loss whose terms are all averaged, not only the positive ones."""
    return make(reducer=reducers.MeanReducer(), **arguments)


def mined(miner: Callable[[Tensor, Tensor], Any], loss: Any) -> PairLoss:
    return lambda x, y: loss(x, y, miner(x, y))


def triplets(distance: Any, margin: float = 0.2, **arguments: Any) -> Any:
    return averaged(losses.TripletMarginLoss, margin=margin, distance=distance, **arguments)


ON_SPHERE: Options = {"normalize": True, "squared": False}
PAIRS: list[tuple[str, Options, PairLoss]] = [
    ("contrastive", ON_SPHERE, losses.ContrastiveLoss()),
    ("contrastive", {**ON_SPHERE, "average": "all"}, averaged(losses.ContrastiveLoss)),
    (
        "contrastive",
        {**ON_SPHERE, "margin": 1.4, "positive_margin": 1.2},
        losses.ContrastiveLoss(pos_margin=1.2, neg_margin=1.4),
    ),
    ("contrastive", {"margin": 5.0}, HalfSquares(neg_margin=5, distance=euclidean())),
    (
        "contrastive",
        {"margin": 5.0, "positive_margin": 4.5, "average": "all"},
        averaged(HalfSquares, pos_margin=4.5, neg_margin=5, distance=euclidean()),
    ),
    (
        "triplet",
        {"mining": "all", "average": "active", "squared": False},
        losses.TripletMarginLoss(0.2),
    ),
    ("triplet", {"mining": "all", "squared": False}, triplets(distances.LpDistance())),
    ("triplet", {"mining": "all"}, triplets(squared_on_sphere())),
    (
        "triplet",
        {"mining": "all", "soft_margin": True},
        triplets(squared_on_sphere(), margin=0.0, smooth_loss=True),
    ),
    (
        "triplet",
        {"mining": "all_semi_hard", "squared": False},
        mined(miners.TripletMarginMiner(0.2, "semihard"), triplets(distances.LpDistance())),
    ),
    (
        "triplet",
        {"mining": "all_semi_hard"},
        mined(miners.TripletMarginMiner(0.2, "semihard", distance=squared_on_sphere()), triplets(squared_on_sphere())),
    ),
    (
        "triplet",
        {"mining": "batch_hard"},
        mined(miners.BatchHardMiner(distance=euclidean()), triplets(euclidean())),
    ),
    (
        "triplet",
        {"mining": "batch_hard", "average": "active", **ON_SPHERE},
        mined(miners.BatchHardMiner(), losses.TripletMarginLoss(0.2)),
    ),
    (
        "triplet",
        {"mining": "batch_hard", "soft_margin": True},
        mined(miners.BatchHardMiner(distance=euclidean()), triplets(euclidean(), margin=0.0, smooth_loss=True)),
    ),
    (
        "triplet",
        {"mining": "all_positives_hardest_negative"},
        mined(miners.BatchEasyHardMiner("all", "hard", distance=squared_on_sphere()), triplets(squared_on_sphere())),
    ),
    ("lifted_structure", {}, losses.LiftedStructureLoss(1, distance=euclidean())),
    ("lifted_structure", {"normalize": True}, losses.LiftedStructureLoss()),
    ("lifted_structure", {"form": "per_anchor"}, losses.GeneralizedLiftedStructureLoss(distance=euclidean())),
    (
        "n_pairs",
        {"l2_weight": 0.0},
        losses.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False)),
    ),
    (
        "multi_similarity",
        {},
        mined(miners.MultiSimilarityMiner(0.1), losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5)),
    ),
    (
        "multi_similarity",
        {"miner_margin": None, "positive_scale": 3.0, "negative_scale": 20.0, "base": 0.3},
        losses.MultiSimilarityLoss(alpha=3, beta=20, base=0.3),
    ),
    ("circle", {}, losses.CircleLoss(m=0.4, gamma=80)),
    ("supervised_contrastive", {}, losses.SupConLoss(0.07)),
    ("supervised_contrastive", {"temperature": 0.5}, losses.SupConLoss(0.5)),
]


@pytest.mark.parametrize("row", PAIRS, ids=identify)
def test_pair_losses(row: tuple[str, Options, PairLoss]) -> None:
    name, options, reference = row
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


def cosface(margin: float, scale: float) -> tuple[nn.Module, str]:
    return losses.CosFaceLoss(NUM_CLASSES, DIM, margin=margin, scale=scale), "W"


def arcface(margin: float, scale: float) -> tuple[nn.Module, str]:
    """The library's margin is in degrees."""
    return losses.ArcFaceLoss(NUM_CLASSES, DIM, margin=torch.tensor(margin).double().rad2deg().item(), scale=scale), "W"


def proxy_nca(scale: float) -> tuple[nn.Module, str]:
    """The library has the positive in the denominator."""
    return losses.ProxyNCALoss(NUM_CLASSES, DIM, softmax_scale=scale), "proxies"


class Plain(nn.Module):
    """torch's own cross-entropy."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(NUM_CLASSES, DIM))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(x @ self.weight.T, y)


class CircleOfProxies(Plain):
    """The library's circle loss with the proxies as its references, one a class."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        value: Tensor = losses.CircleLoss(m=0.25, gamma=256)(
            x, y, ref_emb=self.weight, ref_labels=torch.arange(NUM_CLASSES)
        )
        return value


CLASSES: list[tuple[str, Options, MakeClassLoss]] = [
    ("proxy_anchor", {}, proxy_anchor),
    ("norm_softmax", {}, norm_softmax),
    ("soft_triple", {"centers_per_class": CENTERS, "regularizer_weight": 0.0}, soft_triple),
    ("softmax", {}, lambda: (Plain(), "weight")),
    ("cosface", {}, lambda: cosface(0.35, 64)),
    ("am_softmax", {}, lambda: cosface(0.35, 30)),
    ("arcface", {}, lambda: arcface(0.5, 64)),
    ("arcface", {"margin": 1.5, "scale": 8.0}, lambda: arcface(1.5, 8)),  # half of the angles beyond pi - margin
    ("proxy_nca", {"form": "plus_plus"}, lambda: proxy_nca(9)),
    ("proxy_nca", {"form": "plus_plus", "scale": 1.0}, lambda: proxy_nca(1)),
    ("circle_proxy", {}, lambda: (CircleOfProxies(), "weight")),
]


@pytest.mark.parametrize("row", CLASSES, ids=identify)
def test_class_losses(row: tuple[str, Options, MakeClassLoss]) -> None:
    name, options, make = row
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

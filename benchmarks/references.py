"""The same losses in pytorch-metric-learning, where it has them: callables of (embeddings, labels)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pytorch_metric_learning import distances, losses, miners, reducers
from torch import Tensor, nn

Compute = Callable[[Tensor, Tensor], Tensor]
Made = tuple[Compute, nn.Module, str | None]  # the loss, its module, the name of its class weights


def euclidean(power: int = 1, *, normalize: bool = False) -> Any:
    """Distances as the papers take them."""
    return distances.LpDistance(power=power, normalize_embeddings=normalize)


def _plain(module: nn.Module) -> Made:
    return module, module, None


def _with_miner(module: nn.Module, miner: Any) -> Made:
    return (lambda x, y: module(x, y, miner(x, y))), module, None


def _triplet(margin: float, distance: Any, **options: Any) -> nn.Module:
    made: nn.Module = losses.TripletMarginLoss(margin, distance=distance, reducer=reducers.MeanReducer(), **options)
    return made


def make(name: str, num_classes: int | None, dim: int) -> Made:
    """The counterpart of a row of the table.

    Args:
        name: of the counterpart.
        num_classes: C, for class losses.
        dim: d.
    """
    unit2 = euclidean(2, normalize=True)
    pairs: dict[str, Callable[[], Made]] = {
        "contrastive": lambda: _plain(losses.ContrastiveLoss(distance=euclidean())),
        "triplet_all": lambda: _plain(_triplet(0.2, unit2)),
        # Its miner returns all semi-hard triplets, ours one per positive pair: the same kind of work.
        "triplet_semi_hard": lambda: _with_miner(_triplet(0.2, unit2), _margin_miner("semihard")),
        "triplet_all_semi_hard": lambda: _with_miner(_triplet(0.2, unit2), _margin_miner("semihard")),
        "triplet_batch_hard": lambda: _with_miner(
            _triplet(0.2, euclidean()), miners.BatchHardMiner(distance=euclidean())
        ),
        "triplet_all_positives_hardest_negative": lambda: _with_miner(
            _triplet(0.2, unit2),
            miners.BatchEasyHardMiner(pos_strategy="all", neg_strategy="hard", distance=unit2),
        ),
        "lifted_structure": lambda: _plain(losses.LiftedStructureLoss(1, distance=euclidean())),
        "lifted_structure_per_anchor": lambda: _plain(
            losses.GeneralizedLiftedStructureLoss(1, 0, distance=euclidean())
        ),
        "n_pairs": lambda: _plain(
            losses.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False))
        ),
        "multi_similarity": lambda: _with_miner(
            losses.MultiSimilarityLoss(2, 50, 0.5), miners.MultiSimilarityMiner(0.1)
        ),
        "circle": lambda: _plain(losses.CircleLoss(0.4, 80)),
        "supervised_contrastive": lambda: _plain(losses.SupConLoss(0.07)),
    }
    if name in pairs:
        return pairs[name]()
    c = num_classes
    classes: dict[str, Callable[[], tuple[nn.Module, str]]] = {
        "norm_softmax": lambda: (losses.NormalizedSoftmaxLoss(c, dim, temperature=0.05), "W"),
        "cosface": lambda: (losses.CosFaceLoss(c, dim, margin=0.35, scale=64), "W"),
        "arcface": lambda: (losses.ArcFaceLoss(c, dim, margin=float(torch.rad2deg(torch.tensor(0.5))), scale=64), "W"),
        "proxy_nca_plus_plus": lambda: (losses.ProxyNCALoss(c, dim, softmax_scale=9), "proxies"),
        "proxy_anchor": lambda: (losses.ProxyAnchorLoss(c, dim), "proxies"),
        "soft_triple": lambda: (
            losses.SoftTripleLoss(c, dim, centers_per_class=10, la=20, gamma=0.1, margin=0.01),
            "fc",
        ),
    }
    module, weights = classes[name]()
    return module, module, weights


def _margin_miner(kind: str) -> Any:
    return miners.TripletMarginMiner(0.2, kind, distance=euclidean(2, normalize=True))


def start_alike(module: nn.Module, name: str, rows: Tensor) -> None:
    """Gives the reference our first class weights (n, d), so that the values can be compared."""
    weight = getattr(module, name)
    with torch.no_grad():
        weight.copy_(rows if weight.shape == rows.shape else rows.T)

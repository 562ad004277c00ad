"""SoftTriple's effective number of centers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import dmlscale
from dmlscale.distributed.class_sampling import ClassSampling
from dmlscale.distributed.world import World
from dmlscale.training.objective import Objective
from tests.distributed.pool import GlooPool

K, DIM = 3, 5
BANKS = ["merged", "orthogonal", "opposite", "two of three", "random"]


def centers(bank: str, num_classes: int) -> Tensor:
    """(C, K, d), of any length."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.eye(DIM, dtype=torch.float64)
    random = torch.randn(num_classes, K, DIM, generator=generator, dtype=torch.float64)
    of_class = {
        "merged": axes[[0, 0, 0]],
        "orthogonal": axes[:3],
        "opposite": axes[[0, 0, 0]] * torch.tensor([[1.0], [-1.0], [1.0]]),
        "two of three": axes[[0, 0, 1]],
    }
    if bank == "random":
        return random
    return of_class[bank] * (0.1 + random[:, :, :1].abs())


def metrics(world: World, bank: str, num_classes: int, sampled: bool) -> dict[str, Tensor]:
    loss = dmlscale.GlobalLoss(
        "soft_triple",
        num_classes=num_classes,
        embedding_dim=DIM,
        group=world.group,
        centers_per_class=K,
        class_sampling=ClassSampling(0.2) if sampled else None,
    ).double()
    assert loss.bank is not None
    loss.bank.weight.data.copy_(centers(bank, num_classes)[loss.bank.start : loss.bank.stop])
    pairs = dmlscale.GlobalLoss("triplet", embedding_dim=DIM, group=world.group)
    return Objective([(loss, 1.0), (pairs, 1.0)]).metrics()


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("bank", BANKS)
def test_effective_centers(gloo_pool: GlooPool, bank: str, num_ranks: int) -> None:
    """By the eigenvalues; also with fewer classes than ranks, and over all classes when some are looked at."""
    for num_classes, sampled in ((7, False), (2, False), (7, True)):
        ratios = []
        for of_class in centers(bank, num_classes):
            unit = of_class / of_class.norm(dim=1, keepdim=True)
            eigenvalues = torch.linalg.eigvalsh(unit @ unit.T)
            ratios.append(eigenvalues.sum().square() / eigenvalues.square().sum())
        wanted = torch.stack(ratios).mean()
        by_hand = {"merged": 1.0, "orthogonal": 3.0, "opposite": 1.0, "two of three": 9 / 5}
        assert wanted.item() == pytest.approx(by_hand.get(bank, wanted.item()))
        for found in gloo_pool.run(num_ranks, metrics, bank, num_classes, sampled):
            assert list(found) == ["soft_triple/effective_centers"]
            torch.testing.assert_close(found["soft_triple/effective_centers"], wanted, rtol=1e-10, atol=1e-10)


def test_one_center_has_no_metric() -> None:
    loss = dmlscale.GlobalLoss("soft_triple", num_classes=4, embedding_dim=DIM, centers_per_class=1)
    assert loss.metrics() == {}

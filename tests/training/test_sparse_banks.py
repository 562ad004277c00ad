"""Banks with sparse gradients: what an optimizer touches, what a checkpoint keeps, what clipping counts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import dmlscale
from dmlscale.distributed.class_sampling import ClassSampling
from dmlscale.distributed.world import World
from dmlscale.models.embedder import Embedder
from dmlscale.training import checkpoint
from dmlscale.training.objective import Objective
from dmlscale.training.optim import clip_gradients, optimizer
from dmlscale.training.optimizers import Optimizers
from dmlscale.training.state import Record, tensors
from tests.distributed.pool import GlooPool

DIM, NUM_CLASSES = 5, 13
SHARES = {1: [11], 2: [4, 7], 3: [6, 0, 5]}  # of a batch of 11
LABELS = torch.tensor([0, 4, 4, 12, 0, 7, 4, 12, 7, 7, 0])


def batch(world: World, step: int) -> tuple[Tensor, Tensor]:
    """This rank's samples."""
    first = sum(SHARES[world.num_ranks][: world.rank])
    mine = slice(first, first + SHARES[world.num_ranks][world.rank])
    x = torch.randn(11, DIM, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
    return x[mine], ((LABELS + step) % NUM_CLASSES)[mine]


def trainee(world: World, name: Literal["adamw", "sgd"]) -> tuple[Embedder, Objective, Optimizers]:
    torch.manual_seed(0)
    embedder = Embedder(nn.Linear(DIM, 6), 6, DIM, channels_last=False)
    loss = dmlscale.GlobalLoss(
        "soft_triple",
        num_classes=NUM_CLASSES,
        embedding_dim=DIM,
        group=world.group,
        class_sampling=ClassSampling(0.3),
        centers_per_class=3,
    ).double()
    objective = Objective([(loss, 1.0)])
    rates: dict[str, Any] = {"backbone_lr": 0.1, "head_lr": 0.1, "bank_lr": 0.1, "weight_decay": 0.1}
    optim = optimizer(embedder.double(), objective, name=name, bank_weight_decay=0.1, **rates)
    return embedder, objective, optim


def bank_step(world: World, parts: tuple[Embedder, Objective, Optimizers], step: int) -> float:
    """One step of the bank alone: the embedder stays as it is."""
    _, objective, optim = parts
    optim.zero_grad()
    value, _ = objective(*batch(world, step), None, step)
    value.backward()
    optim.step()
    return value.item()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_rows_that_were_not_looked_at_keep_their_bits(name: Literal["adamw", "sgd"]) -> None:
    parts = trainee(World(), name)
    weight = parts[1].banks()[0].weight
    for step in range(4):
        before = {key: t.clone() for key, t in {**parts[2].state_of(weight), "weight": weight.detach()}.items()}
        bank_step(World(), parts, step)
        assert weight.grad is not None
        rows = torch.zeros(NUM_CLASSES, dtype=torch.bool)
        rows[weight.grad.coalesce().indices()[0]] = True
        assert 0 < rows.sum() < NUM_CLASSES
        after = {**parts[2].state_of(weight), "weight": weight.detach()}
        assert set(after) == ({"step", "exp_avg", "exp_avg_sq", "weight"} if name == "adamw" else {"weight"})
        for key in set(after) - {"step"}:
            assert torch.equal(after[key][~rows], before[key][~rows]), key
            assert (after[key][rows] != before[key][rows]).any((1, 2)).all(), key


def test_sparse_adam_is_adam_on_the_rows_looked_at() -> None:
    """Kingma & Ba 2015, algorithm 1; a row's moments wait for its next gradient, bias corrections count all steps."""
    parts = trainee(World(), "adamw")
    weight = parts[1].banks()[0].weight
    wanted = weight.detach().clone()
    first, second = torch.zeros_like(wanted), torch.zeros_like(wanted)
    for step in range(4):
        bank_step(World(), parts, step)
        assert weight.grad is not None
        sparse = weight.grad.coalesce()
        for row, gradient in zip(sparse.indices()[0].tolist(), sparse.values(), strict=True):
            first[row] = 0.9 * first[row] + 0.1 * gradient
            second[row] = 0.999 * second[row] + 0.001 * gradient.square()
            mean, square = first[row] / (1 - 0.9 ** (step + 1)), second[row] / (1 - 0.999 ** (step + 1))
            # eps stands inside the bias correction, as in torch's SparseAdam
            wanted[row] -= 0.1 * mean / (square.sqrt() + 1e-8 / (1 - 0.999 ** (step + 1)) ** 0.5)
        torch.testing.assert_close(weight.detach(), wanted, rtol=1e-9, atol=1e-9)


def test_reading_the_optimizer_state_does_not_change_the_run() -> None:
    """As when a checkpoint is written."""
    weights = []
    for look in (False, True):
        parts = trainee(World(), "adamw")
        for step in range(3):
            bank_step(World(), parts, step)
            if look:
                tensors(*parts, World())
        weights.append(parts[1].banks()[0].weight.detach())
    torch.testing.assert_close(weights[1], weights[0], rtol=1e-12, atol=1e-12)


def resumed(world: World, folder: Path, name: Literal["adamw", "sgd"], first: int, last: int) -> tuple[Any, Tensor]:
    """Losses of the steps, from a checkpoint if the first is not 0, and this rank's bank; a checkpoint after each."""
    parts = trainee(world, name)
    if first:
        newest = checkpoint.latest(folder)
        assert newest is not None
        checkpoint.load(newest, tensors(*parts, world), world)
    losses = []
    for step in range(first, last):
        losses.append(bank_step(world, parts, step))
        checkpoint.save(folder, tensors(*parts, world), Record(step + 1, {}, 1, {}, {}), world, keep=1)
    return losses, parts[1].banks()[0].weight.detach()


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_run_goes_on_at_another_number_of_ranks(
    gloo_pool: GlooPool, tmp_path: Path, name: Literal["adamw", "sgd"]
) -> None:
    losses, bank = gloo_pool.run(1, resumed, tmp_path / "whole", name, 0, 4)[0]
    gloo_pool.run(3, resumed, tmp_path / "parts", name, 0, 2)
    ranks = gloo_pool.run(2, resumed, tmp_path / "parts", name, 2, 4)
    assert ranks[0][0] == pytest.approx(losses[2:], rel=1e-10)
    torch.testing.assert_close(torch.cat([rank[1] for rank in ranks]), bank, rtol=1e-10, atol=1e-10)


def clipped(world: World) -> tuple[float, Tensor]:
    """Norm of this rank's sparse gradient before, and the gradient after."""
    parts = trainee(world, "adamw")
    parts[1](*batch(world, 0), None, 0)[0].backward()
    for p in parts[0].parameters():
        p.grad = torch.ones_like(p)
    weight = parts[1].banks()[0].weight
    assert weight.grad is not None
    norm = weight.grad.to_dense().norm().item()
    clip_gradients(parts[0], parts[1], 0.5, world)
    return norm, weight.grad.to_dense()


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_clipping_counts_sparse_gradients(gloo_pool: GlooPool, num_ranks: int) -> None:
    ranks = gloo_pool.run(num_ranks, clipped)
    square = sum(norm**2 for norm, _ in ranks)
    shared = sum(p.numel() for p in trainee(World(), "adamw")[0].parameters())
    after = torch.cat([gradient for _, gradient in ranks]).norm().item()
    assert after == pytest.approx(0.5 * (square / (square + shared)) ** 0.5, rel=1e-5)

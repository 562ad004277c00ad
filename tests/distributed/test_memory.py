"""Cross-batch memory: over several steps, at any number of ranks, what a loop over rows, columns and a queue gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dmlscale
from dmlscale.distributed.batch import LocalBatch
from dmlscale.distributed.memory_bank import MemoryBank
from dmlscale.distributed.memory_block import MemoryBlock
from dmlscale.distributed.world import World
from dmlscale.models.embedder import Embedder
from dmlscale.training import checkpoint
from dmlscale.training.objective import Objective
from dmlscale.training.optim import optimizer
from dmlscale.training.state import Record, tensors
from tests.distributed.pool import GlooPool
from tests.losses.oracles import memory as oracles

DIM, BATCHES = 5, (7, 5, 9, 6, 8)
SIZES = [3, 11, 60]  # smaller than a batch, no multiple of one, never full


@dataclass(frozen=True)
class Case:
    """A loss, its options and its loop; whether the queue holds directions."""

    loss: str
    oracle: Callable[..., Tensor]
    options: dict[str, Any] = field(default_factory=dict)
    own_names: dict[str, Any] = field(default_factory=dict)
    on_sphere: bool = True

    def __str__(self) -> str:
        return "-".join([self.loss, *(f"{k}={v}" for k, v in self.options.items())])


CASES = [
    Case("contrastive", oracles.contrastive, on_sphere=False),
    Case("contrastive", oracles.contrastive, {"average": "pairs"}, {"average": "pairs"}, on_sphere=False),
    Case("triplet", oracles.batch_hard, {"mining": "batch_hard"}, on_sphere=False),
    Case("triplet", oracles.hardest_negative, {"mining": "all_positives_hardest_negative"}),
    Case(
        "triplet",
        oracles.hardest_negative,
        {"mining": "all_positives_hardest_negative", "average": "active"},
        {"average": "active"},
    ),
    Case("multi_similarity", oracles.multi_similarity),
    Case("multi_similarity", oracles.multi_similarity, {"miner_margin": None}, {"miner_margin": None}),
    Case("supervised_contrastive", oracles.supervised_contrastive),
    Case("circle", oracles.circle),
    Case("lifted_structure", oracles.lifted_per_anchor, {"form": "per_anchor"}, on_sphere=False),
]


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    size = BATCHES[step]
    x = torch.randn(size, DIM, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 4, (size,), generator=generator)


def deal(step: int, num_ranks: int, shuffled: bool) -> list[Tensor]:
    """Which samples of a batch each rank gets: uneven parts, at each step but the first with a rank that has none."""
    generator = torch.Generator().manual_seed(100 * num_ranks + step)
    size = BATCHES[step]
    order = torch.randperm(size, generator=generator) if shuffled else torch.arange(size)
    cuts = torch.randint(0, size + 1, (num_ranks - 1,), generator=generator).sort().values
    if step and num_ranks > 1:
        cuts[step % (num_ranks - 1)] = 0 if step % 2 else size
    return list(order.tensor_split(cuts.sort().values.tolist()))


@dataclass
class Outcome:
    """Of every step the loss, the gradient and whose it is; the memory afterwards."""

    losses: Tensor
    gradients: list[Tensor]
    places: list[Tensor]
    held: list[tuple[Tensor, Tensor, int]]


def run_rank(world: World, case: Case, size: int, shuffled: bool, start: int = 0, first: int = 0) -> Outcome:
    loss = dmlscale.GlobalLoss(
        case.loss, embedding_dim=DIM, group=world.group, memory_size=size, memory_start=start, **case.options
    ).double()
    assert loss.memory is not None
    out = Outcome(torch.zeros(len(BATCHES), dtype=torch.float64), [], [], [])
    for step in range(len(BATCHES)):
        x, y = batch(step)
        mine = deal(step, world.num_ranks, shuffled)[world.rank]
        local = x[mine].clone().requires_grad_()
        value = loss(local, y[mine], ids=mine * 7 + 3 if shuffled else None, step=first + step if first else None)
        value.backward()
        assert local.grad is not None
        out.losses[step] = value.detach()
        out.gradients.append(local.grad)
        out.places.append(mine)
        memory = loss.memory
        out.held.append((memory.embeddings.clone(), memory.labels.clone(), int(memory.entered)))
    return out


@cache
def expected(number: int, size: int, start: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Loss and gradient of every step, with a queue that is a list."""
    case, past = CASES[number], list[tuple[Tensor, Tensor]]()
    found = []
    for step in range(len(BATCHES)):
        x, y = batch(step)
        x.requires_grad_()
        seen = past[-size:] if step >= start else []
        columns = torch.stack([p for p, _ in seen]) if seen else x.new_zeros(0, DIM)
        labels = torch.stack([label for _, label in seen]) if seen else y[:0]
        value = case.oracle(x, y, columns, labels, **case.own_names)
        (gradient,) = torch.autograd.grad(value, x, allow_unused=True, materialize_grads=True)
        found.append((value.detach(), gradient))
        rows = oracles.unit(x) if case.on_sphere else x
        past += zip(rows.detach(), y, strict=True)
    return found


def slots(case: Case, step: int, size: int) -> tuple[Tensor, Tensor]:
    """The memory after a step: the n-th sample of all stands in slot n modulo the size."""
    embeddings, labels = torch.zeros(size, DIM, dtype=torch.float64), torch.zeros(size, dtype=torch.int64)
    entered = 0
    for earlier in range(step + 1):
        x, y = batch(earlier)
        for row, label in zip(oracles.unit(x) if case.on_sphere else x, y, strict=True):
            embeddings[entered % size], labels[entered % size] = row, label
            entered += 1
    return embeddings, labels


def close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=1e-10, atol=1e-10)


def check(ranks: list[Outcome], number: int, size: int, start: int = 0) -> None:
    for step, (value, gradient) in enumerate(expected(number, size, start)):
        for rank in ranks:
            close(rank.losses[step], value)
        together = torch.full_like(gradient, torch.nan)
        together[torch.cat([rank.places[step] for rank in ranks])] = torch.cat([r.gradients[step] for r in ranks])
        close(together, gradient)
        embeddings, labels = slots(CASES[number], step, size)
        close(torch.cat([rank.held[step][0] for rank in ranks]), embeddings)
        assert torch.equal(torch.cat([rank.held[step][1] for rank in ranks]), labels)
        assert {rank.held[step][2] for rank in ranks} == {sum(BATCHES[: step + 1])}


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: str(CASES[n]))
def test_steps_with_a_memory_equal_the_loop_over_a_queue(gloo_pool: GlooPool, number: int, num_ranks: int) -> None:
    for size in SIZES:
        check(gloo_pool.run(num_ranks, run_rank, CASES[number], size, size == 11), number, size)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_places_in_the_queue_follow_the_identities(gloo_pool: GlooPool, num_ranks: int) -> None:
    """The same batches, dealt to the ranks in order, or in another way and in another order with their identities."""
    for number, size in ((0, 3), (2, 11), (5, 3)):
        for shuffled in (False, True):
            check(gloo_pool.run(num_ranks, run_rank, CASES[number], size, shuffled), number, size)


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("num_ranks", [1, 3])
def test_the_memory_fills_before_it_is_used(gloo_pool: GlooPool, num_ranks: int, first: int) -> None:
    """Steps are counted by the loss itself, or told."""
    for number in (0, 5, 9):
        ranks = gloo_pool.run(num_ranks, run_rank, CASES[number], 11, False, 2 + first, first)
        check(ranks, number, 11, start=2)


def thresholds_of(farthest: Tensor) -> Tensor:
    """Two thresholds for each row, which move with its farthest positive."""
    return torch.stack([farthest + 0.3, 0.5 * farthest.square()], 1)


def hinges_of_rank(world: World) -> tuple[Tensor, Tensor, Tensor]:
    """What no loss with a memory uses yet: hinges whose thresholds have a gradient."""
    memory = MemoryBank(11, DIM, world=world).double()
    memory.enter(*batch(0))
    x, y = batch(2)
    mine = deal(2, world.num_ranks, shuffled=True)[world.rank]
    local = x[mine].clone().requires_grad_()
    block = MemoryBlock(LocalBatch(local, y[mine], mine), memory, world, on_sphere=False)
    thresholds = thresholds_of(block.maximum(lambda tile: tile.distance, where="positive"))
    sums, _ = block.hinge_sums(thresholds, squared=False, power=2)
    value = block.total(sums, of="rows")
    value.backward()
    assert local.grad is not None
    return value.detach(), local.grad, mine


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_thresholds_of_hinges_have_a_gradient(gloo_pool: GlooPool, num_ranks: int) -> None:
    ranks = gloo_pool.run(num_ranks, hinges_of_rank)
    x, y = batch(2)
    x.requires_grad_()
    terms = []
    for a, alike, other in oracles.anchors(x, y, *batch(0)):
        farthest = torch.stack([(a - p).norm() for p in alike]).max() if alike else x.sum() * 0
        terms += [(t - (a - n).norm()).relu().square() for n in other for t in thresholds_of(farthest[None])[0]]
    value = torch.stack(terms).sum()
    (gradient,) = torch.autograd.grad(value, x)
    for rank in ranks:
        close(rank[0], value.detach())
    close(torch.cat([rank[1] for rank in ranks]), gradient[torch.cat([rank[2] for rank in ranks])])


def test_evaluation_leaves_the_memory_alone() -> None:
    loss = dmlscale.GlobalLoss("contrastive", embedding_dim=DIM, memory_size=11).double()
    assert loss.memory is not None
    loss(*batch(0))
    held = loss.memory.embeddings.clone()
    loss.eval()
    loss(*batch(1))
    assert torch.equal(loss.memory.embeddings, held)
    assert loss.memory.entered == BATCHES[0]


def trained(world: World, folder: Path, first: int, last: int) -> list[float]:
    """Losses of the steps, from a checkpoint if the first is not 0, up to one after the last."""
    torch.manual_seed(0)
    embedder = Embedder(nn.Linear(DIM, 6), 6, DIM, channels_last=False, normalize=False).double()
    loss = dmlscale.GlobalLoss("triplet", embedding_dim=DIM, group=world.group, memory_size=10, mining="batch_hard")
    objective = Objective([(loss, 1.0)]).double()
    optim = optimizer(
        embedder, objective, name="sgd", backbone_lr=0.1, head_lr=0.1, bank_lr=0.1, weight_decay=0.0, momentum=0.9
    )
    if first:
        newest = checkpoint.latest(folder)
        assert newest is not None
        checkpoint.load(newest, tensors(embedder, objective, optim, world), world)
    losses = []
    for step in range(first, last):
        x, y = batch(step)
        mine = deal(step, world.num_ranks, shuffled=True)[world.rank]
        optim.zero_grad()
        value, _ = objective(embedder(x[mine]), y[mine], mine, step)
        value.backward()
        for p in embedder.parameters():  # what the data parallelism does
            assert p.grad is not None
            if world.num_ranks > 1:
                torch.distributed.all_reduce(p.grad, group=world.group)
        optim.step()
        losses.append(value.item())
    checkpoint.save(folder, tensors(embedder, objective, optim, world), Record(last, {}, 1, {}, {}), world, keep=1)
    return losses


@pytest.mark.parametrize(("before", "after"), [(3, 2), (1, 4)])
def test_a_checkpoint_keeps_queue_and_cursor_at_another_number_of_ranks(
    gloo_pool: GlooPool, tmp_path: Path, before: int, after: int
) -> None:
    whole = gloo_pool.run(1, trained, tmp_path / "whole", 0, 5)[0]
    start = gloo_pool.run(before, trained, tmp_path / "parts", 0, 2)
    rest = gloo_pool.run(after, trained, tmp_path / "parts", 2, 5)
    assert all(losses == pytest.approx(whole[:2], rel=1e-10) for losses in start)
    assert all(losses == pytest.approx(whole[2:], rel=1e-10) for losses in rest)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lifted_structure", {}),
        ("lifted_structure", {"form": "hard"}),
        *(("triplet", {"mining": m}) for m in ("semi_hard", "all", "all_semi_hard", "random", "distance_weighted")),
        ("n_pairs", {}),
        ("clustering", {}),
    ],
)
def test_losses_of_the_batch_alone_are_refused(name: str, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{name} cannot use a cross-batch memory with these options: .*offers no"):
        dmlscale.GlobalLoss(name, embedding_dim=DIM, memory_size=8, **options)


@pytest.mark.parametrize("name", ["softmax", "proxy_anchor", "soft_triple", "center", "triplet_center"])
def test_class_losses_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.* memory is for pair losses"):
        dmlscale.GlobalLoss(name, num_classes=3, embedding_dim=DIM, memory_size=8)

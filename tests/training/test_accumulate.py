"""Two passes give the gradients of one, whatever the size of the parts and the number of ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import dmlscale
from dmlscale.data.types import Batch
from dmlscale.distributed.world import World
from dmlscale.distributed.wrap import data_parallel
from dmlscale.models.embedder import Embedder
from dmlscale.training.accumulate import backward_in_two_passes
from dmlscale.training.objective import Objective
from dmlscale.training.optim import optimizer, schedule
from dmlscale.training.passes import Part, draw_from, parts_of
from dmlscale.training.step import Trainee, train_step
from tests.distributed.pool import GlooPool

DIM = 4
STREAMS = {0: 5, 1: 4, 2: 4}  # samples of each canonical stream; rank r serves r, r + W, ...


def samples(world: World, streams: dict[int, int]) -> tuple[Tensor, Tensor, Tensor, dict[int, int]]:
    """This rank's images, labels and identities, and its streams."""
    images = torch.randn(sum(streams.values()), 6, generator=torch.Generator().manual_seed(3))
    ids = torch.arange(len(images)).split([*streams.values()])
    mine = [n for n in streams if n % world.num_ranks == world.rank]
    here = torch.cat([ids[n] for n in mine])
    return images[here], here * 3 % 5, here, {n: streams[n] for n in mine}


def network(dropout: float = 0.0, batch_norm: bool = False) -> Embedder:
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(8) if batch_norm else nn.LayerNorm(8)
    net = nn.Sequential(nn.Linear(6, 8), middle, nn.Tanh(), nn.Dropout(dropout))
    return Embedder(net, 8, DIM, channels_last=False, normalize=False)


def objective_of(world: World) -> Objective:
    """A class loss, and a pair loss that remembers."""
    return Objective(
        [
            (dmlscale.GlobalLoss("norm_softmax", num_classes=5, embedding_dim=DIM, group=world.group), 1.0),
            (dmlscale.GlobalLoss("supervised_contrastive", embedding_dim=DIM, group=world.group, memory_size=9), 0.5),
        ]
    )


@contextmanager
def counted(calls: Counter[str]) -> Iterator[None]:
    """Counts the tensor collectives that go through torch.distributed."""
    names = ["all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor"]
    kept = {name: getattr(dist, name) for name in names}

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            return function(*args, **options)

        return call

    for name, function in kept.items():
        setattr(dist, name, counting(name, function))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(dist, name, function)


@dataclass
class Outcome:
    """Of each step the loss, terms, gradients of the network and of this rank's bank; collectives; buffers."""

    losses: list[float]
    terms: list[dict[str, float]]
    network: list[Tensor]
    banks: list[Tensor]
    calls: list[dict[str, int]]
    buffers: dict[str, Tensor]


def run_rank(
    world: World,
    micro_batch: int | None,
    reproducible: bool,
    dropout: float = 0.0,
    batch_norm: bool = False,
    streams: dict[int, int] = STREAMS,
) -> Outcome:
    """Two steps of `train_step`."""
    embedder, objective = network(dropout, batch_norm), objective_of(world)
    optim = optimizer(embedder, objective, name="sgd", backbone_lr=0.1, head_lr=0.1, bank_lr=0.1, weight_decay=0.0)
    trainee = Trainee(
        embedder if reproducible else data_parallel(embedder, world),
        objective,
        optim,
        schedule("constant", total_steps=2),
        world,
        reproducible=reproducible,
        micro_batch=micro_batch,
    )
    out = Outcome([], [], [], [], [], {})
    for step in range(2):
        images, labels, ids, mine = samples(world, streams)
        calls: Counter[str] = Counter()
        with counted(calls):
            loss, terms = train_step(trainee, Batch(images + step, labels, ids, mine), step)
        out.losses.append(loss.item())
        out.terms.append({name: value.item() for name, value in terms.items()})
        out.network.append(torch.cat([p.grad.flatten() for p in embedder.parameters() if p.grad is not None]))
        (bank,) = objective.banks()
        assert bank.weight.grad is not None
        out.banks.append(bank.weight.grad.clone())
        out.calls.append(dict(calls))
    out.buffers = {name: buffer.clone() for name, buffer in embedder.named_buffers()}
    return out


def agree(ranks: list[Outcome], wanted: Outcome, *, exact: bool = False) -> None:
    rtol, atol = (0.0, 0.0) if exact else (2e-5, 2e-6)
    for step in range(2):
        for rank in ranks:
            assert rank.losses[step] == pytest.approx(wanted.losses[step], rel=0 if exact else 2e-6)
            assert rank.terms[step] == pytest.approx(wanted.terms[step], rel=0 if exact else 2e-6)
            torch.testing.assert_close(rank.network[step], wanted.network[step], rtol=rtol, atol=atol)
        torch.testing.assert_close(
            torch.cat([rank.banks[step] for rank in ranks]), wanted.banks[step], rtol=rtol, atol=atol
        )


@pytest.mark.parametrize("reproducible", [True, False])
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_two_passes_equal_one(gloo_pool: GlooPool, num_ranks: int, reproducible: bool) -> None:
    """Also where ranks have different numbers of parts: 9 and 4 samples."""
    (wanted,) = gloo_pool.run(1, run_rank, None, False)
    for micro_batch in (None, 1, 3, 100):
        agree(gloo_pool.run(num_ranks, run_rank, micro_batch, reproducible), wanted)


@pytest.mark.parametrize("micro_batch", [None, 1, 3, 100])
def test_reproducible_passes_have_the_same_bits_at_any_number_of_ranks(
    gloo_pool: GlooPool, micro_batch: int | None
) -> None:
    (wanted,) = gloo_pool.run(1, run_rank, micro_batch, True, 0.4)
    for num_ranks in (2, 3):
        agree(gloo_pool.run(num_ranks, run_rank, micro_batch, True, 0.4), wanted, exact=True)


@pytest.mark.parametrize("reproducible", [True, False])
def test_parts_as_large_as_a_group_have_the_bits_of_one_pass(gloo_pool: GlooPool, reproducible: bool) -> None:
    """With the same dropout."""
    (wanted,) = gloo_pool.run(1, run_rank, None, reproducible, 0.4)
    agree(gloo_pool.run(1, run_rank, 100, reproducible, 0.4), wanted, exact=True)


class CountedNorm(nn.SyncBatchNorm):
    """Counts its training passes, each of which would be a collective on GPUs."""

    passes = 0

    def forward(self, input: Tensor) -> Tensor:
        self.passes += 1
        return input


def count_passes(world: World, micro_batch: int, streams: dict[int, int]) -> tuple[int, Tensor]:
    """Of a batch norm over ranks in one step, and this rank's part of the gradient."""
    torch.manual_seed(0)
    norm = CountedNorm(8)
    embedder, objective = Embedder(nn.Sequential(nn.Linear(6, 8, bias=False), norm), 8, DIM), objective_of(world)
    for parameter in norm.parameters():
        parameter.requires_grad_(False)
    images, labels, ids, mine = samples(world, streams)
    optim = optimizer(embedder, objective, name="sgd", backbone_lr=0.1, head_lr=0.1, bank_lr=0.1, weight_decay=0.0)
    rates = schedule("constant", total_steps=1)
    # Not wrapped: DDP takes such layers on GPUs only.
    trainee = Trainee(embedder, objective, optim, rates, world, micro_batch=micro_batch)
    train_step(trainee, Batch(images, labels, ids, mine), 0)
    return norm.passes, torch.cat([p.grad.flatten() for p in embedder.parameters() if p.grad is not None])


def test_a_batch_norm_over_ranks_meets_them_in_every_part(gloo_pool: GlooPool) -> None:
    ((_, wanted),) = gloo_pool.run(1, count_passes, 100, STREAMS)
    found = gloo_pool.run(2, count_passes, 2, STREAMS)  # 9 and 4 samples
    assert [passes for passes, _ in found] == [10, 10]
    torch.testing.assert_close(found[0][1] + found[1][1], wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("micro_batch", [None, 2])
def test_a_rank_without_samples(gloo_pool: GlooPool, micro_batch: int | None) -> None:
    streams = {0: 7, 1: 0}
    (wanted,) = gloo_pool.run(1, run_rank, None, False, 0.0, False, {0: 7})
    agree(gloo_pool.run(2, run_rank, micro_batch, False, 0.0, False, streams), wanted)


@pytest.mark.parametrize("reproducible", [True, False])
def test_parts_do_not_multiply_the_collectives(gloo_pool: GlooPool, reproducible: bool) -> None:
    """Neither the losses' nor the network's, at different numbers of parts."""
    counts = [
        [rank.calls for rank in gloo_pool.run(2, run_rank, micro_batch, reproducible)]
        for micro_batch in (None, 100, 3, 1)
    ]
    assert counts[0][0][0]["reduce_scatter_tensor"] == 2  # the gradient of the embeddings, one for each loss
    assert all(count == counts[0] for count in counts)


def by_hand(world: World, micro_batch: int, two_passes: bool) -> tuple[float, Tensor]:
    """Loss and gradient with dropout: in two passes under DDP, or one pass over the same parts that are all kept."""
    embedder, objective = network(dropout=0.4), objective_of(world)
    images, labels, ids, _ = samples(world, STREAMS)
    parts = parts_of(images, {world.rank: len(images)}, (7, 0), micro_batch)
    model = data_parallel(embedder, world) if two_passes else embedder

    def forward(part: Part) -> Tensor:
        draw_from(part)
        embeddings: Tensor = model(part.images)
        return embeddings

    def loss_of(embeddings: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        value, terms = objective(embeddings, labels, ids, 0)
        return value, terms

    if two_passes:
        loss, _ = backward_in_two_passes(model, forward, parts, loss_of, world, reproducible=False)
    else:
        loss, _ = loss_of(torch.cat([forward(part) for group in parts for part in group]))
        loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in embedder.parameters() if p.grad is not None])
    if not two_passes and world.num_ranks > 1:
        dist.all_reduce(gradient, group=world.group)
    return loss.item(), gradient


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("micro_batch", [1, 3])
def test_both_passes_drop_the_same(gloo_pool: GlooPool, num_ranks: int, micro_batch: int) -> None:
    kept = gloo_pool.run(num_ranks, by_hand, micro_batch, False)
    for (loss, gradient), (wanted_loss, wanted) in zip(
        gloo_pool.run(num_ranks, by_hand, micro_batch, True), kept, strict=True
    ):
        assert loss == pytest.approx(wanted_loss, rel=2e-6)
        torch.testing.assert_close(gradient, wanted, rtol=2e-5, atol=2e-6)


@pytest.mark.parametrize("reproducible", [True, False])
def test_running_statistics_see_every_sample_once_a_step(gloo_pool: GlooPool, reproducible: bool) -> None:
    """The first pass leaves them alone; parts as large as the batch move them as one pass does."""
    streams = {0: 12}
    whole, large = (gloo_pool.run(1, run_rank, size, reproducible, 0.0, True, streams)[0] for size in (None, 100))
    assert whole.buffers["backbone.1.num_batches_tracked"] == 2
    for name, buffer in whole.buffers.items():
        assert torch.equal(large.buffers[name], buffer), name
    (parts,) = gloo_pool.run(1, run_rank, 4, reproducible, 0.0, True, streams)
    assert parts.buffers["backbone.1.num_batches_tracked"] == 2 * 3


def test_running_statistics_are_those_of_the_parts_in_turn() -> None:
    embedder, world = network(batch_norm=True), World()
    objective = objective_of(world)
    images, labels, ids, _ = samples(world, STREAMS)
    before = {name: buffer.clone() for name, buffer in embedder.named_buffers()}
    seen: list[dict[str, Tensor]] = []

    def forward(part: Part) -> Tensor:
        embeddings: Tensor = embedder(part.images)
        return embeddings

    def loss_of(embeddings: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        seen.append({name: buffer.clone() for name, buffer in embedder.named_buffers()})
        value, terms = objective(embeddings, labels, ids, 0)
        return value, terms

    backward_in_two_passes(embedder, forward, parts_of(images, {0: 13}, (0,), 5), loss_of, world, reproducible=False)
    assert all(torch.equal(seen[0][name], buffer) for name, buffer in before.items())
    alone = network(batch_norm=True)
    for part in images.split(5):
        alone(part)
    for name, buffer in alone.named_buffers():
        torch.testing.assert_close(dict(embedder.named_buffers())[name], buffer)

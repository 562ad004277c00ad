"""Whatever holds the backbone and however its passes are made: the steps are those of one process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from dmlscale.data.types import Batch
from dmlscale.distributed.fully_sharded import fully_sharded, held_here
from dmlscale.distributed.world import World
from dmlscale.distributed.wrap import data_parallel
from dmlscale.models.backbone import backbone
from dmlscale.models.blocks import find_blocks
from dmlscale.models.checkpointing import recompute_activations
from dmlscale.models.compilation import compile_blocks
from dmlscale.models.embedder import Embedder
from dmlscale.training import checkpoint
from dmlscale.training.optim import optimizer, schedule
from dmlscale.training.state import Record, tensors
from dmlscale.training.step import Trainee, train_step
from tests.distributed.pool import GlooPool
from tests.training.test_accumulate import DIM, STREAMS, objective_of, samples

STEPS = 3
WITH_EMPTY = {0: 5, 1: 0, 2: 4}


@dataclass(frozen=True)
class Way:
    """How a network trains."""

    parallel: str = "ddp"
    checkpointing: bool = False
    micro_batch: int | None = None
    compile: bool = False
    clip_norm: float | None = None
    optimizer: str = "adamw"
    nodes: tuple[str, ...] = ()  # the name of each rank's, for fsdp within nodes
    dropout: float = 0.0
    network: str = "layers"
    streams: dict[int, int] = field(default_factory=lambda: STREAMS)
    dtype: torch.dtype = torch.float64
    half_precision: bool = False


@dataclass
class Outcome:
    """Of all steps: losses, gradients of the whole network, and the parameters and buffers after them."""

    losses: list[float]
    gradients: list[list[Tensor]]
    parameters: list[Tensor]
    banks: Tensor
    buffers: list[Tensor]


def network(way: Way) -> Embedder:
    torch.manual_seed(0)
    if way.network != "layers":
        options = {"norm_layer": "groupnorm1", "channels": [8, 8, 8, 8], "stem_width": 8}
        net, features = backbone(
            way.network,
            channels=1,
            options=options if "resnet" in way.network else {"img_size": 32, "patch_size": 8, "depth": 2},
        )
        return Embedder(net, features, DIM, channels_last=not way.half_precision).to(way.dtype)
    middle = nn.Sequential(nn.Linear(8, 7), nn.LayerNorm(7), nn.Tanh(), nn.Dropout(way.dropout))
    net = nn.Sequential(nn.Linear(6, 8), middle, nn.Sequential(nn.Linear(7, 8), nn.Tanh()))
    return Embedder(net, 8, DIM, channels_last=False, normalize=False).to(way.dtype)


def parallel(way: Way, embedder: Embedder, world: World) -> nn.Module:
    blocks = find_blocks(embedder.backbone)
    if way.compile:
        compile_blocks(blocks)
    if way.checkpointing:
        recompute_activations(blocks)
    if way.parallel == "ddp":
        return data_parallel(embedder, world)
    node = way.nodes[world.rank] if way.nodes else None
    return fully_sharded(
        embedder, blocks, world, half_precision=way.half_precision, by_node=node is not None, node=node
    )


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def run_rank(world: World, way: Way) -> Outcome:
    embedder, objective = network(way), objective_of(world).to(way.dtype)
    model = parallel(way, embedder, world)
    name: Any = way.optimizer
    rates: Any = {"backbone_lr": 0.03, "head_lr": 0.03, "bank_lr": 0.03, "weight_decay": 0.01, "eps": 1e-3}
    trainee = Trainee(
        model,
        objective,
        optimizer(embedder, objective, name=name, **rates),
        schedule("cosine", total_steps=STEPS),
        world,
        clip_norm=way.clip_norm,
        micro_batch=way.micro_batch,
        half_precision=way.half_precision,
    )
    out = Outcome([], [], [], torch.empty(0), [])
    for step in range(STEPS):
        images, labels, ids, mine = samples(world, way.streams)
        if way.network != "layers":
            images = images[:, :1, None, None] * torch.linspace(-1, 1, 32 * 32).view(1, 1, 32, 32).sin()
        loss, _ = train_step(trainee, Batch(images.to(way.dtype) + step / 10, labels, ids, mine), step)
        out.losses.append(loss.item())
        out.gradients.append([whole(p.grad) for p in embedder.parameters() if p.grad is not None])
    out.parameters = [whole(p) for p in embedder.parameters()]
    (bank,) = objective.banks()
    out.banks = bank.weight.detach().clone()
    out.buffers = [buffer.clone() for buffer in embedder.buffers()]
    return out


def agree(ranks: list[Outcome], wanted: Outcome, atol: float) -> None:
    close: Any = {"rtol": atol, "atol": atol}
    for found in ranks:
        assert found.losses == pytest.approx(wanted.losses, rel=atol, abs=atol)
        for ours, theirs in zip(found.gradients, wanted.gradients, strict=True):
            torch.testing.assert_close(ours, theirs, **close)
        torch.testing.assert_close(found.parameters, wanted.parameters, **close)
    torch.testing.assert_close(torch.cat([found.banks for found in ranks]), wanted.banks, **close)


@pytest.mark.parametrize("num_ranks", [2, 3])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    "way",
    [
        {},
        {"checkpointing": True},
        {"micro_batch": 2},
        {"checkpointing": True, "micro_batch": 1, "clip_norm": 0.1},
        {"clip_norm": 0.1, "optimizer": "sgd", "streams": WITH_EMPTY},
        {"micro_batch": 2, "streams": WITH_EMPTY, "checkpointing": True},
    ],
    ids=str,
)
def test_steps_are_those_of_one_process(
    gloo_pool: GlooPool, parallel: str, way: dict[str, Any], num_ranks: int
) -> None:
    made = Way(parallel=parallel, **way)
    wanted = run_rank(World(), Way(streams=made.streams, clip_norm=made.clip_norm, optimizer=made.optimizer))
    agree(gloo_pool.run(num_ranks, run_rank, made), wanted, 1e-10)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_one_rank_trains_as_it_does_without(gloo_pool: GlooPool, parallel: str) -> None:
    agree(gloo_pool.run(1, run_rank, Way(parallel=parallel, checkpointing=True)), run_rank(World(), Way()), 1e-10)


def test_a_rank_holds_the_same_on_each_node(gloo_pool: GlooPool) -> None:
    way = Way(parallel="fsdp", nodes=("a", "a", "b", "b"), clip_norm=0.1, streams={0: 5, 1: 4, 2: 4, 3: 1})
    wanted = run_rank(World(), Way(clip_norm=0.1, streams=way.streams))
    agree(gloo_pool.run(4, run_rank, way), wanted, 1e-10)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("micro_batch", [None, 2])
def test_dropout_is_drawn_again_as_it_was(gloo_pool: GlooPool, parallel: str, micro_batch: int | None) -> None:
    plain = gloo_pool.run(2, run_rank, Way(dropout=0.5))
    again = gloo_pool.run(2, run_rank, Way(parallel=parallel, checkpointing=True, dropout=0.5))
    agree(again, joined(plain), 1e-10)
    if micro_batch is not None:  # parts draw for themselves, so they are compared with parts
        parts = gloo_pool.run(2, run_rank, Way(micro_batch=micro_batch, dropout=0.5))
        way = Way(parallel=parallel, micro_batch=micro_batch, checkpointing=True, dropout=0.5)
        agree(gloo_pool.run(2, run_rank, way), joined(parts), 1e-10)


def joined(ranks: list[Outcome]) -> Outcome:
    """The outcome of all ranks, as of one process."""
    first = ranks[0]
    banks = torch.cat([rank.banks for rank in ranks])
    return Outcome(first.losses, first.gradients, first.parameters, banks, first.buffers)


@pytest.mark.parametrize("network", ["resnet10t", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("half_precision", [False, True])
def test_a_backbone_of_timm_in_shards_gives_the_numbers_of_a_whole_one(
    gloo_pool: GlooPool, network: str, half_precision: bool
) -> None:
    """In half precision as well: what is sent in bf16 is what autocast rounds in any case."""
    same: dict[str, Any] = {"network": network, "half_precision": half_precision, "dtype": torch.float32}
    whole_ones = gloo_pool.run(2, run_rank, Way(**same, optimizer="sgd"))
    shards = gloo_pool.run(2, run_rank, Way(**same, optimizer="sgd", parallel="fsdp", checkpointing=True))
    agree(shards, joined(whole_ones), 1e-4)


def saved(world: World, way: Way, folder: Path) -> dict[str, Tensor]:
    """All tensors of a run after a step, whole; they are also in the folder."""
    embedder, objective = network(way), objective_of(world).to(way.dtype)
    model = parallel(way, embedder, world)
    rates: Any = {"backbone_lr": 0.03, "head_lr": 0.03, "bank_lr": 0.03, "weight_decay": 0.01}
    optim = optimizer(embedder, objective, name="adamw", **rates)
    newest = checkpoint.latest(folder)
    if newest is None:
        trainee = Trainee(model, objective, optim, schedule("constant", total_steps=1), world)
        images, labels, ids, mine = samples(world, way.streams)
        train_step(trainee, Batch(images.to(way.dtype), labels, ids, mine), 0)
        record = Record(1, {}, world.num_ranks, {}, {})
        checkpoint.save(folder, tensors(embedder, objective, optim, world), record, world, keep=1)
    else:
        checkpoint.load(newest, tensors(embedder, objective, optim, world), world)
    return {name: whole(tensor) for name, tensor in tensors(embedder, objective, optim, world).items()}


@pytest.mark.parametrize(("before", "after"), [("aabb", "aaa"), ("aabb", "abab"), ("", "abab"), ("abab", "")])
def test_checkpoints_of_shards_within_nodes_are_read_by_all(
    gloo_pool: GlooPool, tmp_path: Path, before: str, after: str
) -> None:
    streams = {0: 5, 1: 4, 2: 4, 3: 1}
    first, then = (
        Way(parallel="fsdp" if nodes else "ddp", nodes=tuple(nodes), streams=streams) for nodes in (before, after)
    )
    written = gloo_pool.run(len(before) or 2, saved, first, tmp_path)
    for rank in (*written, *gloo_pool.run(len(after) or 2, saved, then, tmp_path)):
        assert rank.keys() == written[0].keys()
        assert all(torch.equal(rank[name], written[0][name]) for name in rank)


def held_bytes(world: World, way: Way) -> int:
    """Bytes of parameters and optimizer state on this rank after a step."""
    embedder, objective = network(way), objective_of(world)
    model = parallel(way, embedder, world)
    optim = optimizer(embedder, objective, name="adamw", backbone_lr=0.1, head_lr=0.1, bank_lr=0.1, weight_decay=0.0)
    model(torch.ones(2, 1, 32, 32)).sum().backward()
    optim.step()
    tensors = [t for p in embedder.parameters() for t in (p, *optim.state_of(p).values())]
    return sum(held_here(t).nbytes for t in tensors)


@pytest.mark.parametrize("nodes", [(), ("a", "a"), ("a", "b")])
def test_two_ranks_hold_half_each(gloo_pool: GlooPool, nodes: tuple[str, ...]) -> None:
    """Also one on each node, where going by node would be to hold the whole on each."""
    same: dict[str, Any] = {"network": "resnet10t", "dtype": torch.float32, "nodes": nodes}
    ways = [Way(parallel=parallel, **same) for parallel in ("ddp", "fsdp")]
    whole_ones, shards = (gloo_pool.run(2, held_bytes, way) for way in ways)
    for rank in range(2):
        assert 0.49 < shards[rank] / whole_ones[rank] < 0.53


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_compiled_steps_are_those_of_one_process(gloo_pool: GlooPool, parallel: str) -> None:
    way = Way(parallel=parallel, compile=True, checkpointing=True, micro_batch=2, streams=WITH_EMPTY)
    agree(gloo_pool.run(2, run_rank, way), run_rank(World(), Way(streams=WITH_EMPTY)), 1e-10)

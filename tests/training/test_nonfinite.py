"""A step that is not finite leaves nothing behind: the run is the one without it, to the last bit."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import dmlscale
from dmlscale.data.types import Batch
from dmlscale.distributed.fully_sharded import fully_sharded, held_here
from dmlscale.distributed.world import World
from dmlscale.distributed.wrap import data_parallel
from dmlscale.models.embedder import Embedder
from dmlscale.training.nonfinite import KeptBuffers, NotFiniteError, SkippedStep, describe, is_finite
from dmlscale.training.objective import Objective
from dmlscale.training.optim import optimizer, schedule
from dmlscale.training.step import Trainee, train_step
from tests.distributed.pool import GlooPool
from tests.training.test_accumulate import samples

DIM = 16  # of whole vector registers: the fused AdamW rounds what is left over in another way
STEPS, BAD = 5, 2
BAD_SAMPLE = 6  # of the second stream: on the last rank of two
Fault = Literal["input", "bank gradient", "backbone gradient", "loss"]


@dataclass(frozen=True)
class Way:
    """How a network trains, and what goes wrong in step `BAD`."""

    parallel: Literal["ddp", "fsdp", "reproducible"] = "ddp"
    fault: Fault = "input"
    optimizer: Literal["adamw", "sgd"] = "adamw"
    clip_norm: float | None = None
    micro_batch: int | None = None
    batch_norm: bool = False
    class_sampling: float | None = None
    leave_out: bool = False  # the oracle: step `BAD` is not made at all
    again: tuple[int, ...] = field(default=(BAD,))  # the steps that go wrong


@dataclass
class Outcome:
    """Everything that is left of a run on a rank; of the last bad step what was told."""

    tensors: dict[str, Tensor]
    shards: dict[str, Tensor]
    skipped: SkippedStep | None
    losses: list[float]


def make(world: World, way: Way) -> Trainee:
    torch.manual_seed(0)
    middle = nn.BatchNorm1d(8) if way.batch_norm else nn.LayerNorm(8)
    embedder = Embedder(nn.Sequential(nn.Linear(6, 8), middle, nn.Tanh()), 8, DIM, channels_last=False)
    same: dict[str, Any] = {"embedding_dim": DIM, "group": world.group}
    objective = Objective(
        [
            (dmlscale.GlobalLoss("norm_softmax", num_classes=5, class_sampling=way.class_sampling, **same), 1.0),
            (dmlscale.GlobalLoss("supervised_contrastive", memory_size=20, **same), 0.5),
            (dmlscale.GlobalLoss("center", num_classes=5, **same), 0.1),  # moves by a rule of its own
        ]
    )
    model: nn.Module = embedder
    if way.parallel == "ddp":
        model = data_parallel(embedder, world)
    elif way.parallel == "fsdp":
        model = fully_sharded(embedder, [], world)
    rates: Any = {"backbone_lr": 0.05, "head_lr": 0.05, "bank_lr": 0.05, "weight_decay": 0.01}
    return Trainee(
        model,
        objective,
        optimizer(embedder, objective, name=way.optimizer, **rates),
        schedule("cosine", total_steps=STEPS),
        world,
        clip_norm=way.clip_norm,
        reproducible=way.parallel == "reproducible",
        micro_batch=way.micro_batch,
    )


def broken(batch: Batch, trainee: Trainee, fault: Fault) -> tuple[Batch, list[Any]]:
    """The batch of the bad step, and hooks to take away after it. Only the last rank is hurt."""
    last = trainee.world.rank == trainee.world.num_ranks - 1
    if fault == "input":
        images = batch.images.clone()
        images[batch.ids == BAD_SAMPLE, 0] = math.nan
        return batch._replace(images=images), []
    if fault == "loss":
        return batch, [trainee.objective.register_forward_hook(lambda m, i, out: (out[0] * math.inf, out[1]))]
    parameter = trainee.objective.banks()[0].weight
    if fault == "backbone gradient":
        parameter = next(p for p in trainee.model.parameters() if p.requires_grad)
    return batch, [parameter.register_hook(lambda gradient: gradient * math.inf)] if last else []


def run_rank(world: World, way: Way) -> Outcome:
    trainee, skipped, losses = make(world, way), None, []
    for step in range(STEPS):
        images, labels, ids, mine = samples(world, {0: 5, 1: 4, 2: 4})
        batch = Batch(images + step / 10, labels, ids, mine)
        hooks: list[Any] = []
        if step in way.again and way.leave_out:
            continue
        if step in way.again:
            batch, hooks = broken(batch, trainee, way.fault)
        try:
            losses.append(train_step(trainee, batch, step)[0].item())
        except NotFiniteError as error:
            skipped = describe(error, trainee.model, trainee.objective, batch, (step + 1, 0, step), world)
        for hook in hooks:
            hook.remove()
    named = [*trainee.model.named_parameters(), *trainee.model.named_buffers()]
    tensors = {name: held_here(t).detach().clone() for name, t in named}
    shards: dict[str, Tensor] = {}
    for n, loss in enumerate(trainee.objective.losses()):
        shards |= {f"{n}.{name}": t.detach().clone() for name, t in loss.named_parameters()}
        tensors[f"{n}.steps"] = loss.steps.clone()
        if loss.memory is not None:
            shards |= {f"{n}.memory": loss.memory.embeddings, f"{n}.labels": loss.memory.labels}
            tensors[f"{n}.entered"] = loss.memory.entered
    for group in trainee.optimizer.param_groups:
        for n, parameter in enumerate(group["params"]):
            for key, value in trainee.optimizer.state_of(parameter).items():
                place = shards if group["name"].startswith("bank") and key != "step" else tensors
                place[f"{group['name']}.{group['weight_decay']}.{n}.{key}"] = held_here(value).detach().clone()
    return Outcome(tensors, shards, skipped, losses)


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    differ = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    assert not differ
    assert all(bool(torch.isfinite(t).all()) for t in found.values() if t.is_floating_point())


@pytest.mark.parametrize("num_ranks", [1, 2, 3])
@pytest.mark.parametrize(
    "way",
    [
        {},
        {"fault": "loss", "optimizer": "sgd"},
        {"batch_norm": True},
        {"fault": "bank gradient"},
        {"fault": "bank gradient", "clip_norm": 0.5, "class_sampling": 0.5},
        {"fault": "bank gradient", "class_sampling": 0.5},
        {"fault": "backbone gradient", "micro_batch": 5, "batch_norm": True},
        {"clip_norm": 0.5, "again": (1, 2, 4)},
        {"parallel": "fsdp"},
        {"parallel": "fsdp", "fault": "bank gradient", "micro_batch": 2},
        {"parallel": "fsdp", "clip_norm": 0.5},
        {"parallel": "reproducible", "again": (0, 4)},
        {"parallel": "reproducible", "fault": "bank gradient", "micro_batch": 2},
    ],
    ids=str,
)
def test_a_skipped_step_leaves_nothing_behind(gloo_pool: GlooPool, way: dict[str, Any], num_ranks: int) -> None:
    found = gloo_pool.run(num_ranks, run_rank, Way(**way))
    wanted = gloo_pool.run(num_ranks, run_rank, Way(**way, leave_out=True))
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.losses == theirs.losses == found[0].losses
        assert len(ours.losses) == STEPS - len(Way(**way).again)
        assert_same(ours.tensors, theirs.tensors)
        assert_same(ours.shards, theirs.shards)


@pytest.mark.parametrize("fault", ["input", "bank gradient", "loss"])
def test_bits_do_not_depend_on_the_number_of_ranks(gloo_pool: GlooPool, fault: Fault) -> None:
    way = Way("reproducible", fault)
    (alone,) = gloo_pool.run(1, run_rank, way)
    for num_ranks in (2, 3):
        ranks = gloo_pool.run(num_ranks, run_rank, way)
        for rank in ranks:
            assert_same(rank.tensors, alone.tensors)
        assert_same({name: torch.cat([rank.shards[name] for rank in ranks]) for name in alone.shards}, alone.shards)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp", "reproducible"])
def test_the_broken_sample_and_its_rank_are_named(gloo_pool: GlooPool, parallel: Any) -> None:
    for rank in gloo_pool.run(2, run_rank, Way(parallel)):
        skipped = rank.skipped
        assert skipped is not None
        assert (skipped.step, skipped.step_of_epoch) == (BAD + 1, BAD)
        assert math.isnan(skipped.loss)
        assert sorted(skipped.ids.tolist()) == list(range(13))
        for flags in (skipped.broken_inputs, skipped.broken_embeddings):
            assert skipped.ids[flags].tolist() == [BAD_SAMPLE]
            assert skipped.ranks[flags].tolist() == [1]
        assert "model.head.weight" in skipped.gradients
        assert not skipped.parameters


@pytest.mark.parametrize(
    ("parallel", "fault", "name"),
    [
        ("ddp", "bank gradient", "objective.terms.0.bank.weight"),
        ("fsdp", "bank gradient", "objective.terms.0.bank.weight"),
        ("ddp", "backbone gradient", "model.backbone.0.weight"),
    ],
)
def test_the_broken_gradient_is_named_wherever_it_lies(
    gloo_pool: GlooPool, parallel: Any, fault: Fault, name: str
) -> None:
    for rank in gloo_pool.run(2, run_rank, Way(parallel, fault)):
        assert rank.skipped is not None
        assert rank.skipped.gradients == (name,)
        assert math.isfinite(rank.skipped.loss)
        assert not rank.skipped.broken_embeddings.any()


values = st.floats(width=32, allow_nan=True, allow_infinity=True)


@given(st.lists(st.lists(values, min_size=1, max_size=5), min_size=1, max_size=4), values)
def test_finite_is_what_is_finite_in_every_number(gradients: list[list[float]], loss: float) -> None:
    """Also of numbers whose squares overflow."""
    model = nn.ParameterList(nn.Parameter(torch.zeros(len(row))) for row in gradients)
    for parameter, row in zip(model, gradients, strict=True):
        parameter.grad = torch.tensor(row)
    wanted = all(math.isfinite(number) for row in [*gradients, [loss]] for number in row)
    assert is_finite(torch.tensor(loss), model, Objective([]), World()) == wanted


def test_buffers_of_all_kinds_come_back() -> None:
    norm = nn.BatchNorm1d(3)
    norm.register_buffer("rounded", torch.ones(2, dtype=torch.bfloat16))
    kept = KeptBuffers(norm)
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    kept.keep()
    norm(torch.randn(5, 3))
    norm.get_buffer("rounded").fill_(math.nan)
    kept.bring_back()
    assert_same(dict(norm.named_buffers()), before)

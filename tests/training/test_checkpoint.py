from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dmlscale
from dmlscale.distributed.world import World
from dmlscale.models.embedder import Embedder
from dmlscale.training import checkpoint
from dmlscale.training.objective import Objective
from dmlscale.training.optim import optimizer
from dmlscale.training.optimizers import Optimizers
from dmlscale.training.state import Record, tensors
from tests.distributed.pool import GlooPool

NUM_CLASSES, DIM = 7, 8
Parts = tuple[Embedder, Objective, Optimizers]


def parts(world: World, num_classes: int = NUM_CLASSES, name: str = "adamw") -> Parts:
    torch.manual_seed(0)
    embedder = Embedder(nn.Linear(6, 4), 4, DIM, channels_last=False)
    loss = dmlscale.GlobalLoss("proxy_anchor", num_classes=num_classes, embedding_dim=DIM, group=world.group)
    objective = Objective([(loss, 1.0)])
    optim = optimizer(
        embedder,
        objective,
        name="sgd" if name == "sgd" else "adamw",
        backbone_lr=0.1,
        head_lr=0.1,
        bank_lr=0.1,
        weight_decay=0.0,
    )
    return embedder, objective, optim


def state_of(world: World, made: Parts) -> dict[str, Tensor]:
    """Everything, with banks as this rank's rows."""
    found = tensors(*made, world)
    return {name: (t.to_local() if hasattr(t, "to_local") else t).clone() for name, t in found.items()}


def save(world: World, folder: Path, step: int = 1, keep: int = 2, name: str = "adamw") -> dict[str, Tensor]:
    made = parts(world, name=name)
    embedder, objective, optim = made
    mine = torch.arange(9)[world.rank :: world.num_ranks]
    loss, _ = objective(embedder(torch.randn(9, 6, generator=torch.Generator().manual_seed(1))[mine]), mine % 7)
    loss.backward()
    for p in embedder.parameters():  # what the data parallelism does
        if world.num_ranks > 1 and p.grad is not None:
            torch.distributed.all_reduce(p.grad, group=world.group)
    optim.step()
    record = Record(step, {"epoch": 1, "step": 2}, world.num_ranks, {"a": 1}, {})
    checkpoint.save(folder, tensors(*made, world), record, world, keep=keep)
    return state_of(world, made)


def load(world: World, folder: Path, name: str = "adamw") -> dict[str, Tensor]:
    made = parts(world, name=name)
    newest = checkpoint.latest(folder)
    assert newest is not None
    checkpoint.load(newest, tensors(*made, world), world)
    return state_of(world, made)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize(("before", "after"), [(1, 3), (4, 2), (3, 1), (2, 4), (3, 3)])
def test_another_number_of_ranks_reads_the_same_bits(
    gloo_pool: GlooPool, tmp_path: Path, before: int, after: int, name: str
) -> None:
    saved = gloo_pool.run(before, save, tmp_path, 1, 2, name)
    loaded = gloo_pool.run(after, load, tmp_path, name)
    for key in saved[0]:
        sharded = "objective" in key and not key.endswith((".step", ".steps"))
        if sharded:
            assert torch.equal(torch.cat([s[key] for s in saved]), torch.cat([s[key] for s in loaded])), key
        else:
            assert all(torch.equal(saved[0][key], s[key]) for s in loaded), key


def test_keeps_the_newest_and_never_chooses_a_half_written_one(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(World(), tmp_path, step)
    (tmp_path / ".partial-step_00000009-w2").mkdir()
    assert [path.name for path in checkpoint.list_checkpoints(tmp_path)] == ["step_00000002", "step_00000003"]
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    assert checkpoint.read_record(newest) == Record(3, {"epoch": 1, "step": 2}, 1, {"a": 1}, {})


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    save(World(), tmp_path)
    newest = checkpoint.latest(tmp_path)
    assert newest is not None
    with pytest.raises(checkpoint.CheckpointError, match=r"objective.*number of classes"):
        checkpoint.load(newest, tensors(*parts(World(), num_classes=9), World()), World())
    with pytest.raises(checkpoint.CheckpointError, match="no tensor 'other'"):
        checkpoint.load(newest, {"other": torch.zeros(1)}, World())
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint"):
        checkpoint.read_record(tmp_path)
    (newest / "record.json").write_text("{")
    with pytest.raises(checkpoint.CheckpointError, match="damaged"):
        checkpoint.read_record(newest)

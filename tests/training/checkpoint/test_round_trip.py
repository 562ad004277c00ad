from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

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
    with pytest.raises(checkpoint.CheckpointError, match=r"cannot read .*record\.json: it is no JSON"):
        checkpoint.read_record(newest)


def kinds(world: World, seed: int) -> dict[str, Tensor]:
    """Tensors of every type and of odd shapes; those whose names begin with "cut" lie in rows over the ranks."""
    drawn = torch.Generator().manual_seed(seed)
    found = {
        "number": torch.tensor(float(seed)),
        "count": torch.tensor(2**40 + seed),
        "empty": torch.zeros(0, 3),
        "flags": torch.rand(5, generator=drawn) > 0.5,
        "bytes": torch.randint(0, 256, (3, 2), generator=drawn).to(torch.uint8),
        "half": torch.randn(4, 3, generator=drawn).to(torch.float16),
        "brain": torch.randn(4, 3, generator=drawn).to(torch.bfloat16),
        "turned": torch.randn(4, 3, generator=drawn).T,  # not in the order of its memory
        **{f"cut in {rows}": torch.randn(rows, 3, 2, generator=drawn).double() for rows in (0, 1, 2, 5, 7)},
    }
    return {name: in_rows(t, world) if name.startswith("cut") else t for name, t in found.items()}


def in_rows(tensor: Tensor, world: World) -> Tensor:
    if world.num_ranks == 1:
        return tensor
    assert world.group is not None
    here = tensor[slice(*world.share(len(tensor)))].clone()
    mesh = DeviceMesh.from_group(world.group, "cpu")
    return DTensor.from_local(here, mesh, [Shard(0)], run_check=False, shape=tensor.shape, stride=tensor.stride())


def save_kinds(world: World, folder: Path) -> None:
    checkpoint.save(folder, kinds(world, 1), Record(1, {}, world.num_ranks, {}, {}), world, keep=1)


def load_kinds(world: World, folder: Path) -> None:
    found = kinds(world, 2)
    checkpoint.load(folder / "step_00000001", found, world)
    for name, tensor in kinds(world, 1).items():
        held, wanted = (t.to_local() if isinstance(t, DTensor) else t for t in (found[name], tensor))
        assert held.dtype == wanted.dtype
        assert torch.equal(held, wanted), name


@pytest.mark.parametrize("before", [1, 2, 3, 4])
def test_every_type_and_odd_shapes_at_every_number_of_ranks(gloo_pool: GlooPool, tmp_path: Path, before: int) -> None:
    """Also more ranks than rows."""
    gloo_pool.run(before, save_kinds, tmp_path)
    assert checkpoint.verify(tmp_path / "step_00000001") == []
    for after in (1, 2, 3, 4):
        gloo_pool.run(after, load_kinds, tmp_path)


def save_twice_held(world: World, folder: Path) -> None:
    mesh = DeviceMesh("cpu", torch.arange(4).view(2, 2))
    local = torch.full((3, 2), float(world.rank % 2))
    held = DTensor.from_local(local, mesh, [Replicate(), Shard(0)], run_check=False)
    checkpoint.save(folder, {"held": held}, Record(1, {}, world.num_ranks, {}, {}), world, keep=1)


def test_what_two_ranks_hold_is_written_once(gloo_pool: GlooPool, tmp_path: Path) -> None:
    gloo_pool.run(4, save_twice_held, tmp_path)
    found = torch.empty(6, 2)
    checkpoint.load(tmp_path / "step_00000001", {"held": found}, World())
    assert found[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert sum(file.stat().st_size > 200 for file in tmp_path.rglob("*.safetensors")) <= 2


def test_another_type_is_not_cast(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {"a": torch.ones(2)}, Record(1, {}, 1, {}, {}), World(), keep=1)
    with pytest.raises(checkpoint.CheckpointError, match=r"'a' is \(2,\) float32 there and \(2,\) float64 here"):
        checkpoint.load(tmp_path / "step_00000001", {"a": torch.ones(2).double()}, World())

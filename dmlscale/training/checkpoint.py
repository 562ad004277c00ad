"""Checkpoints that another number of ranks can read, and of which a half-written one is never chosen.

A checkpoint is a folder ``step_00000100`` with torch.distributed.checkpoint's files and ``record.json``. All ranks
write into a hidden folder first; rank 0 renames it when all are done. The folder must be on storage that every rank
sees. The run writes it itself rather than through Ray's ``report()``: that is the same with and without Ray, and it
is complete when `save` returns, where Ray's is only promised.
"""

from __future__ import annotations

import dataclasses
import json
import pickle
import re
import shutil
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor

from dmlscale.distributed.collectives import collective_device, max_over_ranks
from dmlscale.distributed.world import World
from dmlscale.training.state import Record

NAME = re.compile(r"step_(\d{8})")


class CheckpointError(ValueError):
    """A checkpoint that is missing, incomplete or of another shape."""


def save(folder: Path, tensors: dict[str, Tensor], record: Record, world: World, *, keep: int) -> Path:
    """Writes a checkpoint from all ranks together and returns its path.

    Args:
        folder: of the run's checkpoints.
        tensors: from `state.tensors`.
        record: where the run stands.
        world: the ranks; all of them call this.
        keep: how many of the newest to keep.
    """
    final = folder / f"step_{record.step:08d}"
    if _rank_0_says(int(final.exists()), world):
        return final  # an earlier attempt at the same step: the same numbers
    # The number of ranks in the name keeps a failed attempt's shards apart from those of another size.
    partial = folder / f".partial-{final.name}-w{world.num_ranks}"
    if world.rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    _barrier(world)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own internals
        dcp.save(
            {name: tensor.detach() for name, tensor in tensors.items()},
            storage_writer=dcp.FileSystemWriter(partial, single_file_per_rank=True),
            process_group=world.group,
            no_dist=world.num_ranks == 1,
        )
    _barrier(world)
    if world.rank == 0:
        (partial / "record.json").write_text(json.dumps(dataclasses.asdict(record), indent=1))
        partial.rename(final)
        for old in list_checkpoints(folder)[:-keep]:
            shutil.rmtree(old, ignore_errors=True)
    _barrier(world)
    return final


def load(path: Path, tensors: dict[str, Tensor], world: World) -> None:
    """Fills ``tensors`` in place from a checkpoint written at any number of ranks.

    Raises:
        CheckpointError: a tensor is missing or has another shape, or the files are damaged.
    """
    try:
        stored = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    except (OSError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    for name, tensor in tensors.items():
        size = getattr(stored.get(name), "size", None)
        if size is None:
            raise CheckpointError(f"{path}: no tensor {name!r}; was it written with another model or loss?")
        if tuple(size) != tuple(tensor.shape):
            raise CheckpointError(
                f"{path}: {name!r} is {tuple(size)} there and {tuple(tensor.shape)} here: "
                "the model, the loss or the number of classes has changed"
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dcp.load(
                tensors,
                storage_reader=dcp.FileSystemReader(path),
                process_group=world.group,
                no_dist=world.num_ranks == 1,
            )
        except Exception as error:  # torch raises its own kinds, and those of a damaged file
            raise CheckpointError(f"{path} is damaged: {str(error).splitlines()[0][:200]}") from error


def read_record(path: Path) -> Record:
    """The record of a checkpoint.

    Raises:
        CheckpointError: there is none, or it is not one of ours.
    """
    file = path / "record.json"
    if not file.is_file():
        raise CheckpointError(f"{path} is no checkpoint: it has no record.json")
    try:
        return Record(**json.loads(file.read_text()))
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error


def newest_for_all(folder: Path, world: World) -> Path | None:
    """`latest`, as rank 0 sees it: on shared storage ranks may see a new folder at different times."""
    found = latest(folder) if world.rank == 0 else None
    step = _rank_0_says(-1 if found is None else int(found.name.removeprefix("step_")), world)
    return None if step < 0 else folder / f"step_{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name))


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    found = list_checkpoints(folder)
    return found[-1] if found else None


def _rank_0_says(number: int, world: World) -> int:
    """Rank 0's number, on every rank."""
    lowest = -(2**53)
    number = number if world.rank == 0 else lowest
    said = torch.tensor([float(number)], dtype=torch.float64, device=collective_device(world))
    return int(max_over_ranks(said, world))


def _barrier(world: World) -> None:
    if world.num_ranks > 1:
        if torch.cuda.is_available() and dist.get_backend(world.group) == "nccl":
            dist.barrier(group=world.group, device_ids=[torch.cuda.current_device()])
        else:
            dist.barrier(group=world.group)

"""Reading a checkpoint at any number of ranks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dmlscale.distributed.collectives import collective_device, max_over_ranks
from dmlscale.distributed.world import World
from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.folder import latest, name_of, read_manifest
from dmlscale.training.checkpoint.manifest import Manifest
from dmlscale.training.checkpoint.piece_file import StoredFile, StoredPiece
from dmlscale.training.checkpoint.pieces import Piece, piece_here


def load(path: Path, tensors: Mapping[str, Tensor], world: World) -> None:
    """Fills ``tensors`` in place from a checkpoint written at any number of ranks.

    Raises:
        CheckpointError: a tensor is missing or has another shape, or the files are damaged.
    """
    manifest = read_manifest(path)
    _check_shapes(path, manifest, tensors)
    for name, tensor in tensors.items():
        _fill(path, manifest, piece_here(name, tensor))


def newest_for_all(folder: Path, world: World) -> Path | None:
    """`latest`, as rank 0 sees it: on shared storage ranks may see a new folder at different times."""
    found = latest(folder) if world.rank == 0 else None
    step = _rank_0_says(-1 if found is None else int(found.name.removeprefix("step_")), world)
    return None if step < 0 else folder / name_of(step)


def _check_shapes(path: Path, manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
    shapes = {piece.name: piece.shape for file in manifest.files for piece in file.pieces}
    for name, tensor in tensors.items():
        if name not in shapes:
            raise CheckpointError(f"{path}: no tensor {name!r}; was it written with another model or loss?")
        if shapes[name] != tuple(tensor.shape):
            raise CheckpointError(
                f"{path}: {name!r} is {shapes[name]} there and {tuple(tensor.shape)} here: "
                "the model, the loss or the number of classes has changed"
            )


def _fill(path: Path, manifest: Manifest, wanted: Piece) -> None:
    for file in manifest.files:
        for piece in file.pieces:
            if piece.name == wanted.name:
                _copy_overlap(path, file, piece, wanted)


def _copy_overlap(path: Path, file: StoredFile, stored: StoredPiece, wanted: Piece) -> None:
    there, here = [], []
    for offset, size, start, length in zip(
        stored.offsets, stored.sizes, wanted.offsets, wanted.tensor.shape, strict=True
    ):
        first, last = max(offset, start), min(offset + size, start + length)
        if first >= last:
            return
        there.append(slice(first - offset, last - offset))
        here.append(slice(first - start, last - start))
    try:
        with safe_open(path / file.name, framework="pt") as opened:
            read = opened.get_slice(stored.name)[tuple(there)] if there else opened.get_tensor(stored.name)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path / file.name} is damaged: {error}") from error
    with torch.no_grad():
        wanted.tensor[tuple(here)].copy_(read) if here else wanted.tensor.copy_(read)


def _rank_0_says(number: int, world: World) -> int:
    """Rank 0's number, on every rank."""
    lowest = -(2**53)
    number = number if world.rank == 0 else lowest
    said = torch.tensor([float(number)], dtype=torch.float64, device=collective_device(world))
    return int(max_over_ranks(said, world))

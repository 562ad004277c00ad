"""Reading a checkpoint at any number of ranks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from dmlscale.distributed.world import World
from dmlscale.training.checkpoint.agreement import gather_texts, together
from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.folder import read_manifest
from dmlscale.training.checkpoint.integrity import damage_for_all
from dmlscale.training.checkpoint.manifest import Manifest
from dmlscale.training.checkpoint.piece_file import StoredPiece, dtype_name
from dmlscale.training.checkpoint.piece_reader import Overlap, read_overlaps
from dmlscale.training.checkpoint.pieces import Piece, piece_here


def load(path: Path, tensors: Mapping[str, Tensor], world: World, *, is_verified: bool = False) -> None:
    """Fills ``tensors`` in place from a checkpoint written at any number of ranks.

    Each rank reads what it holds and nothing else.

    Args:
        path: of the checkpoint.
        tensors: from `state.tensors`, or some of them. After an error they hold anything.
        world: the ranks; all of them call this.
        is_verified: `newest_for_all` or `verify` has just found it whole, so that its digests need not be compared
            again.

    Raises:
        CheckpointError: a tensor is missing, has another shape or type, or the files are damaged; on all ranks alike.
    """
    damage = [] if is_verified else damage_for_all(path, world)
    if damage := damage or damage_met(path, tensors, world):
        raise CheckpointError(f"{path} is damaged ({'; '.join(damage)})")


def damage_met(path: Path, tensors: Mapping[str, Tensor], world: World) -> list[str]:
    """As `load`, of a checkpoint that was whole a moment ago.

    Returns:
        What of it is damaged now, the same on every rank; nothing if the tensors are filled.

    Raises:
        CheckpointError: a tensor is missing, or has another shape or type; on all ranks alike.
    """
    said = gather_texts(together(lambda: _fill(path, tensors), world), world)
    return list(dict.fromkeys(filter(None, said)))


def _fill(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Fills the tensors, and returns what damage kept it from that."""
    try:
        manifest = read_manifest(path)
    except CheckpointError as error:
        return str(error)
    _check_fit(path, manifest, tensors)
    held = {name: piece_here(name, tensor) for name, tensor in tensors.items()}
    for file in manifest.files:
        found = [_overlap(piece, held[piece.name]) for piece in file.pieces if piece.name in held]
        try:
            if overlaps := [overlap for overlap in found if overlap is not None]:
                read_overlaps(path / file.name, file, overlaps)
        except CheckpointError as error:
            return str(error)
    return ""


def _check_fit(path: Path, manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
    stored = defaultdict(list, manifest.pieces_by_tensor())
    for name, tensor in tensors.items():
        if not stored[name]:
            raise CheckpointError(f"{path}: no tensor {name!r}; was it written with another model or loss?")
        there, here = stored[name][0], (tuple(tensor.shape), dtype_name(tensor))
        if (there.shape, there.dtype) != here:
            raise CheckpointError(
                f"{path}: {name!r} is {there.shape} {there.dtype} there and {here[0]} {here[1]} here: "
                "the model, the loss or the number of classes has changed"
            )


def _overlap(stored: StoredPiece, wanted: Piece) -> Overlap | None:
    """What of a stored piece belongs to a piece of this rank."""
    there, here = [], []
    for offset, size, start, length in zip(
        stored.offsets, stored.sizes, wanted.offsets, wanted.tensor.shape, strict=True
    ):
        first, last = max(offset, start), min(offset + size, start + length)
        if first >= last:
            return None
        there.append((first - offset, last - offset))
        here.append(slice(first - start, last - start))
    return Overlap(stored, tuple(there), wanted.tensor[tuple(here)] if here else wanted.tensor)

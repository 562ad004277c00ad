"""Which part of each tensor a rank holds, and which of them it writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from dmlscale.distributed.world import World


@dataclass(frozen=True)
class Piece:
    """A box of a tensor.

    Args:
        name: of the tensor.
        shape: of the whole tensor.
        offsets: where the box begins, one number a dimension.
        tensor: the box itself, sharing memory with the run.
    """

    name: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    tensor: Tensor


def piece_here(name: str, tensor: Tensor) -> Piece:
    """What this rank holds of a tensor: its part of a DTensor, else all of it."""
    if not isinstance(tensor, DTensor):
        return Piece(name, tuple(tensor.shape), (0,) * tensor.dim(), tensor.detach())
    local = tensor.to_local().detach()
    chunks = tensor.__create_chunk_list__()  # the protocol by which torch.distributed.checkpoint asks
    offsets = tuple(chunks[0].offsets) if chunks else (0,) * tensor.dim()
    return Piece(name, tuple(tensor.shape), offsets, local)


def pieces_to_write(tensors: Mapping[str, Tensor], world: World) -> list[Piece]:
    """Those of this rank, so that all ranks together write everything once.

    Every rank writes its part of what is cut over ranks. What all hold is shared out: the largest first, each to the
    rank that has least of them so far; the same on every rank, with nothing said between them.
    """
    mine, load = [], [0] * world.num_ranks
    whole = [name for name, tensor in tensors.items() if not isinstance(tensor, DTensor)]
    for name in sorted(whole, key=lambda name: (-tensors[name].nbytes, name)):
        rank = load.index(min(load))
        load[rank] += tensors[name].nbytes
        if rank == world.rank:
            mine.append(piece_here(name, tensors[name]))
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor) and _is_first_copy(tensor):
            piece = piece_here(name, tensor)
            # A tensor without values is written too, else it would be missed: by rank 0, which has a first copy of all.
            if piece.tensor.numel() or (not tensor.numel() and world.rank == 0):
                mine.append(piece)
    return mine


def _is_first_copy(tensor: DTensor) -> bool:
    """Whether no other rank with a lower number holds the same part."""
    coordinate = tensor.device_mesh.get_coordinate()
    assert coordinate is not None
    return all(not isinstance(p, Replicate) or c == 0 for p, c in zip(tensor.placements, coordinate, strict=True))

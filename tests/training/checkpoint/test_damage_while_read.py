"""A file that is truncated while it is read is an error, not the end of the process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dmlscale.distributed.world import World
from dmlscale.training import checkpoint
from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.fetching import load_newest
from dmlscale.training.checkpoint.loading import damage_met
from dmlscale.training.checkpoint.piece_file import write_pieces
from dmlscale.training.checkpoint.piece_reader import Overlap, read_overlaps
from dmlscale.training.checkpoint.pieces import piece_here
from dmlscale.training.checkpoint.store import LocalStore
from tests.distributed.pool import GlooPool
from tests.training.checkpoint.made import pieces_of, values, write


def read_after_truncation(world: World, folder: Path) -> tuple[str, list[str], bool]:
    """The newest one is whole when it is looked at, and not when it is read."""
    said: list[str] = []
    found = {name: torch.full_like(tensor, -1.0) for name, tensor in values(0).items()}

    def damage(path: Path) -> Sequence[str]:
        torch.distributed.barrier(world.group)
        if path.name == "step_00000300" and world.rank == 0:
            for file in pieces_of(path):
                os.truncate(file, file.stat().st_size - 4)
        torch.distributed.barrier(world.group)
        return damage_met(path, found, world)

    newest = checkpoint.newest_for_all(folder, world, lambda fault: said.append(fault), damage)
    assert newest is not None
    return newest.name, said, all(torch.equal(found[name], tensor) for name, tensor in values(200).items())


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_the_one_before_is_read(gloo_pool: GlooPool, tmp_path: Path, num_ranks: int) -> None:
    gloo_pool.run(2, write, tmp_path, [200, 300])
    for name, said, is_read in gloo_pool.run(num_ranks, read_after_truncation, tmp_path):
        assert (name, is_read) == ("step_00000200", True)
        (fault,) = said
        assert fault.startswith("checkpoint step_00000300 is damaged (attempt-0000_rank-0000")
        assert fault.endswith("): going back to step_00000200")


def read_where_one_cannot(world: World, folder: Path) -> str:
    """A rank that has lost the storage for a moment."""
    said = [f"a: rank {world.num_ranks - 1} has a stale handle"]
    with pytest.raises(CheckpointError) as caught:
        checkpoint.newest_for_all(folder, world, print, lambda path: said)
    return str(caught.value)


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_whole_one_that_a_rank_cannot_read_is_not_passed_over(
    gloo_pool: GlooPool, tmp_path: Path, num_ranks: int
) -> None:
    """Those passed over are removed."""
    write(World(), tmp_path, [200, 300])
    for text in gloo_pool.run(num_ranks, read_where_one_cannot, tmp_path):
        assert text.startswith(f"{tmp_path}/step_00000300 is whole, but a worker could not read it (a: rank")


def test_a_single_value_with_a_stride(tmp_path: Path) -> None:
    path, into = tmp_path / "a.safetensors", torch.zeros(3)
    file = write_pieces(path, [piece_here("x", torch.tensor([7.0]))])
    read_overlaps(path, file, [Overlap(file.pieces[0], ((0, 1),), into[1::2])])
    assert into.tolist() == [0.0, 7.0, 0.0]


def test_what_does_not_fit_is_no_damage(tmp_path: Path) -> None:
    write(World(), tmp_path, [200, 300])
    with pytest.raises(CheckpointError, match="no tensor 'new'"):
        load_newest(LocalStore(tmp_path), {"new": torch.zeros(1)}, World(), print)


@pytest.mark.parametrize("is_cut", [False, True], ids=["rows", "columns"])
def test_a_file_that_becomes_shorter_after_it_was_opened(tmp_path: Path, is_cut: bool) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {name: torch.arange(2.0**21).reshape(2048, 1024) for name in ("first", "second")}
    file = write_pieces(path, [piece_here(name, tensor) for name, tensor in tensors.items()])
    columns = 1000 if is_cut else 1024
    into = {name: torch.zeros(2048, columns) for name in tensors}

    def overlaps() -> Iterator[Overlap]:
        for piece in file.pieces:
            yield Overlap(piece, ((0, 2048), (0, columns)), into[piece.name])
            os.truncate(path, 2**20)

    with pytest.raises(CheckpointError, match=r"^a\.safetensors: it ends too early$"):
        read_overlaps(path, file, overlaps())
    assert torch.equal(into["first"], tensors["first"][:, :columns])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int8, torch.bool])
@pytest.mark.parametrize("box", [(slice(0, 7), slice(0, 5)), (slice(2, 6), slice(0, 5)), (slice(1, 7), slice(2, 4))])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_any_box_into_any_memory(
    tmp_path: Path, dtype: torch.dtype, box: tuple[slice, slice], is_transposed: bool
) -> None:
    whole: Tensor = (torch.arange(70) % 3).reshape(7, 5, 2).to(dtype)
    others = torch.zeros(3, dtype=torch.int8)
    file = write_pieces(tmp_path / "a.safetensors", [piece_here("before", others), piece_here("whole", whole)])
    wanted = whole[box]
    into = torch.zeros_like(wanted.mT.contiguous()).mT if is_transposed else torch.zeros_like(wanted).contiguous()
    there = tuple((part.start, part.stop) for part in (*box, slice(0, 2)))
    read_overlaps(tmp_path / "a.safetensors", file, [Overlap(file.pieces[1], there, into)])
    assert torch.equal(into, wanted)

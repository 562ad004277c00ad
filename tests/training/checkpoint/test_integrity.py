"""Of damaged checkpoints the newest whole one is taken, and every rank takes the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dmlscale.distributed.world import World
from dmlscale.training import checkpoint
from tests.distributed.pool import GlooPool
from tests.training.checkpoint.made import pieces_of, read_values, step_path, values, write

STEPS = [100, 200, 300]


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def edit_step(path: Path) -> None:
    text = path.read_text()
    assert '"step": 300' in text
    path.write_text(text.replace('"step": 300', '"step": 301'))


DAMAGE_OF_A_FILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: os.truncate(path, path.stat().st_size - 1), "bytes, should have"),
    "empty": (lambda path: os.truncate(path, 0), "it has 0 bytes, should have"),
    "longer": (lambda path: path.write_bytes(path.read_bytes() + b"x"), "bytes, should have"),
    "missing": (lambda path: path.unlink(), "No such file"),
    "a bit of the values": (lambda path: flip(path, -1), "its digest does not match"),
    "a bit of the header": (lambda path: flip(path, 30), "its digest does not match"),
    "a folder": (make_folder, "no file"),
    "of another checkpoint": (
        lambda path: shutil.copy(step_path(path.parents[1], 200) / path.name, path),
        "its digest does not match",
    ),
}
DAMAGE_OF_THE_RECORD: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (lambda path: os.truncate(path, path.stat().st_size // 2), "it is no JSON"),
    "empty": (lambda path: os.truncate(path, 0), "it is no JSON"),
    "edited": (edit_step, "its digest does not match"),
    "a bit": (lambda path: flip(path, 200), "record.json: "),
    "not text": (lambda path: path.write_bytes(b"\xff\xfe"), "it is no text"),
    "of another checkpoint": (
        lambda path: shutil.copy(step_path(path.parents[1], 200) / path.name, path),
        "it is of step 200, its folder of step 300",
    ),
}


def newest(world: World, folder: Path) -> tuple[str, list[str]]:
    """Which checkpoint a rank goes on with, or the error, and what it said."""
    said: list[str] = []
    try:
        found = checkpoint.newest_for_all(folder, world, lambda fault: said.append(fault))
    except checkpoint.CheckpointError as error:
        return f"error: {error}", said
    return str(found and found.name), said


@pytest.fixture(scope="module")
def whole(gloo_pool: GlooPool, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of two ranks."""
    folder = tmp_path_factory.mktemp("whole")
    gloo_pool.run(2, write, folder, STEPS)
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(whole, tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("kind", DAMAGE_OF_A_FILE)
def test_the_one_before_a_damaged_file_is_taken(gloo_pool: GlooPool, folder: Path, kind: str, number: int) -> None:
    damage, what = DAMAGE_OF_A_FILE[kind]
    path = step_path(folder, 300)
    file = pieces_of(path)[number]
    damage(file)
    for num_ranks in (1, 3):
        for name, said in gloo_pool.run(num_ranks, newest, folder):
            assert name == "step_00000200"
            (fault,) = said
            assert fault.startswith(f"checkpoint step_00000300 is damaged ({file.name}: ")
            assert fault.endswith("): going back to step_00000200")
            assert what in fault
    (line,) = checkpoint.verify(path)
    assert line.startswith(file.name)
    assert what in line
    with pytest.raises(checkpoint.CheckpointError, match=rf"step_00000300 is damaged \({file.name}: "):
        read_values(path)


@pytest.mark.parametrize("kind", DAMAGE_OF_THE_RECORD)
def test_the_one_before_a_damaged_record_is_taken(gloo_pool: GlooPool, folder: Path, kind: str) -> None:
    damage, what = DAMAGE_OF_THE_RECORD[kind]
    damage(step_path(folder, 300) / "record.json")
    for num_ranks in (1, 2):
        for name, (fault,) in gloo_pool.run(num_ranks, newest, folder):
            assert name == "step_00000200"
            assert what in fault
    found = checkpoint.latest(folder)  # of evaluate, export and the driver
    assert found is not None
    assert found.name == "step_00000200"
    with pytest.raises(checkpoint.CheckpointError, match=r"record\.json"):
        checkpoint.read_record(step_path(folder, 300))


def test_without_a_record_it_was_never_complete(gloo_pool: GlooPool, folder: Path) -> None:
    (step_path(folder, 300) / "record.json").unlink()
    assert gloo_pool.run(2, newest, folder) == [("step_00000200", [])] * 2


def test_each_rank_finds_damage_in_its_share(gloo_pool: GlooPool, folder: Path) -> None:
    for step, number in ((300, 0), (200, 1)):
        flip(pieces_of(step_path(folder, step))[number], -1)
    for name, said in gloo_pool.run(2, newest, folder):
        assert name == "step_00000100"
        assert [fault.split()[1] for fault in said] == ["step_00000300", "step_00000200"]
        assert said[1].endswith("going back to step_00000100")


def test_nothing_begins_again_from_zero_unasked(gloo_pool: GlooPool, folder: Path) -> None:
    for step in STEPS:
        flip(pieces_of(step_path(folder, step))[0], -1)
    for text, said in gloo_pool.run(2, newest, folder):
        assert text.startswith(f"error: no checkpoint in {folder} is whole: checkpoint step_00000300 is damaged")
        assert all(f"step_00000{step}" in text for step in STEPS)
        assert len(said) == 2
    for step in STEPS:
        (step_path(folder, step) / "record.json").write_text("{")
    with pytest.raises(checkpoint.CheckpointError, match=r"step_00000300.record\.json"):
        checkpoint.latest(folder)


def test_without_checkpoints_there_is_none(gloo_pool: GlooPool, tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        assert gloo_pool.run(2, newest, folder) == [("None", [])] * 2
        assert checkpoint.latest(folder) is None


def load_while_damaged(world: World, path: Path, rank: int) -> str:
    """As `newest_for_all` has it; then one rank finds the file of the other damaged."""
    assert checkpoint.newest_for_all(path.parent, world, print) == path
    torch.distributed.barrier(world.group)
    if world.rank == rank:
        for file in pieces_of(path):
            os.truncate(file, file.stat().st_size - 4)
    torch.distributed.barrier(world.group)
    try:
        read_values(path, world, is_verified=True)
    except checkpoint.CheckpointError as error:
        return str(error)
    return "loaded"


@pytest.mark.parametrize("rank", [0, 1])
def test_damage_after_verifying_is_an_error_on_all_ranks(gloo_pool: GlooPool, folder: Path, rank: int) -> None:
    path = step_path(folder, 300)
    first, second = gloo_pool.run(2, load_while_damaged, path, rank)
    assert first == second
    assert first.startswith(str(path))
    assert re.search(r" is damaged \(.*\.safetensors: it has .* bytes, should have ", first)


def load_what_one_rank_lacks(world: World, path: Path) -> str:
    found = {"long": torch.zeros(20, 3)} if world.rank == 0 else {"long": torch.zeros(20, 3), "new": torch.zeros(1)}
    try:
        checkpoint.load(path, found, world)
    except checkpoint.CheckpointError as error:
        return str(error)
    return "loaded"


def test_a_folder_whose_name_is_no_text(gloo_pool: GlooPool, whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"runs\xe9")
    shutil.copytree(whole, folder)
    assert gloo_pool.run(2, newest, folder) == [("step_00000300", [])] * 2
    first, second = gloo_pool.run(2, load_what_one_rank_lacks, step_path(folder, 300))
    assert first == second
    assert str(folder) in first


def test_an_error_of_one_rank_is_raised_on_all(gloo_pool: GlooPool, folder: Path) -> None:
    first, second = gloo_pool.run(2, load_what_one_rank_lacks, step_path(folder, 300))
    assert first == second
    assert "no tensor 'new'" in first


def test_a_damaged_one_is_written_again_by_a_later_attempt(gloo_pool: GlooPool, folder: Path) -> None:
    """With what is left of it, and of an attempt that was killed, in the same folder."""
    path = step_path(folder, 300)
    flip(pieces_of(path)[0], -1)
    (path / "attempt-0002_rank-00000-of-00002.safetensors").write_bytes(b"half")
    (path / "attempt-0002_rank-00000-of-00002.json").write_text(json.dumps({"half": 1}))
    (path / ".record.json.new").write_text("{")
    assert gloo_pool.run(1, newest, folder)[0][0] == "step_00000200"
    gloo_pool.run(3, write, folder, [300], 3)
    assert gloo_pool.run(2, newest, folder) == [("step_00000300", [])] * 2
    assert all(torch.equal(found, values(300)[name]) for name, found in read_values(path).items())


def see_late(world: World, folder: Path, late: Path) -> str:
    """Rank 1 looks at another place, to which the files come after a while."""
    if world.rank == 0:
        return newest(world, folder)[0]
    timer = threading.Timer(0.5, lambda: shutil.copytree(folder, late))
    timer.start()
    try:
        return newest(world, late)[0]
    finally:
        timer.join()


def test_a_rank_that_sees_files_late_waits_for_them(gloo_pool: GlooPool, folder: Path, tmp_path: Path) -> None:
    assert gloo_pool.run(2, see_late, folder, tmp_path / "late") == ["step_00000300"] * 2

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch

from dmlscale.distributed.world import World
from dmlscale.training import checkpoint
from dmlscale.training.checkpoint.saver import Failed, Saved
from dmlscale.training.checkpoint.store import LocalStore
from tests.distributed.pool import GlooPool
from tests.training.checkpoint.savers import record_of, saver_in, tensors_of


def names(folder: Path) -> list[str]:
    return [path.name for path in checkpoint.list_checkpoints(folder)]


def loaded(path: Path, step: int = 0) -> dict[str, torch.Tensor]:
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors_of(step).items()}
    checkpoint.load(path, found, World())
    return found


def is_of_step(path: Path, step: int) -> bool:
    return all(torch.equal(tensor, loaded(path)[name]) for name, tensor in tensors_of(step).items())


class HeldStore(LocalStore):
    """A folder that takes nothing until it is let go."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.go_on = threading.Event()

    def deliver(self, name: str, file: str) -> None:
        self.go_on.wait(120)
        super().deliver(name, file)


@pytest.mark.parametrize("in_background", [True, False])
def test_what_is_saved_is_read_and_the_newest_are_kept(tmp_path: Path, in_background: bool) -> None:
    told: list[Saved] = []
    saver = saver_in(tmp_path, in_background=in_background, on_saved=told.append)
    for step in (10, 20, 30):
        saver.save(tensors_of(step), record_of(step, World()))
        assert saver.settle() is None
    assert names(tmp_path) == ["step_00000020", "step_00000030"]
    assert is_of_step(tmp_path / "step_00000030", 30)
    assert [saved.record.step for saved in told] == [10, 20, 30]
    files = [file for file in (tmp_path / "step_00000030").glob("*.safetensors")]
    assert told[-1].num_bytes == sum(file.stat().st_size for file in files)
    assert {path.suffix for path in (tmp_path / "step_00000030").iterdir()} == {".safetensors", ".json"}
    assert not list((tmp_path / "step_00000030").glob("attempt-*.json"))  # notes have done their work


def test_tensors_may_change_while_they_are_written(tmp_path: Path) -> None:
    store = HeldStore(tmp_path)
    saver, tensors = saver_in(store), tensors_of(10)
    saver.save(tensors, record_of(10, World()))
    for tensor in tensors.values():
        tensor.fill_(-1)
    assert names(tmp_path) == []
    store.go_on.set()
    assert saver.settle() is None
    assert is_of_step(tmp_path / "step_00000010", 10)


def test_the_training_goes_on_meanwhile_and_the_cost_is_told(tmp_path: Path) -> None:
    told: list[Saved] = []
    store = HeldStore(tmp_path)
    saver = saver_in(store, on_saved=told.append)
    started = time.perf_counter()
    saver.save(tensors_of(10), record_of(10, World()))
    held_up_s = time.perf_counter() - started
    assert names(tmp_path) == []
    time.sleep(0.2)
    assert told == []
    store.go_on.set()
    saver.settle()
    assert told[0].written_s > 0.19
    assert 0 < told[0].held_up_s <= held_up_s


def test_no_more_memory_than_one_copy(tmp_path: Path) -> None:
    saver, tensors = saver_in(tmp_path), tensors_of(10)
    places = []
    for step in (10, 20):
        saver.save(tensors, record_of(step, World()))
        assert saver._job is not None
        places.append([piece.tensor.data_ptr() for piece in saver._job.pieces])
        saver.settle()
    assert places[0] == places[1]
    assert not set(places[0]) & {tensor.data_ptr() for tensor in tensors.values()}


def save_on_ranks(world: World, folder: Path, steps: list[int], in_background: bool) -> list[Failed | None]:
    saver = saver_in(folder, world, in_background=in_background)
    found = []
    for step in steps:
        saver.save(tensors_of(step), record_of(step, world))
        found.append(saver.settle())
    return found


@pytest.mark.parametrize("in_background", [True, False])
def test_all_ranks_write_together(gloo_pool: GlooPool, tmp_path: Path, in_background: bool) -> None:
    assert gloo_pool.run(3, save_on_ranks, tmp_path, [10, 20, 30], in_background) == [[None] * 3] * 3
    assert names(tmp_path) == ["step_00000020", "step_00000030"]
    assert is_of_step(tmp_path / "step_00000030", 30)
    assert len(list((tmp_path / "step_00000030").glob("*rank-*-of-00003.safetensors"))) == 3


class OneRankFails(LocalStore):
    """The storage of rank 1 fails at a step."""

    def deliver(self, name: str, file: str) -> None:
        if "rank-00001" in file and name == "step_00000020":
            raise OSError(28, "No space left on device")
        super().deliver(name, file)


def fail_on_rank_1(world: World, folder: Path) -> list[tuple[Failed | None, bool]]:
    saver = saver_in(OneRankFails(folder), world)
    found = []
    for step in (10, 20, 30):
        saver.save(tensors_of(step), record_of(step, world))
        deadline = time.monotonic() + 60
        # Rank 1 knows at once; what rank 0 waits for will not come, and it must not wait for ever.
        while world.rank == 1 and step == 20 and not saver.has_failed() and time.monotonic() < deadline:
            time.sleep(0.01)
        knew = saver.has_failed()
        found.append((saver.settle(), knew))
    return found


def test_a_rank_that_cannot_write_is_named_on_all_and_leaves_nothing(gloo_pool: GlooPool, tmp_path: Path) -> None:
    results = gloo_pool.run(3, fail_on_rank_1, tmp_path)
    failed = Failed(20, f"No space left on device: {tmp_path}, rank 1")
    assert [[outcome for outcome, _ in result] for result in results] == [[None, failed, None]] * 3
    assert [result[1][1] for result in results] == [False, True, False]
    assert names(tmp_path) == ["step_00000010", "step_00000030"]
    assert not (tmp_path / "step_00000020").exists()


def test_workers_of_an_earlier_start_change_nothing(tmp_path: Path) -> None:
    """Cut off for a while, they come back when others have gone on with the run."""
    later = saver_in(tmp_path, attempt=2, keep=1)
    later.save(tensors_of(10), record_of(10, World()))
    later.settle()
    orphan = saver_in(tmp_path, attempt=1, keep=1, is_current=lambda: False)
    orphan.save(tensors_of(20), record_of(20, World()))
    failed = orphan.settle()
    assert failed is not None
    assert "later start" in failed.reason
    assert names(tmp_path) == ["step_00000010"]
    orphan.save(tensors_of(99), record_of(10, World()))  # the very step that is there
    assert orphan.settle() is not None
    assert is_of_step(tmp_path / "step_00000010", 10)
    later.save(tensors_of(30), record_of(30, World()))  # removes what they left
    assert later.settle() is None
    assert os.listdir(tmp_path) == ["step_00000030"]


def test_workers_that_are_overtaken_while_they_commit_remove_nothing(tmp_path: Path) -> None:
    answers = iter([True])  # as the record is written, and never again
    orphan = saver_in(tmp_path, attempt=1, keep=1, is_current=lambda: next(answers, False))
    later = LocalStore(tmp_path)
    (later.stage("step_00000015") / "attempt-0002_rank-00000-of-00001.safetensors").write_bytes(b"on its way")
    checkpoint.save(tmp_path / "others", tensors_of(5), record_of(5, World()), World(), keep=1)
    (tmp_path / "others" / "step_00000005").rename(tmp_path / "step_00000005")
    (tmp_path / "others").rmdir()
    orphan.save(tensors_of(20), record_of(20, World()))
    orphan.settle()
    assert later.partial() == ["step_00000015"]
    assert later.complete() == ["step_00000005", "step_00000020"]


def test_old_ones_are_removed_though_nobody_can_be_told_of_the_new(tmp_path: Path) -> None:
    def fails(saved: Saved) -> None:
        raise RuntimeError("the tracker is closed")

    saver = saver_in(tmp_path, keep=1, on_saved=fails)
    for step in (10, 20, 30):
        saver.save(tensors_of(step), record_of(step, World()))
        assert saver.settle() is None
    assert names(tmp_path) == ["step_00000030"]


@pytest.mark.parametrize("in_background", [True, False])
def test_tied_weights(tmp_path: Path, in_background: bool) -> None:
    """Two names of one tensor, and of parts of it that overlap."""
    both = torch.arange(12.0).view(4, 3)
    tied = {"a": both, "b": both, "c": both[1:3]}
    saver = saver_in(tmp_path, in_background=in_background)
    saver.save(tied, record_of(10, World()))
    assert saver.settle() is None
    found = {name: torch.zeros(tensor.shape) for name, tensor in tied.items()}
    checkpoint.load(tmp_path / "step_00000010", found, World())
    assert all(torch.equal(tensor, found[name]) for name, tensor in tied.items())


def test_a_damaged_checkpoint_is_written_again_without_a_moment_without_one(tmp_path: Path) -> None:
    first = saver_in(tmp_path, attempt=1)
    first.save(tensors_of(10), record_of(10, World()))
    first.settle()
    (broken,) = (tmp_path / "step_00000010").glob("*.safetensors")
    broken.write_bytes(b"nothing")
    assert checkpoint.verify(tmp_path / "step_00000010")
    second = saver_in(tmp_path, attempt=2)
    second.save(tensors_of(10), record_of(10, World()))
    assert second.settle() is None
    assert checkpoint.verify(tmp_path / "step_00000010") == []
    assert not broken.exists()
    assert is_of_step(tmp_path / "step_00000010", 10)


def test_a_folder_that_has_vanished_is_not_made_anew(tmp_path: Path) -> None:
    """It may have been a mount; its place is on another disk."""
    folder = tmp_path / "checkpoints"
    saver = saver_in(folder)
    shutil.rmtree(folder)
    saver.save(tensors_of(10), record_of(10, World()))
    assert saver.settle() == Failed(10, f"No such file or directory: {folder}")
    assert not folder.exists()
    folder.mkdir()
    saver.save(tensors_of(20), record_of(20, World()))
    assert saver.settle() is None


@pytest.mark.parametrize("steps", [[10], [10, 20]])
def test_the_simple_way_says_what_is_wrong(tmp_path: Path, steps: list[int]) -> None:
    blocked = tmp_path / "checkpoints"
    for step in steps[:-1]:
        checkpoint.save(blocked, tensors_of(step), record_of(step, World()), World(), keep=2)
    blocked.mkdir(exist_ok=True)
    (blocked / f"step_{steps[-1]:08d}").write_text("a file where a folder belongs")
    with pytest.raises(checkpoint.CheckpointError, match=rf"step {steps[-1]} could not be written: .*{blocked}"):
        checkpoint.save(blocked, tensors_of(steps[-1]), record_of(steps[-1], World()), World(), keep=2)
    assert names(blocked) == [f"step_{step:08d}" for step in steps[:-1]]

"""A disk that is really full: a file system in memory of few bytes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmlscale.distributed.world import World
from dmlscale.training import checkpoint
from dmlscale.training.checkpoint.saver import Failed
from tests.distributed.pool import GlooPool
from tests.training.checkpoint.savers import record_of, saver_in, tensors_of

LENGTH = 20_000  # 240 KB a checkpoint
DISK = 1_000_000


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a file system takes rights that this user does not have")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # a rank of a failed test may still be in it


def fill(folder: Path, *, but: int) -> Path:
    """Takes all space but for some bytes."""
    file = folder / "other"
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    file.write_bytes(bytes(free - but))
    return file


def save(world: World, folder: Path, step: int) -> Failed | None:
    saver = saver_in(folder, world)
    saver.save(tensors_of(step, LENGTH), record_of(step, world))
    return saver.settle()


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize("free", [0, 30_000, 120_000])
def test_a_full_disk_keeps_the_last_good_one_and_is_left_as_it_was(
    gloo_pool: GlooPool, small_disk: Path, num_ranks: int, free: int
) -> None:
    folder = small_disk / "checkpoints"
    assert gloo_pool.run(num_ranks, save, folder, 10) == [None] * num_ranks
    other = fill(small_disk, but=free)
    before = os.statvfs(small_disk).f_bavail
    failed = gloo_pool.run(num_ranks, save, folder, 20)
    assert failed[0] == failed[-1]
    assert failed[0].step == 20
    assert failed[0].reason.startswith(f"No space left on device: {folder}")
    assert [path.name for path in checkpoint.list_checkpoints(folder)] == ["step_00000010"]
    assert checkpoint.verify(folder / "step_00000010") == []
    assert os.listdir(folder) == ["step_00000010"]
    assert os.statvfs(small_disk).f_bavail == before
    other.unlink()
    assert gloo_pool.run(num_ranks, save, folder, 30) == [None] * num_ranks
    assert [path.name for path in checkpoint.list_checkpoints(folder)] == ["step_00000010", "step_00000030"]


def test_a_disk_that_may_only_be_read(small_disk: Path) -> None:
    folder = small_disk / "checkpoints"
    assert save(World(), folder, 10) is None
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    failed = save(World(), folder, 20)
    assert failed is not None
    assert failed.reason == f"Read-only file system: {folder}"
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert save(World(), folder, 20) is None
    assert checkpoint.verify(folder / "step_00000020") == []

"""Checkpoints are copied once a machine; what killed processes have left is taken over and removed."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from dmlscale.distributed.world import World
from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.remote_store import RemoteStore
from dmlscale.training.checkpoint.scratch import Scratch
from tests.distributed.pool import GlooPool
from tests.training.checkpoint import counted
from tests.training.checkpoint.counted import Counted
from tests.training.checkpoint.test_store import read_newest, save

NAME = "step_00000010"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def folders(temporary: Path) -> list[Path]:
    return sorted(path for path in temporary.iterdir() if path.is_dir())


def read_counted(world: World, url: str, log: str, temporary: Path) -> str | None:
    before, tempfile.tempdir = tempfile.tempdir, str(temporary)
    try:
        return read_newest(RemoteStore(url, {"log": log}), world)[0]
    finally:
        tempfile.tempdir = before


def test_four_ranks_of_a_machine_copy_one_checkpoint(gloo_pool: GlooPool, tmp_path: Path, temporary: Path) -> None:
    url, log = f"counted://{tmp_path}/far", tmp_path / "log"
    assert save(RemoteStore(url, {"log": str(log)}), World(), 10, 20) == [None] * 2
    assert gloo_pool.run(4, read_counted, url, str(log), temporary) == ["step_00000020"] * 4
    files = list((tmp_path / "far" / "step_00000020").iterdir())
    assert sorted(map(int, log.read_text().split())) == sorted(file.stat().st_size for file in files)
    assert os.listdir(temporary) == []


def test_a_copy_that_was_killed_is_taken_over_and_what_it_leaves_removed(tmp_path: Path, temporary: Path) -> None:
    place = tmp_path / "far"
    store = RemoteStore(f"counted://{place}", {"log": str(tmp_path / "log")})
    save(store, World(), 10)
    command = [sys.executable, counted.__file__, store.url, str(tmp_path / "log"), NAME, "shared"]
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as killed:
        try:
            assert killed.stdout is not None
            assert killed.stdout.readline() == "in the middle\n"
            with Scratch("shared") as scratch:
                (private,) = [path for path in folders(temporary) if path not in (scratch.path, *own(store))]
                taker = threading.Thread(target=store.fetch, args=(NAME, scratch.path))
                taker.start()
                taker.join(0.2)
                assert taker.is_alive()  # it waits for the other process
                with Scratch():
                    assert (private / NAME / "a.safetensors").exists()  # somebody is at it
                killed.kill()
                taker.join(60)
                assert not taker.is_alive()
                files = {file.name: file.read_bytes() for file in (scratch.path / NAME).iterdir()}
                assert files == {file.name: file.read_bytes() for file in (place / NAME).iterdir()}
            killed.wait()
            with Scratch():
                assert not private.exists()
        finally:
            killed.kill()
    assert not scratch.path.exists()
    del store
    assert os.listdir(temporary) == []


def own(store: RemoteStore) -> list[Path]:
    return [store.stage(NAME).parent]


def test_a_folder_is_there_until_the_last_one_leaves(temporary: Path) -> None:
    with Scratch("shared") as first:
        with Scratch("shared") as second:
            (second.path / "file").touch()
        assert (first.path / "file").exists()
    assert os.listdir(temporary) == []


def test_what_is_of_others_stays(temporary: Path) -> None:
    """Of another machine that sees this folder, and of other programs."""
    others = ("checkpoint-another-machine@1", f"checkpoint-{socket.gethostname()}-2@1", "checkpoint-1")
    for other in others:
        (temporary / other).mkdir()
        (temporary / f"{other}.lock").touch()
    with Scratch():
        pass
    assert len(os.listdir(temporary)) == 2 * len(others)


def test_a_file_system_without_locks_is_told_with_what_to_do(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(file: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(OSError, match=rf"not implemented: set TMPDIR to .*: '{temporary}/checkpoint-"):
        Scratch()


def test_a_full_temporary_folder_is_told_and_what_came_is_removed(
    tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(self: Counted, source: str, target: str) -> None:
        Path(target).write_bytes(b"what fits")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    store = RemoteStore(f"counted://{tmp_path}/far", {"log": str(tmp_path / "log")})
    save(store, World(), 10)
    monkeypatch.setattr(Counted, "get_file", fill)
    with Scratch() as scratch:
        with pytest.raises(CheckpointError, match=rf"no space left for {scratch.path}/.*set TMPDIR"):
            store.fetch(NAME, scratch.path)
        assert os.listdir(scratch.path / NAME) == []


def test_files_are_staged_again_where_the_temporary_folder_was_cleared(tmp_path: Path, temporary: Path) -> None:
    store = RemoteStore(f"counted://{tmp_path}/far", {"log": str(tmp_path / "log")})
    assert save(store, World(), 10) == [None]
    for folder in folders(temporary):
        shutil.rmtree(folder)
    assert save(store, World(), 20) == [None]
    assert store.complete() == ["step_00000010", "step_00000020"]

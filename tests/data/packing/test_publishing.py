"""What is left of a packing that was cut off while it published, or stopped by a disk; and what is deleted of it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.packing import index_writer
from dmlscale.data.packing.index_writer import IndexWriter
from dmlscale.data.packing.pack import ensure_packed, pack
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.sources import Item
from dmlscale.data.tar import ShardFile
from tests.data.damage import found
from tests.data.listed import Listed, item, mixed_items

SOURCE = Listed(mixed_items())
SMALL_SHARDS = PackOptions(shard_size_bytes=1, num_processes=1)
ONE_SHARD = PackOptions(num_processes=1)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


class Cut(BaseException):
    """The process ends here."""


def cut_off_before(name: str, source: Listed, folder: Path) -> dict[str, int]:
    """Packs, and is cut off just before the file ``name`` is moved; which file each of the others is."""
    move = Path.replace

    def cut(path: Path, to: Path) -> Path:
        if path.name == name and to.parent == folder:
            raise Cut
        return move(path, to)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", cut)
        with pytest.raises(Cut):
            pack(source, folder, SMALL_SHARDS)
    files = [path for path in folder.rglob("*") if path.suffix in (".tar", ".arrow", ".csv", ".json")]
    return {path.name: path.stat().st_ino for path in files}


@pytest.mark.parametrize("name", ["train-000000.tar", "train-000003.tar", "dataset.json", "index.arrow"])
def test_cut_off_while_publishing_only_the_rest_is_moved(mixed: Path, tmp_path: Path, name: str) -> None:
    before = cut_off_before(name, SOURCE, tmp_path)
    # Nothing is packed again: a source of the same options without samples would have none to pack.
    assert not ensure_packed(Listed(()), tmp_path, SMALL_SHARDS).is_reused
    assert files_of(tmp_path) == files_of(mixed)
    assert {path.name: path.stat().st_ino for path in tmp_path.iterdir()}.items() <= before.items()


def test_other_options_leave_no_shard_of_a_packing_that_was_cut_off(tmp_path: Path) -> None:
    (tmp_path / "train-000099.tar").write_bytes(b"of somebody else")
    cut_off_before("index.arrow", SOURCE, tmp_path)
    assert len(list(tmp_path.glob("*.tar"))) == 11
    pack(SOURCE, tmp_path, ONE_SHARD)
    assert sorted(path.name for path in tmp_path.glob("*.tar")) == [
        "test-000000.tar",
        "train-000000.tar",
        "train-000099.tar",
    ]
    assert [problem[:2] for problem in found(tmp_path)] == [("train-000099.tar", "")]


def test_tables_of_two_packings_that_were_cut_off_are_not_mixed(mixed: Path, tmp_path: Path) -> None:
    """All shards of the first are in place, and the tables beside them are of the second, or half."""
    cut_off_before("dataset.json", SOURCE, tmp_path)

    def cut(*_: object) -> None:
        (tmp_path / ".packing" / "index.arrow").write_bytes(b"half")
        raise Cut

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dmlscale.data.packing.pack.publish", cut)
        with pytest.raises(Cut):
            pack(SOURCE, tmp_path, replace(SMALL_SHARDS, seed=1))
    pack(SOURCE, tmp_path, SMALL_SHARDS)
    assert files_of(tmp_path) == files_of(mixed)


def test_what_a_kill_at_the_very_end_leaves_is_deleted_unless_it_is_in_use(tmp_path: Path) -> None:
    pack(SOURCE, tmp_path, ONE_SHARD)
    whole = files_of(tmp_path)
    (tmp_path / ".packing" / "scratch").mkdir(parents=True)
    with (tmp_path / ".packing" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert ensure_packed(SOURCE, tmp_path, ONE_SHARD).is_reused
        assert (tmp_path / ".packing").is_dir()
    assert ensure_packed(SOURCE, tmp_path, ONE_SHARD).is_reused
    assert files_of(tmp_path) == whole


@dataclass(frozen=True)
class Unpacked(Listed):
    """A source that trusts what it finds in the folder for what it unpacks."""

    name: str = "a"

    def open(self, scratch: Path) -> Listed:
        kept = scratch / "kept"
        if not kept.exists():
            kept.write_text(self.name)
        assert kept.read_text() == self.name
        return self

    def items(self) -> Iterator[Item]:
        yield from self.listed
        raise KeyboardInterrupt


@pytest.mark.parametrize("has_shards", [False, True])
def test_what_another_source_has_unpacked_is_not_used(tmp_path: Path, has_shards: bool) -> None:
    work = tmp_path / ".packing"
    (work / "scratch").mkdir(parents=True)
    (work / "scratch" / "kept").write_text("a")
    request = {"source": "Unpacked", "options": {"input": "image", "name": "a"}}
    (work / "request.json").write_text(json.dumps(request))
    if has_shards:
        (work / "train-000000.tar").write_bytes(b"x")
    with pytest.raises(KeyboardInterrupt):
        pack(Unpacked(SOURCE.listed, name="b"), tmp_path, ONE_SHARD)


def test_a_full_disk_is_one_clear_error_and_the_same_again_goes_on(mixed: Path, tmp_path: Path) -> None:
    work = tmp_path / ".packing"
    work.mkdir()
    (work / "rejects.csv").symlink_to("/dev/full")
    with pytest.raises(DataError, match=rf"no space left in {tmp_path}: free some and run the same again; finished"):
        pack(SOURCE, tmp_path, SMALL_SHARDS)
    (work / "rejects.csv").unlink()
    before = {path.name: path.stat().st_ino for path in work.glob("*.tar")}
    assert len(before) == 10
    pack(SOURCE, tmp_path, SMALL_SHARDS)
    assert {path.name: path.stat().st_ino for path in tmp_path.glob("*.tar")} == before
    assert files_of(tmp_path) == files_of(mixed)


def test_a_shard_that_a_full_disk_cuts_off_is_deleted(tmp_path: Path) -> None:
    (tmp_path / "a.tar.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as caught, ShardFile(tmp_path / "a.tar") as shard:
        shard.append(b"x")
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_columns(tmp_path: Path) -> None:
    writer = IndexWriter(tmp_path, ["train"], ["png"])
    for name in ("shard", "ends"):
        writer._files[name].close()
        writer._files[name] = Path("/dev/full").open("wb")  # noqa: SIM115
        writer._files[name].write(b"x")
    with pytest.raises(OSError, match="No space left"):
        writer.__exit__(None, None, None)
    assert all(file.closed for file in writer._files.values())
    assert not list(tmp_path.iterdir())


def test_space_is_there_before_a_column_is_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing to a mapped file with holes ends the process where the disk is full."""
    allocated: list[int] = []
    sort = index_writer.sort_by_class

    def noting(*arguments: object, out: np.memmap) -> None:
        allocated.append(os.stat(str(out.filename)).st_blocks * 512)
        sort(*arguments, out=out)  # type: ignore[arg-type]

    monkeypatch.setattr(index_writer, "sort_by_class", noting)
    pack(Listed(tuple(item(str(n)) for n in range(600))), tmp_path, ONE_SHARD)
    assert allocated[0] >= 600 * 8

"""An index over shards of others: their keys, and what a killed indexing keeps."""

from __future__ import annotations

import csv
import io
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import psutil
import pytest

from dmlscale.data.decoding.decode import find_decoder
from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.packing import foreign_scan
from dmlscale.data.packing.foreign_shards import Scan
from dmlscale.data.packing.pack import pack
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.reader import Reader
from dmlscale.data.sources.webdataset import WebDatasetShards
from tests.data.damage import found
from tests.data.listed import picture

ALONE = PackOptions(num_processes=1)


def write_shard(path: Path, samples: Mapping[str, bytes]) -> str:
    """Samples by key; those of a key with an even number at its end are of class 0, others of 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for key, data in samples.items():
            for name, content in ((f"{key}.png", data), (f"{key}.cls", b"%d" % (ord(key[-1]) % 2))):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return str(path)


def numbered(split: str, numbers: Sequence[int]) -> dict[str, bytes]:
    return {f"{number:06d}": picture(f"{split}{number}") for number in numbers}


def rejects(folder: Path) -> list[tuple[str, str, str]]:
    with (folder / "rejects.csv").open(newline="") as file:
        return [(row["key"], row["split"], row["reason"]) for row in csv.DictReader(file)]


def test_splits_that_count_from_0_each_keep_all_of_their_samples(tmp_path: Path) -> None:
    train, test = numbered("train", range(6)), {**numbered("test", range(4, 8)), "a/b": picture("ab")}
    source = WebDatasetShards(
        {"test": write_shard(tmp_path / "test.tar", test), "train": write_shard(tmp_path / "train.tar", train)}
    )
    pack(source, tmp_path / "index", replace(ALONE, strict=True))
    index = Index.load(tmp_path / "index")
    expected = train | {f"test/{k}" if k in train else k: data for k, data in test.items()}
    reader = Reader(index, find_decoder("image"))
    assert {index.key(row): bytes(reader.read(row)[0]) for row in range(len(index))} == expected
    assert len(index.split("test")) == len(test)
    assert found(tmp_path / "index") == []


def test_a_key_that_comes_twice_in_a_split_is_rejected_and_strict_says_so(tmp_path: Path) -> None:
    shards = [write_shard(tmp_path / f"{n}.tar", numbered(str(n), range(n, n + 3))) for n in range(2)]
    pack(WebDatasetShards(shards), tmp_path / "index", ALONE)
    reason = "its key comes in an earlier shard, whose sample is kept"
    assert rejects(tmp_path / "index") == [("000001", "train", reason), ("000002", "train", reason)]
    with pytest.raises(DataError, match=rf"1\.tar, sample '000001': {reason}"):
        pack(WebDatasetShards(shards), tmp_path / "strict", replace(ALONE, strict=True))


def test_a_prefixed_key_that_is_there_already_is_rejected(tmp_path: Path) -> None:
    source = WebDatasetShards(
        {
            "train": write_shard(tmp_path / "a.tar", {"0": picture("a"), "test/0": picture("b")}),
            "test": write_shard(tmp_path / "b.tar", {"0": picture("c"), "1": picture("d")}),
        }
    )
    pack(source, tmp_path / "index", ALONE)
    assert [key for key, _, _ in rejects(tmp_path / "index")] == ["0"]
    assert found(tmp_path / "index") == []


def test_a_split_without_a_sample_is_named(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.tar", tmp_path / "bad.tar"
    write_shard(good, numbered("train", range(3)))
    write_shard(bad, {"x": b"no picture"})
    source = WebDatasetShards({"train": str(good), "test": str(bad)})
    with pytest.raises(DataError, match=r"none of 1 shards of split 'test' holds a sample .*: 1 x is no picture"):
        pack(source, tmp_path / "index", ALONE)
    with pytest.raises(DataError, match=r"shards=\[\] of split 'test' names no shard"):
        pack(WebDatasetShards({"train": str(good), "test": []}), tmp_path / "index", ALONE)


def test_one_process_is_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [write_shard(tmp_path / f"{n}.tar", numbered(str(n), [n])) for n in range(3)]
    seen: list[int] = []
    scan = foreign_scan.scan_shard

    def noting(*arguments: object) -> object:
        seen.append(os.getpid())
        return scan(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(foreign_scan, "scan_shard", noting)
    pack(WebDatasetShards(shards), tmp_path / "index", ALONE)
    assert seen == [os.getpid()] * 3


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_an_interrupted_indexing_reads_no_shard_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = [
        write_shard(tmp_path / f"{n}.tar", {**numbered(str(n), range(3 * n, 3 * n + 3)), f"bad{n}": b"x"})
        for n in range(4)
    ]
    source = WebDatasetShards(shards)
    pack(source, tmp_path / "whole", ALONE)

    def stop(count: int, _: int) -> None:
        if count == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, tmp_path / "index", ALONE, progress=stop)
    kept = sorted(path.name for path in (tmp_path / "index" / ".packing").glob("scan-*.arrow"))
    assert len(kept) >= 2
    os.utime(shards[1])  # may have changed
    read: list[str] = []
    scan = foreign_scan.scan_shard

    def noting(file: BinaryIO, how: Scan) -> object:
        read.append(file.name)
        return scan(file, how)

    monkeypatch.setattr(foreign_scan, "scan_shard", noting)
    pack(source, tmp_path / "index", ALONE)
    assert read == [shards[1], *shards[len(kept) :]]
    assert files_of(tmp_path / "index") == files_of(tmp_path / "whole")


def test_other_options_start_over(tmp_path: Path) -> None:
    shard = write_shard(tmp_path / "a.tar", {"bad": b"no picture", **numbered("a", range(3))})

    def stop(_: int, __: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(WebDatasetShards(shard), tmp_path / "index", ALONE, progress=stop)
    pack(WebDatasetShards(shard), tmp_path / "index", replace(ALONE, check=False))
    assert len(Index.load(tmp_path / "index")) == 4


def test_its_processes_end_with_it(tmp_path: Path) -> None:
    shards = [write_shard(tmp_path / f"{n}.tar", numbered(str(n), [n])) for n in range(4)]
    script = "import pickle, sys, time; from dmlscale.data.packing.pack import pack; "
    script += "pack(*pickle.load(sys.stdin.buffer), progress=lambda *_: time.sleep(60))"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE)
    with process:
        assert process.stdin is not None
        process.stdin.write(pickle.dumps((WebDatasetShards(shards), tmp_path / "index", PackOptions(num_processes=2))))
        process.stdin.close()
        process.stdin = None
        end = time.monotonic() + 60
        while not list((tmp_path / "index" / ".packing").glob("scan-*.arrow")):
            assert time.monotonic() < end
            assert process.poll() is None
            time.sleep(0.01)
        helpers = psutil.Process(process.pid).children(recursive=True)
        assert len(helpers) >= 2
        process.send_signal(signal.SIGKILL)
    assert not psutil.wait_procs(helpers, timeout=60)[1]


def test_a_shard_that_cannot_be_read_now_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write_shard(tmp_path / "a.tar", numbered("a", range(3)))

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(foreign_scan, "scan_shard", fail)
    with pytest.raises(DataError, match=r"a\.tar cannot be read \(Input/output error\): run the same again"):
        pack(WebDatasetShards(shard), tmp_path / "index", ALONE)

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import fsspec
import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.packing.foreign_shards import ScannedSample, scan_shard
from dmlscale.data.sources import SOURCES
from dmlscale.data.sources.webdataset import WebDatasetShards


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("train-00.tar", "train-01.tar", "train-02.tar", "val-00.tar"):
        with tarfile.open(tmp_path / name, "w") as archive:
            for member, data in ((f"{name[:-4]}.jpg", b"picture"), (f"{name[:-4]}.cls", b"3")):
                info = tarfile.TarInfo(member)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return tmp_path


def test_registry_finds_it() -> None:
    assert SOURCES["webdataset"] is WebDatasetShards


@pytest.mark.parametrize("shards", ["train-*.tar", "train-{00..02}.tar", ["train-00.tar", "train-0[12].tar"]])
def test_braces_wildcards_and_lists_name_the_same_shards(
    folder: Path, shards: str | list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    expected = [(str(folder / f"train-0{number}.tar"), "train") for number in range(3)]
    assert WebDatasetShards(shards).locations() == expected
    absolute = [str(folder / name) for name in ([shards] if isinstance(shards, str) else shards)]
    assert WebDatasetShards(absolute).locations() == expected


def test_home_folder_and_splits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    source = WebDatasetShards({"train": "~/train-{00,02}.tar", "test": ["~/val-*.tar"]})
    assert [(os.path.basename(path), split) for path, split in source.locations()] == [
        ("train-00.tar", "train"),
        ("train-02.tar", "train"),
        ("val-00.tar", "test"),
    ]
    assert WebDatasetShards("~/val-00.tar", split="query").locations() == [(str(folder / "val-00.tar"), "query")]


def test_urls_are_taken_as_they_are_and_listed_only_for_a_wildcard() -> None:
    assert WebDatasetShards("https://host.invalid/a/{00..01}.tar").locations() == [
        ("https://host.invalid/a/00.tar", "train"),
        ("https://host.invalid/a/01.tar", "train"),
    ]
    system = fsspec.filesystem("memory")
    for name in ("b", "a"):
        system.pipe(f"/bucket/{name}.tar", b"x")
    assert WebDatasetShards("memory://bucket/*.tar").locations() == [
        ("memory:///bucket/a.tar", "train"),
        ("memory:///bucket/b.tar", "train"),
    ]


def test_shards_are_scanned_with_its_options(folder: Path) -> None:
    source = WebDatasetShards(str(folder / "val-00.tar"), input="audio", member="jpg")
    [(path, _)] = source.locations()
    with open(path, "rb") as file:
        [sample] = scan_shard(file, source.scan())
        [reject] = scan_shard(file, source.scan(check=lambda parts: f"has {len(parts)} part"))
    assert isinstance(sample, ScannedSample)
    assert (sample.key, sample.size, sample.class_label) == ("val-00", 7, "3")
    assert reject == ("val-00", "has 1 part")


@pytest.mark.parametrize(
    ("shards", "message"),
    [
        ("none-*.tar", r"there is no shard none-\*\.tar"),
        ("train-{00..04}.tar", r"2 of 5 shards are missing, the first is .*train-03\.tar"),
        (["train-*.tar", "train-01.tar"], r"shard .*train-01\.tar comes 2 times"),
        ("train-{00..02.tar", "has a brace that is not closed"),
        ("train-00.tar.gz", "is compressed, so samples cannot be read at an offset: decompress it first"),
        ([], "names no shard"),
        ({}, "names no shard"),
    ],
)
def test_bad_shards_are_named(
    folder: Path, shards: str | list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(DataError, match=message):
        WebDatasetShards(shards).locations()


@pytest.mark.parametrize("label", ["", ":x", "json:", "json:a..b"])
def test_bad_labels_are_named(label: str) -> None:
    with pytest.raises(DataError, match=f"label='{label}', must be an extension"):
        WebDatasetShards("x.tar", label=label)

"""Keys of paths that are alike, and servers that fail while a manifest is packed."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.packing.pack import pack
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.sources import manifest
from dmlscale.data.sources.manifest import Manifest
from dmlscale.data.storage.retry import Retry
from tests.data.damage import found
from tests.data.listed import picture
from tests.data.servers import HttpServer
from tests.data.sources.tables import write_csv

ALONE = PackOptions(num_processes=1)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HttpServer]:
    (tmp_path / "served").mkdir()
    with HttpServer(tmp_path / "served", tmp_path / "state") as server:
        yield server


def rejects(folder: Path) -> list[tuple[str, str]]:
    with (folder / "rejects.csv").open(newline="") as file:
        return [(row["key"], row["reason"]) for row in csv.DictReader(file)]


def test_no_sample_is_lost_where_paths_make_the_same_key(tmp_path: Path) -> None:
    paths = ["img/0.png", "img/1.png", "img/0.bmp", "img/0.x.png", "img/0_x.png", "img/1.png"]
    (tmp_path / "img").mkdir()
    for path in paths:
        (tmp_path / path).write_bytes(picture(path))
    write_csv(tmp_path / "list.csv", {"path": paths, "label": "ababab"})
    pack(Manifest(str(tmp_path / "list.csv"), train_fraction=1), tmp_path / "out", ALONE)
    index = Index.load(tmp_path / "out")
    assert sorted(index.columns.keys.to_pylist()) == ["img/0", "img/0-2", "img/0_x", "img/0_x-2", "img/1"]
    assert rejects(tmp_path / "out") == [("img/1", "its key comes twice: the first sample is kept")]
    assert found(tmp_path / "out") == []


def test_urls_that_differ_in_the_query_alone(tmp_path: Path, server: HttpServer) -> None:
    (server.folder / "get.png").write_bytes(picture("x"))
    urls = [f"{server.url}/get.png?id={number}" for number in range(10)]
    write_csv(tmp_path / "list.csv", {"path": urls, "label": "ab" * 5})
    pack(Manifest(str(tmp_path / "list.csv"), train_fraction=1), tmp_path / "out", ALONE)
    keys = Index.load(tmp_path / "out").columns.keys.to_pylist()
    assert {key.rpartition("get")[2] for key in keys} == {"", *(f"-{number}" for number in range(2, 11))}


def test_keys_of_a_column_are_not_numbered(tmp_path: Path) -> None:
    for name in "12":
        (tmp_path / f"{name}.png").write_bytes(picture(name))
    write_csv(tmp_path / "list.csv", {"path": ["1.png", "2.png"], "label": "ab", "key": "kk"})
    pack(Manifest(str(tmp_path / "list.csv"), train_fraction=1), tmp_path / "out", ALONE)
    assert rejects(tmp_path / "out") == [("k", "its key comes twice: the first sample is kept")]


def test_a_server_that_stumbles_loses_no_sample(tmp_path: Path, server: HttpServer) -> None:
    for name in "abc":
        (server.folder / f"{name}.png").write_bytes(picture(name))
    server.misbehave("a.png", times=2, status=503)
    server.misbehave("b.png", times=1, bytes=40)
    write_csv(tmp_path / "list.csv", {"path": [f"{server.url}/{name}.png" for name in "abc"], "label": "abc"})
    summary = pack(Manifest(str(tmp_path / "list.csv"), train_fraction=1), tmp_path / "out", ALONE)
    assert not summary.rejects
    assert summary.num_samples == {"train": 3}


def test_a_server_that_is_down_ends_the_packing_and_a_repeat_goes_on(
    tmp_path: Path, server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "_RETRY", Retry(seconds=0.3, first_wait=0.1))
    names = [f"{number}.png" for number in range(40)]
    for name in names:
        (server.folder / name).write_bytes(picture(name))
    write_csv(
        tmp_path / "list.csv",
        {
            "path": [f"{server.url}/{name}?key=secret" for name in names],
            "label": ["a", "b"] * 20,
            "split": ["train"] * 39 + ["z_last"],
        },
    )
    server.misbehave("39.png", status=503)
    options = PackOptions(num_processes=1, shard_size_bytes=1)
    with pytest.raises(DataError, match=r"sample '.*39' .* attempts in .* 503.*finished shards are kept") as caught:
        pack(Manifest(str(tmp_path / "list.csv")), tmp_path / "out", options)
    assert "secret" not in str(caught.value)
    server.behave("39.png")
    assert not pack(Manifest(str(tmp_path / "list.csv")), tmp_path / "out", options).rejects
    assert server.requests("0.png?key=secret") + server.requests("0.png") == 1


def test_reasons_are_the_same_for_every_url(tmp_path: Path, server: HttpServer) -> None:
    (server.folder / "good.png").write_bytes(picture("good"))
    for name in ("f1.png", "f2.png"):
        server.misbehave(name, status=403)
    names = ["good.png", "none1.png", "none2.png", "f1.png", "f2.png"]
    urls = [f"{server.url}/{name}" for name in names]
    write_csv(tmp_path / "list.csv", {"path": urls, "label": "aaaaa"})
    summary = pack(Manifest(str(tmp_path / "list.csv"), train_fraction=1), tmp_path / "out", ALONE)
    assert sorted(summary.rejects.values()) == [2, 2]
    assert summary.rejects["No such file or directory"] == 2
    assert any(re.match(r"no access to it \(the server answers 403", reason) for reason in summary.rejects)

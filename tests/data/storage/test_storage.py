from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.storage.storage import Storage
from dmlscale.data.storage.transfer_errors import MissingFileError, TransferError, TransferStopped
from tests.data.servers import HttpServer, S3Server

DATA = bytes(range(256)) * 1200  # 300 kB


@pytest.fixture(scope="module")
def http(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    folder = tmp_path_factory.mktemp("served")
    for name in ("a.tar", "b.tar", "odd #name? 100%.tar"):
        (folder / name).write_bytes(DATA)
    (folder / "bucket").mkdir()
    with HttpServer(folder, tmp_path_factory.mktemp("state")) as server:
        yield server


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        server.put("bucket", "set/a.tar", DATA)
        server.put("bucket", "set/odd #name? 100%.tar", DATA)
        yield server


@pytest.fixture(params=["http", "s3"])
def far(request: pytest.FixtureRequest, http: HttpServer, s3: S3Server) -> Storage:
    if request.param == "http":
        return Storage.open(http.url + "/")
    return Storage.open("s3://bucket/set", s3.options)


def test_a_folder_is_local_and_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x y").mkdir()
    for path in ("x y", "./x y/", tmp_path / "x y", f"file://{tmp_path}/x y"):
        storage = Storage.open(path)
        assert storage.is_local
        assert storage.root == f"{tmp_path}/x y"
        assert storage.local_path("a.tar") == tmp_path / "x y" / "a.tar"


def test_names_may_have_a_place_of_their_own() -> None:
    storage = Storage.open("https://host/set/")
    assert not storage.is_local
    assert storage.url("train/a.tar") == "https://host/set/train/a.tar"
    assert storage.url("s3://other/a.tar") == "s3://other/a.tar"
    assert storage.holds_locally("/data/a.tar")
    assert storage.local_path("/data/a.tar") == Path("/data/a.tar")
    assert not Storage.open("/data").holds_locally("https://host/a.tar")
    with pytest.raises(DataError, match=r"https://host/set/a\.tar is not on this machine"):
        storage.local_path("a.tar")


def test_options_are_for_the_service_they_were_made_for(http: HttpServer, tmp_path: Path) -> None:
    """A shard on a web server, in a dataset on S3 whose options a web server would not understand."""
    storage = Storage.open("s3://bucket", {"endpoint_url": "http://127.0.0.1:1", "client_kwargs": {"region_name": "x"}})
    storage.download(f"{http.url}/a.tar", tmp_path / "a.tar")
    assert (tmp_path / "a.tar").read_bytes() == DATA


@pytest.mark.parametrize("name", ["a.tar", "odd #name? 100%.tar"])
def test_size_and_download(far: Storage, name: str, tmp_path: Path) -> None:
    assert far.size(name) == len(DATA)
    far.download(name, tmp_path / "copy", size=len(DATA))
    assert (tmp_path / "copy").read_bytes() == DATA
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_large_objects_come_in_pieces(s3: S3Server, tmp_path: Path) -> None:
    storage = Storage.open("s3://bucket/set", {**s3.options, "default_block_size": 70_000})
    storage.download("a.tar", tmp_path / "copy", size=len(DATA))
    assert (tmp_path / "copy").read_bytes() == DATA


def test_any_file_system_of_fsspec(tmp_path: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/any/a.tar", DATA)
    storage = Storage.open("memory://any")
    assert storage.size("a.tar") == len(DATA)
    storage.download("a.tar", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == DATA
    with pytest.raises(MissingFileError, match=r"memory://any/b\.tar does not exist"):
        storage.download("b.tar", tmp_path / "copy")


def test_missing_files(far: Storage, s3: S3Server, tmp_path: Path) -> None:
    for storage, name in ((far, "none.tar"), (Storage.open("s3://nobucket", s3.options), "a.tar")):
        with pytest.raises(MissingFileError, match=rf"{name} does not exist"):
            storage.size(name)
        with pytest.raises(MissingFileError, match=rf"{name} does not exist"):
            storage.download(name, tmp_path / "copy")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (403, DataError, "no access to .*403.*credentials"),
        (400, DataError, "cannot be read: .*400"),
        (429, TransferError, "429"),
        (500, TransferError, "500"),
        (503, TransferError, "503"),
    ],
)
def test_refusals_and_troubles(
    http: HttpServer, s3: S3Server, status: int, kind: type[DataError], words: str, tmp_path: Path
) -> None:
    http.misbehave("b.tar", status=status)
    storage = Storage.open(http.url)
    try:
        for act in (lambda: storage.size("b.tar"), lambda: storage.download("b.tar", tmp_path / "copy")):
            with pytest.raises(DataError, match=words) as caught:
                act()
            assert type(caught.value) is kind
    finally:
        http.behave("b.tar")


def test_s3_refusals_and_troubles(http: HttpServer, s3: S3Server, tmp_path: Path) -> None:
    """What a server that is not Amazon's may answer, without the XML that Amazon would send."""
    storage = Storage.open("s3://bucket", {"endpoint_url": http.url})
    for status, kind in ((403, DataError), (404, MissingFileError), (500, TransferError), (503, TransferError)):
        http.misbehave("bucket/c.tar", status=status)
        with pytest.raises(DataError, match=r"c\.tar|Error") as caught:
            storage.download("c.tar", tmp_path / "copy")
        assert type(caught.value) is kind, caught.value


def test_no_credentials_is_no_reason_to_try_again(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    storage = Storage.open("s3://bucket/set", {**s3.options, "use_listings_cache": False, "anon": False})
    with pytest.raises(DataError, match=r"[Cc]redentials") as caught:
        storage.size("a.tar")
    assert not isinstance(caught.value, TransferError)


def test_nobody_listens(tmp_path: Path) -> None:
    for storage in (Storage.open("http://127.0.0.1:1"), Storage.open("s3://b", {"endpoint_url": "http://127.0.0.1:1"})):
        with pytest.raises(TransferError, match=r"127\.0\.0\.1:1"):
            storage.size("a.tar")
        with pytest.raises(TransferError, match=r"127\.0\.0\.1:1"):
            storage.download("a.tar", tmp_path / "copy")


def test_an_early_end_is_noticed(http: HttpServer, tmp_path: Path) -> None:
    storage = Storage.open(http.url)
    http.misbehave("b.tar", times=1, bytes=100_000)
    with pytest.raises(TransferError):
        storage.download("b.tar", tmp_path / "copy")
    http.misbehave("b.tar", times=1, bytes=100_000, length=False)  # only the index knows
    with pytest.raises(TransferError, match=f"after 100000 of {len(DATA)} bytes"):
        storage.download("b.tar", tmp_path / "copy", size=len(DATA))
    assert not list(tmp_path.iterdir())
    storage.download("b.tar", tmp_path / "copy", size=len(DATA))


def test_an_early_end_from_s3_is_noticed(http: HttpServer, s3: S3Server, tmp_path: Path) -> None:
    (http.folder / "bucket" / "d.tar").write_bytes(DATA)
    for pieces in ({}, {"default_block_size": 70_000}):
        http.misbehave("bucket/d.tar", bytes=50_000)
        storage = Storage.open("s3://bucket", {"endpoint_url": http.url, **pieces})
        with pytest.raises(TransferError):
            storage.download("d.tar", tmp_path / "copy")
        assert not list(tmp_path.iterdir())
        http.behave("bucket/d.tar")
        storage.download("d.tar", tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == DATA
        (tmp_path / "copy").unlink()


def test_a_file_of_another_size_is_not_asked_for_again(far: Storage, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"a\.tar has {len(DATA)} bytes, but the dataset's index says 7:") as caught:
        far.download("a.tar", tmp_path / "copy", size=7)
    assert not isinstance(caught.value, TransferError)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["http", "s3"])
def test_a_silent_server_times_out(http: HttpServer, s3: S3Server, kind: str, tmp_path: Path) -> None:
    name = f"bucket/{kind}-silent.tar"
    http.misbehave(name, silent=True)
    place, options = (http.url, {}) if kind == "http" else ("s3:/", {"endpoint_url": http.url})
    storage = Storage.open(f"{place}/bucket", options, timeout_seconds=0.4)
    began = time.monotonic()
    with pytest.raises(TransferError, match=r"[Tt]ime"):
        storage.download(f"{kind}-silent.tar", tmp_path / "copy")
    assert 0.3 < time.monotonic() - began < 3


def test_a_slow_server_is_not_a_silent_one(http: HttpServer, tmp_path: Path) -> None:
    pieces = 20 * bytes(2**16)
    (http.folder / "slow.tar").write_bytes(pieces)
    http.misbehave("slow.tar", times=1, pause=0.06)  # far below the time-out, also on a busy machine; all are above it
    Storage.open(http.url, timeout_seconds=1.1).download("slow.tar", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == pieces


def test_a_transfer_can_be_stopped(http: HttpServer, tmp_path: Path) -> None:
    http.misbehave("b.tar", times=1, pause=0.3)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(TransferStopped):
        Storage.open(http.url).download("b.tar", tmp_path / "copy", stop=stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nowhere://x/y", "nowhere://x/y cannot be opened: Protocol not known"),
        ("gs://bucket/x", "needs a package that is not installed .*gcsfs"),
        ("http:///x", "is no place for a dataset"),
        ("s3://", "is no place for a dataset"),
        ("http://host/x?key=1", r"has a '\?' or '#'"),
        ("zip://a::http://host/b.zip", "is no place for a dataset"),
    ],
)
def test_places_that_cannot_be(place: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Storage.open(place)


def test_wrong_options_are_told(s3: S3Server) -> None:
    storage = Storage.open("s3://bucket", {**s3.options, "client_kwargs": {"no_such_option": 1}})
    with pytest.raises(DataError, match="no_such_option") as caught:
        storage.size("a.tar")
    assert not isinstance(caught.value, TransferError)


def test_secrets_are_not_shown() -> None:
    storage = Storage.open("http://me:secret@127.0.0.1:1/x", {"key": "secret"})
    with pytest.raises(DataError, match=r"x/a\.tar") as caught:  # "key" is an option of S3 and not of a web server
        storage.size("a.tar")
    with pytest.raises(DataError) as presigned:
        storage.size("http://127.0.0.1:1/a.tar?signature=secret")
    for text in (str(storage), repr(storage).replace("me:secret@", ""), str(caught.value), str(presigned.value)):
        assert "secret" not in text


def _download(storage: Storage, to: Path) -> None:
    storage.download("a.tar", to)


def test_other_processes_and_threads(far: Storage, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: _download(far, tmp_path / f"thread-{n}"), range(8)))
    script = """
import os, pickle, sys
storage, folder = pickle.load(sys.stdin.buffer)
storage.download("a.tar", folder / "other")
child = os.fork()  # now that there are connections, which it must not share
storage.download("a.tar", folder / ("parent" if child else "child"))
if child:
    assert os.waitpid(child, 0)[1] == 0
"""
    subprocess.run([sys.executable, "-c", script], input=pickle.dumps((far, tmp_path)), check=True)
    copies = list(tmp_path.iterdir())
    assert len(copies) == 11
    assert all(path.read_bytes() == DATA for path in copies)

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.storage.cache import ShardCache, default_cache_folder
from dmlscale.data.storage.retry import Retry
from dmlscale.data.storage.storage import Storage
from dmlscale.data.storage.transfer_errors import MissingFileError, ShardError
from tests.data.far_shards import QUICK, SIZE, content, copies, leftovers, output, start
from tests.data.servers import HttpServer, S3Server


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(tmp_path / "cache", 100 * SIZE, QUICK)


def test_local_files_are_given_themselves(tmp_path: Path, cache: ShardCache) -> None:
    (tmp_path / "a.tar").write_bytes(b"12345")
    storage = Storage.open(tmp_path)
    assert cache.fetch(storage, "a.tar", 5) == tmp_path / "a.tar"
    assert cache.open(storage, "a.tar").read() == b"12345"
    with pytest.raises(DataError, match=r"a\.tar has 5 bytes, but the dataset's index says 6"):
        cache.fetch(storage, "a.tar", 6)
    with pytest.raises(MissingFileError, match=r"b\.tar is missing"):
        cache.fetch(storage, "b.tar")
    assert not (tmp_path / "cache").exists()


def test_a_file_is_downloaded_once(http: HttpServer, storage: Storage, cache: ShardCache, tmp_path: Path) -> None:
    path = cache.fetch(storage, "1.tar", SIZE)
    assert path.read_bytes() == content(1)
    assert cache.fetch(storage, "1.tar", SIZE) == cache.fetch(storage, "1.tar") == path
    with cache.open(storage, "1.tar", SIZE) as file:
        assert file.read() == content(1)
    assert http.requests("1.tar") == 1
    assert http.requests("1.tar", "HEAD") == 0
    assert not leftovers(tmp_path / "cache")
    assert http.url in path.parent.with_suffix(".txt").read_text()


def test_from_s3(tmp_path: Path, cache: ShardCache) -> None:
    with S3Server() as server:
        (tmp_path / "set").mkdir()
        (tmp_path / "set" / "1.tar").write_bytes(content(1))
        storage = Storage.open(server.upload(tmp_path / "set", "bucket", "some/set"), server.options)
        assert cache.fetch(storage, "1.tar").read_bytes() == content(1)
        with pytest.raises(MissingFileError, match=r"s3://bucket/some/set/2\.tar does not exist"):
            cache.fetch(storage, "2.tar", SIZE)
    assert cache.fetch(storage, "1.tar").read_bytes() == content(1)


def test_processes_and_threads_download_once(
    http: HttpServer, storage: Storage, cache: ShardCache, tmp_path: Path
) -> None:
    http.misbehave("1.tar", pause=0.1)  # long enough for all to meet
    script = "print(a[1].fetch(a[0], '1.tar', a[2]).read_bytes() == bytes([1]) * a[2])"
    processes = [start(script, storage, cache, SIZE) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        paths = list(pool.map(lambda _: cache.fetch(storage, "1.tar", SIZE), range(4)))
    assert len(set(paths)) == 1
    assert [output(process) for process in processes] == [b"True\n"] * 4
    assert http.requests("1.tar") == 1
    assert not leftovers(tmp_path / "cache")


def test_a_killed_process_leaves_nothing_that_looks_complete(
    http: HttpServer, storage: Storage, cache: ShardCache, tmp_path: Path
) -> None:
    http.misbehave("1.tar", held=True)
    process = start("a[1].fetch(a[0], '1.tar', a[2])", storage, cache, SIZE)
    while not any(path.name.endswith(".part") and path.stat().st_size for path in leftovers(tmp_path / "cache")):
        assert process.poll() is None
        time.sleep(0.01)
    assert cache.used_bytes() == SIZE  # reserved
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not copies(tmp_path / "cache")
    http.behave("1.tar")
    began = time.monotonic()
    assert cache.fetch(storage, "1.tar", SIZE).read_bytes() == content(1)
    assert time.monotonic() - began < 1  # nobody waits for the dead
    assert not leftovers(tmp_path / "cache")


def test_a_broken_transfer_is_tried_again(http: HttpServer, storage: Storage, cache: ShardCache) -> None:
    http.misbehave("1.tar", times=2, bytes=100_000)
    assert cache.fetch(storage, "1.tar", SIZE).read_bytes() == content(1)
    http.misbehave("2.tar", times=2, bytes=100_000, length=False)
    assert cache.fetch(storage, "2.tar", SIZE).read_bytes() == content(2)
    assert http.requests("1.tar") == http.requests("2.tar") == 3


def test_a_server_that_comes_back_is_waited_for(http: HttpServer, storage: Storage, cache: ShardCache) -> None:
    cache.fetch(storage, "0.tar", SIZE)
    http.kill()
    back = threading.Timer(1, http.start)
    back.start()
    for size in (SIZE, None):  # asks for the size first
        assert cache.fetch(storage, f"{1 if size else 2}.tar", size).read_bytes() == content(1 if size else 2)
    back.join()


def test_a_server_that_stays_away_is_an_error_in_time(http: HttpServer, storage: Storage, tmp_path: Path) -> None:
    http.kill()
    cache = ShardCache(tmp_path / "cache", 100 * SIZE, Retry(seconds=1, first_wait=0.1))
    for size in (SIZE, None):
        began = time.monotonic()
        with pytest.raises(ShardError, match=rf"{http.url}/1\.tar could not be read: \d+ attempts in \d\.\d s, .*"):
            cache.fetch(storage, "1.tar", size)
        assert 0.9 < time.monotonic() - began < 2
    assert not copies(tmp_path / "cache")
    assert not leftovers(tmp_path / "cache")


def test_waiting_for_others_counts(http: HttpServer, storage: Storage, tmp_path: Path) -> None:
    """A dead server costs its time once, not once for each that waits."""
    http.kill()
    cache = ShardCache(tmp_path / "cache", 100 * SIZE, Retry(seconds=1.5, first_wait=0.1))

    def fails(_: int) -> bool:
        with pytest.raises(ShardError):
            cache.fetch(storage, "1.tar", SIZE)
        return True

    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(fails, range(8)))
    assert time.monotonic() - began < 6  # one after the other they would take 12


def test_missing_files_are_told_at_once(http: HttpServer, storage: Storage, cache: ShardCache) -> None:
    for size in (SIZE, None):
        with pytest.raises(MissingFileError, match=r"none\.tar does not exist"):
            cache.fetch(storage, "none.tar", size)
    assert http.requests("none.tar") == 2  # HTTP has to ask in two ways for a size


def test_a_stale_copy_is_replaced(http: HttpServer, storage: Storage, cache: ShardCache) -> None:
    path = cache.fetch(storage, "1.tar", SIZE)
    (http.folder / "1.tar").write_bytes(b"new and longer" * 30_000)
    with path.open("rb") as old:
        assert cache.fetch(storage, "1.tar", 420_000).read_bytes() == b"new and longer" * 30_000
        assert old.read() == content(1)
    os.truncate(path, 1000)  # damaged
    assert cache.fetch(storage, "1.tar", 420_000).stat().st_size == 420_000
    with pytest.raises(DataError, match=f"has 420000 bytes, but the dataset's index says {SIZE}"):
        cache.fetch(storage, "1.tar", SIZE)


def test_versions_and_servers_are_kept_apart(http: HttpServer, storage: Storage, cache: ShardCache) -> None:
    """A shard that was packed again may have the size it had."""
    other = Storage(storage.root, version="2")
    elsewhere = (
        Storage("s3://bucket", {"endpoint_url": "http://a"}),
        Storage("s3://bucket", {"endpoint_url": "http://b"}),
    )
    places = {cache._folder.place(s, "1.tar") for s in (storage, other, *elsewhere)}
    assert len(places) == 4
    assert cache.fetch(storage, "1.tar", SIZE).read_bytes() == content(1)
    (http.folder / "1.tar").write_bytes(content(9))
    assert cache.fetch(other, "1.tar", SIZE).read_bytes() == content(9)
    assert cache.fetch(storage, "1.tar", SIZE).read_bytes() == content(1)


def test_odd_names_have_copies(http: HttpServer, storage: Storage, cache: ShardCache) -> None:
    for name in ("a b.tar", ".hidden", "x" * 240, "sub/folder/a#b?.tar"):
        (http.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (http.folder / name).write_bytes(name.encode())
        assert cache.fetch(storage, name, len(name)).read_bytes() == name.encode()
        assert cache.fetch(storage, name, len(name)).read_bytes() == name.encode()
        assert http.requests(name) == 1


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DMLSCALE_CACHE", str(tmp_path / "x"))
    assert default_cache_folder() == tmp_path / "x"
    monkeypatch.delenv("DMLSCALE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache_folder() == tmp_path / ".cache" / "dmlscale"


def test_a_folder_that_cannot_be_written(storage: Storage, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot write to the cache .*file.*data\.cache_folder"):
        ShardCache(tmp_path / "file", SIZE).fetch(storage, "1.tar")

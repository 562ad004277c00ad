from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from dmlscale.data.storage.cache import ShardCache
from dmlscale.data.storage.fetcher import Shard, ShardFetcher
from dmlscale.data.storage.retry import Retry
from dmlscale.data.storage.storage import Storage
from tests.data.servers import HttpServer

SIZE = 200_000
SHARDS = [Shard(f"{number}.tar", SIZE) for number in range(12)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpServer]:
    folder = tmp_path_factory.mktemp("served")
    for number, shard in enumerate(SHARDS):
        (folder / shard.name).write_bytes(bytes([number]) * SIZE)
    with HttpServer(folder, tmp_path_factory.mktemp("state")) as http:
        yield http


@pytest.fixture
def storage(server: HttpServer) -> Storage:
    return Storage.open(server.url)


def make_cache(tmp_path: Path, num_shards: float) -> ShardCache:
    return ShardCache(tmp_path / "cache", int(num_shards * SIZE), Retry(20, 0.05, 0.2))


def cached(tmp_path: Path) -> set[str]:
    return {path.name for path in (tmp_path / "cache").glob("*/*.tar") if not path.name.startswith(".")}


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def names(*numbers: int) -> set[str]:
    return {f"{number}.tar" for number in numbers}


def test_a_list_is_fetched_ahead(server: HttpServer, storage: Storage, tmp_path: Path) -> None:
    cache = make_cache(tmp_path, 100)
    before = server.requests("1.tar")
    with closing(ShardFetcher(cache, storage)) as fetcher:
        fetcher.request(SHARDS[:4])
        assert fetcher.wait(60)
        assert cached(tmp_path) == names(0, 1, 2, 3)
        assert cache.fetch(storage, *SHARDS[1]).read_bytes() == b"\1" * SIZE
        assert server.requests("1.tar") == before + 1


def test_in_the_order_of_the_list(server: HttpServer, storage: Storage, tmp_path: Path) -> None:
    server.misbehave("5.tar", held=True)
    with closing(ShardFetcher(make_cache(tmp_path, 100), storage, num_threads=1)) as fetcher:
        fetcher.request([SHARDS[4], SHARDS[5], SHARDS[6]])
        eventually(lambda: cached(tmp_path) == names(4))
        fetcher.request([SHARDS[5], SHARDS[7]])  # goes on with 5, drops 6
        server.behave("5.tar")
        assert fetcher.wait(60)
        assert cached(tmp_path) == names(4, 5, 7)


def test_a_full_cache_ends_it_and_a_new_list_frees_the_old(storage: Storage, tmp_path: Path) -> None:
    cache = make_cache(tmp_path, 3)
    with closing(ShardFetcher(cache, storage)) as fetcher:
        fetcher.request(SHARDS)
        assert fetcher.wait(60)
        assert cached(tmp_path) == names(0, 1, 2)
        fetcher.request(SHARDS[2:])
        assert fetcher.wait(60)
        assert cached(tmp_path) == names(2, 3, 4)
    cache.fetch(storage, *SHARDS[9])  # closed, it keeps nothing
    assert len(cached(tmp_path)) == 3
    assert cache.used_bytes() == 3 * SIZE


def test_no_more_than_depth(storage: Storage, tmp_path: Path) -> None:
    with closing(ShardFetcher(make_cache(tmp_path, 100), storage, depth=2)) as fetcher:
        fetcher.request(SHARDS)
        assert fetcher.wait(60)
        assert cached(tmp_path) == names(0, 1)


def test_what_another_downloads_is_passed_over(server: HttpServer, storage: Storage, tmp_path: Path) -> None:
    cache = make_cache(tmp_path, 100)
    server.misbehave("8.tar", held=True)
    before = server.requests("8.tar")
    other = threading.Thread(target=cache.fetch, args=(storage, *SHARDS[8]))
    other.start()
    eventually(lambda: server.requests("8.tar") > before)
    with closing(ShardFetcher(cache, storage, num_threads=1)) as fetcher:
        fetcher.request([SHARDS[8], SHARDS[9]])
        assert fetcher.wait(60)
        assert cached(tmp_path) == names(9)
        server.behave("8.tar")
        other.join()
        assert cached(tmp_path) == names(8, 9)
    assert server.requests("8.tar") == before + 1


def test_failures_are_left_to_the_one_who_needs_the_file(server: HttpServer, storage: Storage, tmp_path: Path) -> None:
    with closing(ShardFetcher(make_cache(tmp_path, 100), storage, num_threads=1)) as fetcher:
        fetcher.request([Shard("none.tar", 7), Shard("1.tar", 7), SHARDS[2]])
        assert fetcher.wait(60)
        assert cached(tmp_path) == names(2)


def test_close_ends_the_threads(server: HttpServer, storage: Storage, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    endless = Shard("endless.tar", 100 * 2**16)
    (server.folder / endless.name).write_bytes(bytes(100 * 2**16))
    server.misbehave(endless.name, pause=0.5)
    server.misbehave("11.tar", status=503)
    fetcher = ShardFetcher(make_cache(tmp_path, 100), storage, num_threads=3)
    started = {thread for thread in threading.enumerate() if thread.name.startswith("dmlscale-fetch-")} - before
    assert len(started) == 3
    fetcher.request([endless, SHARDS[11]])  # one on its way, one between two attempts
    eventually(lambda: server.requests("11.tar") > 1)
    began = time.monotonic()
    fetcher.close()
    fetcher.close()
    assert time.monotonic() - began < 3  # the transfer would take 50
    assert not any(thread.is_alive() for thread in started)
    assert not cached(tmp_path)
    with pytest.raises(ValueError, match="closed"):
        fetcher.request([])


def test_nothing_to_do_for_local_files(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(b"0")
    with closing(ShardFetcher(make_cache(tmp_path, 100), Storage.open(tmp_path))) as fetcher:
        fetcher.request(SHARDS)
        assert fetcher.wait(60)
    assert not (tmp_path / "cache").exists()

"""How a cache keeps to its size."""

from __future__ import annotations

import signal
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.data.errors import DataError
from dmlscale.data.storage import cache_folder
from dmlscale.data.storage.cache import ShardCache
from dmlscale.data.storage.locks import sole_owner
from dmlscale.data.storage.storage import Storage
from tests.data.far_shards import QUICK, SIZE, content, copies, leftovers, output, start
from tests.data.servers import HttpServer


def test_what_killed_processes_leave_takes_no_room(http: HttpServer, storage: Storage, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", int(2.5 * SIZE), QUICK)
    http.misbehave("1.tar", times=1, pause=1)
    process = start("a[1].fetch(a[0], '1.tar', a[2])", storage, cache, SIZE)
    while not leftovers(tmp_path / "cache"):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for number in (2, 3):
        cache.fetch(storage, f"{number}.tar", SIZE)
    assert copies(tmp_path / "cache") == {"2.tar", "3.tar"}
    assert not leftovers(tmp_path / "cache")


def test_a_download_that_ends_while_it_is_counted(
    http: HttpServer, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock goes between two looks: the file must be counted all the same, or the cache would outgrow its limit."""
    cache = ShardCache(tmp_path / "cache", 3 * SIZE, QUICK)
    cache.fetch(storage, "0.tar", SIZE)
    lock = next((tmp_path / "cache").glob("*/0.tar")).with_name(".0.tar.lock")
    lock.write_text(str(SIZE))

    @contextmanager
    def gone_at_once(path: Path, *, wait: bool) -> Iterator[bool]:
        path.unlink()
        yield False

    monkeypatch.setattr(cache_folder, "sole_owner", gone_at_once)
    assert cache.used_bytes() == SIZE
    assert not lock.exists()


def test_a_file_counts_while_one_who_waited_for_it_has_its_lock(storage: Storage, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 2 * SIZE, QUICK)
    for number in (0, 1):
        cache.fetch(storage, f"{number}.tar", SIZE)
    waited_for = next((tmp_path / "cache").glob("*/1.tar"))
    with sole_owner(cache_folder.lock_path(waited_for), wait=True):  # it will look, and find the file
        assert cache.used_bytes() == 2 * SIZE
        cache.fetch(storage, "2.tar", SIZE)
        assert copies(tmp_path / "cache") == {"1.tar", "2.tar"}
        assert cache.used_bytes() == 2 * SIZE


def test_the_least_recently_used_file_goes(storage: Storage, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 3 * SIZE, QUICK)
    for number in (0, 1, 2, 0, 3):
        cache.fetch(storage, f"{number}.tar", SIZE)
    assert copies(tmp_path / "cache") == {"0.tar", "2.tar", "3.tar"}
    with cache.open(storage, "2.tar", SIZE) as kept:
        for number in (0, 3, 4, 5):
            cache.fetch(storage, f"{number}.tar", None)
        assert copies(tmp_path / "cache") == {"2.tar", "4.tar", "5.tar"}
        assert kept.read() == content(2)
    cache.fetch(storage, "0.tar", SIZE)
    assert copies(tmp_path / "cache") == {"4.tar", "5.tar", "0.tar"}


def test_what_is_open_is_kept_by_all_processes(
    storage: Storage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = ShardCache(tmp_path / "cache", 2 * SIZE, QUICK)
    script = "import time; f = [a[1].open(a[0], n) for n in ('0.tar', '1.tar')]; print(flush=True); time.sleep(60)"
    process = start(script, storage, cache)
    assert process.stdout is not None
    process.stdout.readline()
    cache.fetch(storage, "2.tar", SIZE)  # needed now: the limit has to wait
    assert copies(tmp_path / "cache") == {"0.tar", "1.tar", "2.tar"}
    assert [r for r in caplog.messages if f"files in use take {SIZE} bytes more than data.cache_gb allows" in r]
    process.kill()
    process.wait()
    cache.fetch(storage, "3.tar", SIZE)
    assert copies(tmp_path / "cache") == {"2.tar", "3.tar"}


def test_foreign_files_are_left_alone(storage: Storage, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 1 * SIZE, QUICK)
    foreign = [tmp_path / "cache" / "other" / "file", tmp_path / "cache" / "notes.txt"]
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content(7))
    for number in (0, 1):
        cache.fetch(storage, f"{number}.tar", SIZE)
    assert cache.used_bytes() == SIZE
    assert all(path.read_bytes() == content(7) for path in foreign)


def test_a_file_larger_than_the_cache(storage: Storage, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", SIZE - 1, QUICK)
    for size in (SIZE, None):
        with pytest.raises(DataError, match=f"has {SIZE} bytes, but .* only {SIZE - 1}: raise data.cache_gb"):
            cache.fetch(storage, "1.tar", size)
    assert cache.used_bytes() == 0


def test_many_processes_share_a_small_cache(storage: Storage, tmp_path: Path) -> None:
    cache = ShardCache(tmp_path / "cache", 4 * SIZE, QUICK)
    script = """
import random
for number in random.Random(a[3]).choices(range(6), k=60):
    with a[1].open(a[0], f"{number}.tar", a[2]) as file:
        assert file.read() == bytes([number]) * a[2]
print("done")
"""
    processes = [start(script, storage, cache, SIZE, seed) for seed in range(3)]
    while any(process.poll() is None for process in processes):
        assert cache.used_bytes() <= 4 * SIZE  # each process keeps or reserves no more than one
        time.sleep(0.02)
    assert [output(process) for process in processes] == [b"done\n"] * 3
    assert cache.used_bytes() <= 4 * SIZE
    assert not leftovers(tmp_path / "cache")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 7), max_size=25), st.integers(8, 24))
def test_a_cache_is_a_list_by_last_use(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], limit: int
) -> None:
    """Against a model; file n has n + 1 bytes."""
    memory = fsspec.filesystem("memory")
    folder = tmp_path_factory.mktemp("cache")
    cache, storage = ShardCache(folder, limit), Storage.open("memory://model")
    model: OrderedDict[str, int] = OrderedDict()
    for number in numbers:
        name, size = f"{number}.tar", number + 1
        memory.pipe_file(f"/model/{name}", content(number, size))
        assert cache.fetch(storage, name, size if number % 2 else None).read_bytes() == content(number, size)
        model.pop(name, None)
        while sum(model.values()) + size > limit:
            model.popitem(last=False)
        model[name] = size
        assert copies(folder) == set(model)

"""Packing by any number of processes, cut off at any moment: always the same bytes, and nothing is done twice."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.packing.pack import ensure_packed, pack
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.sources import Item
from tests.data.listed import Listed, item, mixed_items

SOURCE = Listed(mixed_items())
SMALL_SHARDS = PackOptions(shard_size_bytes=1, num_processes=1)  # 32 samples each
NUM_SHARDS = 8 + 2


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def written(folder: Path) -> dict[str, tuple[int, int]]:
    """Which file each shard is, and when it was last written; a file that is moved stays the same."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*.tar")}


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """The shards that need not be written again."""
    work = folder / ".packing"
    return {name: stamp for name, stamp in written(work).items() if (work / f"{name}.npz").is_file()}


@pytest.mark.parametrize("num_processes", [2, 3])
def test_any_number_of_processes_gives_the_same_bytes(mixed: Path, tmp_path: Path, num_processes: int) -> None:
    summary = pack(SOURCE, tmp_path, replace(SMALL_SHARDS, num_processes=num_processes))
    assert summary.num_shards == NUM_SHARDS
    assert files_of(tmp_path) == files_of(mixed)


def start_packing(
    source: Listed, folder: Path, options: PackOptions, before: str = "", after: str = ""
) -> subprocess.Popen[bytes]:
    """In a process of its own, which may do something before and after."""
    script = f"import pickle, sys; from dmlscale.data.packing.pack import pack; {before}\n"
    script += f"pack(*pickle.load(sys.stdin.buffer)); {after}"
    process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(pickle.dumps((source, folder, options)))
    process.stdin.close()
    process.stdin = None
    return process


def wait_for(condition: Callable[[], object], process: subprocess.Popen[bytes], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@pytest.mark.parametrize(("num_processes", "num_finished", "num_quick"), [(1, 1, 110), (1, 5, 230), (2, 2, 110)])
def test_killed_at_any_moment_it_goes_on_to_the_same_bytes(
    mixed: Path, tmp_path: Path, num_processes: int, num_finished: int, num_quick: int
) -> None:
    options = replace(SMALL_SHARDS, num_processes=num_processes)
    # It comes to so many samples and not to its end, however late this process looks.
    process = start_packing(replace(SOURCE, seconds=1.0, num_quick=num_quick), tmp_path, options)
    wait_for(lambda: len(finished(tmp_path)) >= num_finished, process)
    helpers = psutil.Process(process.pid).children(recursive=True)
    with process:
        process.send_signal(signal.SIGKILL)
    assert {path.name for path in tmp_path.iterdir()} == {".packing"}  # nothing that looks like a dataset
    before = finished(tmp_path)
    assert num_finished <= len(before) < NUM_SHARDS
    assert not psutil.wait_procs(helpers, timeout=60)[1]  # its processes do not outlive it

    done: list[int] = []
    pack(SOURCE, tmp_path, SMALL_SHARDS, progress=lambda count, _: done.append(count))
    assert files_of(tmp_path) == files_of(mixed)
    assert written(tmp_path).items() >= before.items()
    assert done[0] > 32 * sum(name.startswith("train") for name in before)


def cut_off(folder: Path, source: Listed, at: int, options: PackOptions = SMALL_SHARDS) -> dict[str, tuple[int, int]]:
    """Packs the first ``at`` samples or a few more; the shards that are finished then."""

    def stop(count: int, _: int) -> None:
        if count >= at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(source, folder, options, progress=stop)
    return finished(folder)


@pytest.mark.parametrize("at", [33, 230, 250])
def test_an_interrupted_packing_goes_on(mixed: Path, tmp_path: Path, at: int) -> None:
    before = cut_off(tmp_path, SOURCE, at)
    assert before
    again = cut_off(tmp_path, SOURCE, at + 40)
    assert again.items() > before.items()
    assert not ensure_packed(SOURCE, tmp_path, SMALL_SHARDS).is_reused
    assert files_of(tmp_path) == files_of(mixed)
    assert written(tmp_path).items() >= again.items()


def test_interrupted_before_the_first_shard_it_leaves_nothing(tmp_path: Path) -> None:
    assert not cut_off(tmp_path, SOURCE, 1)
    assert not list(tmp_path.iterdir())


def test_progress_counts_every_sample_once(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    pack(Listed((*SOURCE.listed, SOURCE.listed[0])), tmp_path, SMALL_SHARDS, progress=lambda *call: calls.append(call))
    counts = [count for count, _ in calls]
    assert counts == sorted(set(counts))
    assert counts[:2] == [32, 64]
    assert calls[-1] == (300, 300)
    assert {total for _, total in calls} == {300}


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (Listed(SOURCE.listed[:-1]), SMALL_SHARDS),
        (Listed((*SOURCE.listed[:-1], SOURCE.listed[-1]._replace(class_name="other"))), SMALL_SHARDS),
        (SOURCE, replace(SMALL_SHARDS, seed=1)),
    ],
)
def test_another_source_or_order_starts_over(tmp_path: Path, source: Listed, options: PackOptions) -> None:
    before = cut_off(tmp_path / "again", SOURCE, 200)
    pack(source, tmp_path / "again", options)
    pack(source, tmp_path / "fresh", options)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "fresh")
    assert not set(before.items()) & set(written(tmp_path / "again").items())


def test_a_shard_of_rejects_alone_does_not_stop_the_going_on(tmp_path: Path) -> None:
    """Its file is deleted as the tables are written, while later shards are not finished yet."""
    bad = tuple(item(f"bad{n}", parts=[b"no picture"]) for n in range(32))
    source = Listed((*bad, *(item(str(n), "b", "a_test") for n in range(64))))
    with pytest.raises(DataError, match="none of the 32 listed"):
        pack(Listed(bad), tmp_path / "none", SMALL_SHARDS)
    before = cut_off(tmp_path / "some", source, 96)
    assert list(before) == ["a_test-000000.tar"]
    pack(source, tmp_path / "some", SMALL_SHARDS)
    pack(source, tmp_path / "whole", SMALL_SHARDS)
    assert written(tmp_path / "some").items() >= before.items()
    assert files_of(tmp_path / "some") == files_of(tmp_path / "whole")
    assert sorted(written(tmp_path / "some")) == ["a_test-000000.tar", "a_test-000001.tar"]


def test_a_second_packer_is_refused(tmp_path: Path) -> None:
    process = start_packing(replace(SOURCE, seconds=1.0, num_quick=40), tmp_path, SMALL_SHARDS)
    try:
        wait_for(lambda: list((tmp_path / ".packing").glob("*.partial")), process)
        with pytest.raises(DataError, match="is being packed by another process: wait for it or choose another folder"):
            pack(SOURCE, tmp_path, SMALL_SHARDS)
        assert process.poll() is None
        assert list((tmp_path / ".packing").glob("*.partial"))  # the first is not disturbed
    finally:
        with process:
            process.kill()
    pack(SOURCE, tmp_path, SMALL_SHARDS)


class Deadly(Listed):
    """A source whose process dies."""

    def load(self, ref: str) -> list[bytes]:
        os._exit(1)


def test_a_process_that_dies_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a packing process died .* run the same again with num_processes=1"):
        pack(Deadly(SOURCE.listed), tmp_path, replace(SMALL_SHARDS, num_processes=2))


@dataclass(frozen=True)
class Counted(Listed):
    """A source that makes its items as they are listed."""

    num_items: int = 0

    def items(self) -> Iterator[Item]:
        for number in range(self.num_items):
            yield Item(f"{number:08d}", f"c{number % 100}", "train", f"={number:08x}", "png")


def peak_bytes(folder: Path, num_items: int) -> int:
    """Most memory that a process has while it packs; a small piece of the list at a time, to see what remains."""
    patch = "from dmlscale.data.packing import item_table; item_table._CHUNK = 2**11"
    tell = "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
    options = PackOptions(shard_size_bytes=2**20, num_processes=1, check=False)
    process = start_packing(Counted((), num_items=num_items), folder, options, patch, tell)
    with process:
        assert process.stdout is not None
        return 1024 * int(process.stdout.read())


def test_memory_hardly_grows_with_the_number_of_samples(tmp_path: Path) -> None:
    """Some numbers a sample are in memory to shuffle them; the list and the index are mapped, which counts here too."""
    small, large = 15_000, 75_000
    growth = peak_bytes(tmp_path / "large", large) - peak_bytes(tmp_path / "small", small)
    assert growth / (large - small) < 150  # a key as a text takes 60, an item 300
    assert len(Index.load(tmp_path / "large")) == large

"""Samples per second of our reader beside plain webdataset and a bare tar loop, on the same shards.

Run:  python -m benchmarks.reader                   # a few minutes
      python -m benchmarks.reader --small 5000 --large 200 --threads 0
      python -m benchmarks.reader --folder FOLDER   # keeps the shards there, and uses them again
      python -m benchmarks.reader --markdown benchmarks/reader_DATE_HARDWARE.md

All ways (reader_sides.py) take turns in one process, with warm files, one torch thread and no cache of decoded
samples; the fastest of several epochs counts, from the first request to the last sample. Workers are processes of a
DataLoader for webdataset and threads for ours, which has one also where there are 0 workers, while the caller waits.
Where all work is in this process, its CPU time is told as well.

The bounds are on "our batches" over "webdataset, shuffled batches" without workers, the two rows that do what training
needs: read in a mixed order, decode, batch (and ours compares each file with its hash). They are on CPU time, which
other programs on the machine disturb least. Exits with 1 if one does not hold.
"""

from __future__ import annotations

import argparse
import datetime
import math
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torchvision
import webdataset

from benchmarks.reader_pictures import PackedPictures, pack_large, pack_small
from benchmarks.reader_sides import (
    Read,
    our_batches,
    reader_in_plan_order,
    tar_loop,
    webdataset_batches,
    webdataset_in_order,
)

IN_ORDER, SHUFFLED, OURS = "webdataset, in order", "webdataset, shuffled batches", "our batches"


class Way(NamedTuple):
    """A row of the table."""

    name: str
    num_workers: int
    beside: str  # the row of webdataset that does the same work


class Speed(NamedTuple):
    """Samples per second."""

    wall: float
    cpu: float  # per second of CPU time of this process; nan where others work too


@dataclass(frozen=True)
class Result:
    """What was measured on a set."""

    pictures: PackedPictures
    speeds: dict[Way, Speed]

    def ratio(self, way: Way) -> Speed:
        """Its speed as a multiple of webdataset's at the same work with as many workers."""
        speed = self.speeds[way]
        other = next(s for w, s in self.speeds.items() if w.name == way.beside and w.num_workers == way.num_workers)
        return Speed(speed.wall / other.wall, speed.cpu / other.cpu)

    def least(self, way: Way) -> float | None:
        """The bound on the ratio of CPU times; None where there is none."""
        return self.pictures.least_ratio if way.name == OURS and way.num_workers == 0 else None

    def failures(self) -> list[str]:
        """What does not hold."""
        bounds = ((way, self.least(way), self.ratio(way).cpu) for way in self.speeds)
        return [
            f"{self.pictures.name}: {way.name} / {way.beside} is {ratio:.2f}, bound {least}"
            for way, least, ratio in bounds
            if least is not None and ratio < least
        ]


def ways_to_read(pictures: PackedPictures, num_workers: list[int]) -> dict[Way, Callable[[], Read]]:
    """Each gives a new epoch at every call."""
    ways: dict[Way, Callable[[], Read]] = {
        Way("bare tar loop", 0, IN_ORDER): partial(tar_loop, pictures),
        Way(IN_ORDER, 0, IN_ORDER): partial(webdataset_in_order, pictures),
        Way("our reader, in random order", 0, IN_ORDER): partial(reader_in_plan_order, pictures),
    }
    for number in num_workers:
        epochs = webdataset_batches(pictures, number)  # made once: a DataLoader keeps its processes
        ways[Way(SHUFFLED, number, SHUFFLED)] = partial(iter, epochs)
        ways[Way(OURS, number, SHUFFLED)] = partial(our_batches, pictures, number)
    return ways


def measure(pictures: PackedPictures, num_workers: list[int], rounds: int) -> Result:
    """All ways to read a set, in turns.

    Args:
        pictures: the set.
        num_workers: processes or threads; a pair of rows for each number.
        rounds: epochs of each that are timed, after one that is not.
    """
    ways = ways_to_read(pictures, num_workers)
    for make in ways.values():
        _speed(make)
    epochs: dict[Way, list[Speed]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, make in ways.items():
            epochs[way].append(_speed(make))
    return Result(pictures, {way: _fastest(way, speeds) for way, speeds in epochs.items()})


def _fastest(way: Way, speeds: list[Speed]) -> Speed:
    has_processes = way.name == SHUFFLED and way.num_workers > 0
    return Speed(max(s.wall for s in speeds), math.nan if has_processes else max(s.cpu for s in speeds))


def _speed(make: Callable[[], Read]) -> Speed:
    """Of one epoch, up to its last sample: what a stream has begun of the next does not count."""
    wall, cpu = time.perf_counter(), time.process_time()
    count, wall_end, cpu_end = 0, wall, cpu
    for _, labels in make():
        count += 1 if isinstance(labels, int) else len(labels)
        wall_end, cpu_end = time.perf_counter(), time.process_time()
    return Speed(count / (wall_end - wall), count / (cpu_end - cpu))


HEAD = [
    "pictures",
    "read by",
    "workers",
    "samples/s",
    "samples per CPU second",
    "of webdataset's, wall",
    "of webdataset's, CPU",
    "bound on CPU",
]


def lines_of(result: Result) -> list[str]:
    """Rows of the table."""
    lines = []
    for way, speed in result.speeds.items():
        ratio, least = result.ratio(way), result.least(way)
        cells = [
            result.pictures.name,
            way.name,
            str(way.num_workers),
            f"{speed.wall:,.0f}",
            _figure(speed.cpu, ",.0f"),
            f"{ratio.wall:.2f}x",
            _figure(ratio.cpu, ".2f", "x"),
            "" if least is None else f"{least}x",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _figure(value: float, form: str, unit: str = "") -> str:
    return "-" if math.isnan(value) else f"{value:{form}}{unit}"


def main() -> int:
    """Measures both sets, prints the table and says which bounds do not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", type=int, default=20_000, help="number of small pictures")
    parser.add_argument("--large", type=int, default=600, help="number of photographs")
    parser.add_argument("--threads", type=int, nargs="+", default=[0, 1, 2], help="workers; 0 is always among them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="for the shards; a temporary one if not given")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Reading shards: samples per second",
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores, torch "
        f"{torch.__version__}, torchvision {torchvision.__version__}, webdataset {webdataset.__version__}; "
        f"fastest of {options.rounds} epochs",
        "| " + " | ".join(HEAD) + " |\n|---|---|" + "---:|" * 6,
    ]
    print("\n\n".join(lines), flush=True)
    failures = []
    with nullcontext(options.folder) if options.folder else tempfile.TemporaryDirectory() as folder:
        for pack, count in ((pack_small, options.small), (pack_large, options.large)):
            result = measure(pack(count, Path(folder)), sorted({0, *options.threads}), options.rounds)
            rows = lines_of(result)
            print("\n".join(rows), flush=True)
            lines[-1] += "\n" + "\n".join(rows)
            failures += result.failures()
    if options.markdown:
        options.markdown.write_text("\n\n".join(lines) + "\n")
    for failure in failures:
        print("BOUND", failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

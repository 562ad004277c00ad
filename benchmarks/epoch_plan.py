"""Time and memory of planning an epoch of many samples, and how well its batches mix.

Run:  python -m benchmarks.epoch_plan                 # 100 million samples: two minutes, 1.2 GB of disk
      python -m benchmarks.epoch_plan --rows 1000000
      python -m benchmarks.epoch_plan --markdown benchmarks/epoch_plan_DATE_HARDWARE.md

The arrays of an index with long-tailed classes are written to a temporary folder. A fresh process per line maps them,
checks the options, plans epoch 0 and reads 100 batches from all over it; with windows most of these need a window made,
which a run does once per window. Memory is the peak of the process beyond the
mapped files and beyond what it held before. Exits with 1 if a bound does not hold.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from threading import Event, Thread

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.class_rows import ClassRows
from dmlscale.data.mixing import class_meetings
from dmlscale.data.planner import EpochPlanner
from dmlscale.data.sampling import Sampling
from dmlscale.data.windows import ShardRows

MOST_SECONDS, MOST_MEBIBYTES = 10.0, 1024.0
LEAST_QUALITY, LEAST_QUALITY_OF_WINDOWS = 0.97, 0.9
ARRAYS = ("rows", "starts", "labels")
RUN_LENGTH = 4  # samples of a class that stand beside each other in a shard
ROWS_PER_SHARD, ROWS_PER_SMALL_SHARD = 25_000, 1_000
CLASSES_PER_SUPER_CLASS = 1_000
NUM_BATCHES = 100

LARGE = Sampling(classes_per_batch=64, samples_per_class=4, num_streams=16)
CELLS = [
    LARGE,
    replace(LARGE, samples_per_class=2),
    replace(LARGE, window_shards=16),
    replace(LARGE, name="balanced"),
    replace(LARGE, name="by_frequency"),
    replace(LARGE, name="hierarchical", super_classes_per_batch=4),
    replace(LARGE, name="all_positives"),
]


def write_arrays(folder: Path, num_rows: int, num_classes: int) -> None:
    """Rows by class, their starts, and labels by row: classes in Zipf's proportions, in runs at random places."""
    weights = (np.arange(num_classes) + 10.0) ** -0.8
    counts = 1 + (weights / weights.sum() * (num_rows - num_classes)).astype(np.int64)
    counts[0] += num_rows - counts.sum()
    rng = np.random.default_rng(0)
    counts = rng.permutation(counts)
    runs_of_class = -(-counts // RUN_LENGTH)
    lengths = np.full(runs_of_class.sum(), RUN_LENGTH)
    lengths[np.cumsum(runs_of_class) - 1] -= runs_of_class * RUN_LENGTH - counts
    laid = rng.permutation(len(lengths))
    begins = np.empty_like(lengths)
    begins[laid] = np.cumsum(lengths[laid]) - lengths[laid]
    within = np.arange(num_rows) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    np.save(folder / "rows.npy", np.repeat(begins, lengths) + within)
    np.save(folder / "starts.npy", np.concatenate(([0], np.cumsum(counts))))
    class_of_run = np.repeat(np.arange(num_classes, dtype=np.int32), runs_of_class)
    np.save(folder / "labels.npy", np.repeat(class_of_run[laid], lengths[laid]))


def planner_over(folder: Path, sampling: Sampling, rows_per_shard: int) -> EpochPlanner:
    """Maps the arrays; nothing of the size of the data is read into memory."""
    rows, starts, labels = (np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ARRAYS)
    shard_starts = np.append(np.arange(0, len(rows), rows_per_shard), len(rows))
    super_classes = np.arange(len(starts) - 1) // CLASSES_PER_SUPER_CLASS
    shards = ShardRows(shard_starts, labels)
    return EpochPlanner(ClassRows(rows, starts), sampling, seed=0, super_classes=super_classes, shards=shards)


def measure(folder: Path, sampling: Sampling) -> dict[str, float]:
    """Plans an epoch and reads batches, in a process of its own."""
    before = _anonymous_mebibytes()
    with _peak() as peaks:
        start = time.perf_counter()
        plan = planner_over(folder, sampling, ROWS_PER_SHARD).plan(0)
        planned = time.perf_counter()
        for step in np.random.default_rng(0).integers(0, plan.num_steps, NUM_BATCHES).tolist():
            plan.batch(step)
        read = time.perf_counter()
    return {
        "steps": plan.num_steps,
        "seconds": planned - start,
        "milliseconds_per_batch": (read - planned) / NUM_BATCHES * 1e3,
        "peak": max(peaks) - before,
        "held": _anonymous_mebibytes() - before,
    }


@contextmanager
def _peak() -> Iterator[list[float]]:
    """Looks at the memory every two milliseconds: the kernel keeps a high-water mark only of it and mapped files."""
    seen, is_done = [_anonymous_mebibytes()], Event()

    def watch() -> None:
        while not is_done.wait(0.002):
            seen.append(_anonymous_mebibytes())

    watcher = Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        is_done.set()
        watcher.join()


def _anonymous_mebibytes() -> float:
    """Memory of this process that is not a mapped file."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no RssAnon")


def mixing_quality(folder: Path, sampling: Sampling, num_epochs: int) -> tuple[float, float]:
    """The share of pairs of classes that meet, and that as a multiple of what a perfect shuffle gives."""
    labels: NDArray[np.int32] = np.load(folder / "labels.npy")
    planner = planner_over(folder, sampling, ROWS_PER_SMALL_SHARD)
    meetings = class_meetings(
        (planner.plan(epoch) for epoch in range(num_epochs)),
        labels,
        num_classes=int(labels.max()) + 1,
        samples_per_class=sampling.samples_per_class,
    )
    return meetings.share, meetings.quality


def name_of(sampling: Sampling) -> str:
    """As in the table."""
    windows = f", windows of {sampling.window_shards} shards" if sampling.window_shards else ""
    return f"{sampling.name}, K={sampling.samples_per_class}{windows}"


def large_lines(folder: Path, failures: list[str]) -> Iterator[str]:
    """The table of time and memory."""
    yield f"| sampling, P={LARGE.classes_per_batch} | batches | plan s | ms per batch | peak MiB | kept MiB |"
    yield "|---|---:|---:|---:|---:|---:|"
    for sampling in CELLS:
        command = [sys.executable, "-m", "benchmarks.epoch_plan", "--cell", str(folder), json.dumps(asdict(sampling))]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found = json.loads(done.stdout)
        if found["seconds"] > MOST_SECONDS:
            failures.append(f"{name_of(sampling)}: {found['seconds']:.1f} s, bound {MOST_SECONDS} s")
        if found["peak"] > MOST_MEBIBYTES:
            failures.append(f"{name_of(sampling)}: {found['peak']:.0f} MiB, bound {MOST_MEBIBYTES:.0f} MiB")
        yield (
            f"| {name_of(sampling)} | {found['steps']:,} | {found['seconds']:.2f} | "
            f"{found['milliseconds_per_batch']:.2f} | {found['peak']:,.0f} | {found['held']:,.0f} |"
        )


def mixing_lines(failures: list[str]) -> Iterator[str]:
    """The table of mixing: small enough that most pairs of classes do not meet in an epoch of perfect batches."""
    small = replace(LARGE, classes_per_batch=16, num_streams=8)
    cells = [
        (small, 1, LEAST_QUALITY),
        (replace(small, window_shards=4), 1, 0.0),
        (replace(small, window_shards=4), 4, LEAST_QUALITY_OF_WINDOWS),
    ]
    yield "| P=16, 100,000 samples of 1,000 classes, 100 shards | epochs | pairs met | of a perfect shuffle | bound |"
    yield "|---|---:|---:|---:|---:|"
    with tempfile.TemporaryDirectory() as folder:
        write_arrays(Path(folder), 100_000, 1_000)
        for sampling, num_epochs, least in cells:
            share, quality = mixing_quality(Path(folder), sampling, num_epochs)
            if quality < least:
                failures.append(f"{name_of(sampling)}: mixes {quality:.3f} of a perfect shuffle, bound {least}")
            bound = f"{least}" if least else "stated"
            yield f"| {name_of(sampling)} | {num_epochs} | {share:.3f} | {quality:.3f} | {bound} |"


def main() -> int:
    """Measures, prints the tables and says which bounds do not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000_000)
    parser.add_argument("--classes", type=int, help="a hundredth of the rows if not given")
    parser.add_argument("--markdown", type=Path, help="also write the tables to this file")
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        folder, text = options.cell
        print(json.dumps(measure(Path(folder), Sampling(**json.loads(text)))))
        return 0
    num_classes = options.classes or options.rows // 100
    failures: list[str] = []
    lines = [
        f"# Planning an epoch of {options.rows:,} samples of {num_classes:,} classes",
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, numpy {np.__version__}",
    ]
    print("\n\n".join(lines) + "\n", flush=True)
    with tempfile.TemporaryDirectory() as name:
        write_arrays(Path(name), options.rows, num_classes)
        for tables in (large_lines(Path(name), failures), iter([""]), mixing_lines(failures)):
            for line in tables:
                lines.append(line)
                print(line, flush=True)
    if options.markdown:
        options.markdown.write_text("\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:]) + "\n")
    for failure in failures:
        print("BOUND", failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

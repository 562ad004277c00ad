"""Time and memory of planning an epoch of many samples, and how well its batches mix.

Run:  python -m benchmarks.epoch_plan                 # 100 million samples: a few minutes, 6 GB of disk
      python -m benchmarks.epoch_plan --rows 1000000
      python -m benchmarks.epoch_plan --markdown benchmarks/epoch_plan_DATE_HARDWARE.md

The tables of a data set with long-tailed classes are written to a temporary folder. A fresh process per line opens
the index, checks the options, plans epoch 0 and reads 100 batches from all over it; with windows most of these need a
window made, which a run does once per window. Seconds count from before the index is opened (a good one of them is
pyarrow's import of pandas); memory is the peak of the process beyond the mapped files and beyond what it held before.
Exits with 1 if a bound does not hold.
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

from benchmarks.large_index import write_index
from dmlscale.data.index import Index
from dmlscale.data.planning.mixing import class_meetings
from dmlscale.data.planning.planner import EpochPlanner
from dmlscale.data.planning.sampling import Sampling

MOST_SECONDS, MOST_MEBIBYTES = 10.0, 1024.0
LEAST_QUALITY, LEAST_QUALITY_OF_WINDOWS = 0.97, 0.9
ROWS_PER_SHARD, ROWS_PER_SMALL_SHARD = 25_000, 1_000
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


def planner_over(folder: Path, sampling: Sampling) -> EpochPlanner:
    """Opens the index; nothing of the size of the data is read into memory."""
    split = Index.load(folder).split("train")
    return EpochPlanner(
        split.class_rows, sampling, seed=0, super_classes=split.super_classes()[0], shards=split.shard_rows
    )


def measure(folder: Path, sampling: Sampling) -> dict[str, float]:
    """Plans an epoch and reads batches, in a process of its own."""
    before = _anonymous_mebibytes()
    with _peak() as peaks:
        start = time.perf_counter()
        planner = planner_over(folder, sampling)
        opened = time.perf_counter()
        plan = planner.plan(0)
        planned = time.perf_counter()
        for step in np.random.default_rng(0).integers(0, plan.num_steps, NUM_BATCHES).tolist():
            plan.batch(step)
        read = time.perf_counter()
    return {
        "steps": plan.num_steps,
        "seconds": planned - start,
        "seconds_to_plan": planned - opened,
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
    labels = Index.load(folder).labels
    planner = planner_over(folder, sampling)
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
    columns = ("batches", "open and plan s", "plan s", "ms per batch", "peak MiB", "kept MiB")
    yield f"| sampling, P={LARGE.classes_per_batch} | {' | '.join(columns)} |"
    yield "|---|---:|---:|---:|---:|---:|---:|"
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
            f"{found['seconds_to_plan']:.2f} | {found['milliseconds_per_batch']:.2f} | {found['peak']:,.0f} | "
            f"{found['held']:,.0f} |"
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
        write_index(Path(folder), 100_000, 1_000, ROWS_PER_SMALL_SHARD)
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
        write_index(Path(name), options.rows, num_classes, ROWS_PER_SHARD)
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

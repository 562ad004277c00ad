"""Time and peak memory of our losses beside pytorch-metric-learning and beside the bare matrix products.

Run:  python -m benchmarks.losses             # CPU time of one thread
      python -m benchmarks.losses --threads 2 # wall time
      python -m benchmarks.losses --markdown benchmarks/losses_DATE_HARDWARE.md

Both sides and the floor take turns in one process; the fastest of several rounds counts. Memory is measured in a fresh
process per cell. Exits with 1 if a bound does not hold or the values disagree.
"""

from __future__ import annotations

import argparse
import datetime
import math
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.cells import SIDES, Size, clock_for, peak_megabytes, seconds

LIMIT_GIB = 12.0


@dataclass(frozen=True)
class Row:
    """A row of the table and what must hold in it."""

    size: Size
    most_of_floor: float = math.inf  # our time as a multiple of the bare products' time
    most_of_reference_memory: float = math.inf
    same_value: bool = True
    time_reference: bool = True


ROWS = [
    Row(Size("lifted_structure", 256), most_of_reference_memory=0.1),
    Row(Size("lifted_structure", 4096), most_of_floor=3.2, time_reference=False),
    Row(Size("triplet", 1024), most_of_reference_memory=0.1, same_value=False),
    Row(Size("triplet", 4096), most_of_floor=5.0, most_of_reference_memory=0.1, same_value=False),
    Row(
        Size("proxy_anchor", 1024, classes=10_000),
        most_of_floor=2.2,
        most_of_reference_memory=0.1,
    ),
]


@dataclass
class Result:
    """Measured figures of a row; nan where the reference cannot run."""

    row: Row
    seconds: dict[str, float]
    megabytes: dict[str, float]
    values: dict[str, float]

    def failures(self) -> list[str]:
        """What does not hold."""
        found = []
        of_floor = self.seconds["ours"] / self.seconds["floor"]
        if of_floor > self.row.most_of_floor:
            found.append(f"{self.row.size}: {of_floor:.2f}x the matrix products, bound {self.row.most_of_floor}x")
        of_memory = self.megabytes["ours"] / self.megabytes["reference"]
        if of_memory > self.row.most_of_reference_memory:
            found.append(f"{self.row.size}: {of_memory:.2f} of the reference's memory")
        if self.row.same_value and "reference" in self.values:
            ours, reference = self.values["ours"], self.values["reference"]
            if abs(ours - reference) > 1e-5 * abs(reference):
                found.append(f"{self.row.size}: loss {ours} here, {reference} there")
        return found


def measure(row: Row, rounds: int, threads: int) -> Result:
    """One row, its sides taking turns."""
    clock = clock_for(threads)
    sides = ["floor", "ours", *(["reference"] if row.time_reference else [])]
    steps = {side: SIDES[side](row.size) for side in sides}
    values = {side: step() for side, step in steps.items()}  # also the warm-up
    times = {side: math.inf for side in sides} | {"reference": math.nan}
    for n in range(rounds):
        for side, step in steps.items():
            if side != "reference" or n < 3:  # it takes seconds
                taken = seconds(step, clock)
                times[side] = taken if math.isnan(times[side]) else min(times[side], taken)
    memory = {side: _memory_in_own_process(side, row.size, threads) for side in ("ours", "reference")}
    return Result(row, times, memory, values)


def _memory_in_own_process(side: str, size: Size, threads: int) -> float:
    cell = [side, size.loss, str(size.batch), str(size.dim), str(size.classes or 0), str(threads)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.losses", "--cell", *cell], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return float(done.stdout.split()[-1])
    if "MemoryError" in done.stderr:
        return math.inf
    raise RuntimeError(done.stderr)


def _cell(arguments: list[str]) -> None:
    side, loss, batch, dim, classes, threads = arguments
    torch.set_num_threads(int(threads))
    print(peak_megabytes(side, Size(loss, int(batch), int(dim), int(classes) or None), LIMIT_GIB))


def table(results: list[Result], threads: int) -> str:
    """Markdown."""
    unit = "CPU ms, one thread" if threads == 1 else f"wall ms, {threads} threads"
    lines = [
        f"| loss | products ({unit}) | ours | ours / products | reference | reference / ours "
        "| ours MB | reference MB |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for result in results:
        time, memory = result.seconds, result.megabytes
        there = f"> {LIMIT_GIB:.0f} GiB" if math.isinf(memory["reference"]) else f"{memory['reference']:,.0f}"
        slower = "-" if math.isnan(time["reference"]) else f"{time['reference'] / time['ours']:,.1f}x"
        reference = "-" if math.isnan(time["reference"]) else f"{time['reference'] * 1e3:,.1f}"
        lines.append(
            f"| {result.row.size} | {time['floor'] * 1e3:,.1f} | {time['ours'] * 1e3:,.1f} "
            f"| {time['ours'] / time['floor']:.2f}x | {reference} | {slower} | {memory['ours']:,.1f} | {there} |"
        )
    return "\n".join(lines)


def main() -> int:
    """Measures all rows, prints the table and says which bounds do not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    parser.add_argument("--cell", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        _cell(options.cell)
        return 0
    torch.set_num_threads(options.threads)
    results = [measure(row, options.rounds, options.threads) for row in ROWS]
    text = table(results, options.threads)
    print(text)
    if options.markdown:
        head = f"{datetime.date.today()}, {platform.processor() or platform.machine()}, torch {torch.__version__}"
        options.markdown.write_text(
            f"# Losses: time and memory\n\n{head}; reference: pytorch-metric-learning.\n\n{text}\n"
        )
    failures = [failure for result in results for failure in result.failures()]
    for failure in failures:
        print("BOUND", failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

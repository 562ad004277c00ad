"""Time and peak memory of all losses beside pytorch-metric-learning and beside the bare matrix products.

Run:  python -m benchmarks.losses             # CPU time of one thread
      python -m benchmarks.losses --threads 2 # wall time
      python -m benchmarks.losses --device cuda  # wall time; larger sizes; bounds of time are stated only
      python -m benchmarks.losses --only circle,triplet
      python -m benchmarks.losses --markdown benchmarks/losses_DATE_HARDWARE.md

Both sides and the floor take turns in one process; the fastest of several rounds counts. Memory is measured in a fresh
process per cell: the peak of a step above the inputs and the bank with its gradient. Exits with 1 if a bound (rows.py)
does not hold or the values disagree.
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

from benchmarks.cells import SIDES, Size, bank_megabytes, clock_for, peak_megabytes, seconds
from benchmarks.rows import ROWS, Row, on_gpu

LIMIT_GIB = 12.0


@dataclass
class Result:
    """Measured figures of a row; nan where the reference does not exist, inf where it has not the memory."""

    row: Row
    seconds: dict[str, float]
    megabytes: dict[str, float]
    values: dict[str, float]

    @property
    def of_floor(self) -> float:
        """Our time as a multiple of the bare products'."""
        return self.seconds["ours"] / self.seconds["floor"]

    def failures(self) -> list[str]:
        """What does not hold."""
        found = []
        if self.of_floor > self.row.most_of_floor:
            found.append(f"{self.row}: {self.of_floor:.2f}x the matrix products, bound {self.row.most_of_floor}x")
        if self.megabytes["ours"] > self.row.most_megabytes:
            found.append(f"{self.row}: {self.megabytes['ours']:.1f} MB, bound {self.row.most_megabytes} MB")
        if self.row.same_value and "reference" in self.values:
            ours, reference = self.values["ours"], self.values["reference"]
            if not abs(ours - reference) <= 1e-4 * abs(reference):
                found.append(f"{self.row}: loss {ours} here, {reference} there")
        return found


def measure(row: Row, rounds: int, threads: int) -> Result:
    """One row, its sides taking turns; wall time unless it is one thread."""
    clock = clock_for(threads)
    has_reference = row.time.reference is not None
    sides = ["floor", "ours", *(["reference"] if has_reference and row.time_reference else [])]
    steps = {side: SIDES[side](row.time) for side in sides}
    times = {side: math.inf for side in sides}
    values = {}
    for side in sides:
        try:
            values[side] = steps[side]()  # also the warm-up
        except torch.OutOfMemoryError:
            if side == "ours":
                raise
            del steps[side]
            torch.cuda.empty_cache()
    for n in range(rounds):
        for side, step in steps.items():
            if side != "reference" or n < 2:  # it takes seconds
                times[side] = min(times[side], seconds(step, clock))
    del steps
    weighed = _memory_here if row.memory.device == "cuda" else _memory_in_own_process
    memory = {"ours": weighed("ours", row.memory, threads), "reference": math.nan}
    if has_reference:
        memory["reference"] = weighed("reference", row.memory, threads)
    return Result(row, {"reference": math.nan} | times, memory, values)


def _memory_here(side: str, size: Size, threads: int) -> float:
    try:
        return peak_megabytes(side, size, math.inf) - bank_megabytes(size)
    except MemoryError:
        return math.inf


def _memory_in_own_process(side: str, size: Size, threads: int) -> float:
    command = [sys.executable, "-m", "benchmarks.losses", "--cell", side, size.to_text(), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return float(done.stdout.split()[-1]) - bank_megabytes(size)
    if "MemoryError" in done.stderr:
        return math.inf
    raise RuntimeError(done.stderr)


def _figure(value: float, *, digits: int = 0) -> str:
    if math.isnan(value):
        return "-"
    return "no memory" if math.isinf(value) else f"{value:,.{digits}f}"


HEAD = [
    "loss",
    "timed at",
    "products ms",
    "ours ms",
    "ours / products",
    "bound",
    "reference ms",
    "reference / ours",
    "weighed at",
    "ours MB",
    "reference MB",
]


def line(result: Result) -> str:
    """A row of the table."""
    time, memory, row = result.seconds, result.megabytes, result.row
    slower = time["reference"] / time["ours"]
    cells = [
        str(row),
        str(row.time),
        _figure(time["floor"] * 1e3, digits=1),
        _figure(time["ours"] * 1e3, digits=1),
        f"{result.of_floor:.2f}x",
        "stated" if math.isinf(row.most_of_floor) else f"{row.most_of_floor:.1f}x",
        _figure(time["reference"] * 1e3),
        f"{slower:,.1f}x" if math.isfinite(slower) else "-",
        str(row.memory),
        _figure(memory["ours"], digits=1),
        _figure(memory["reference"]),
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> int:
    """Measures all rows, prints the table and says which bounds do not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--only", help="names of losses, separated by commas")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cell:
        side, size, threads = options.cell
        torch.set_num_threads(int(threads))
        print(peak_megabytes(side, Size.from_text(size), LIMIT_GIB))
        return 0
    torch.set_num_threads(options.threads)
    unit = "CPU time of one thread" if options.threads == 1 else f"wall time, {options.threads} threads"
    rows, threads, hardware = ROWS, options.threads, platform.processor() or platform.machine()
    if options.device == "cuda":
        rows, threads, unit = [on_gpu(row) for row in ROWS], 0, "wall time"
        hardware = torch.cuda.get_device_name()
    lines = ["| " + " | ".join(HEAD) + " |", "|---|---|" + "---:|" * 6 + "---|---:|---:|"]
    print("\n".join(lines), flush=True)
    failures = []
    for row in rows:
        if options.only is None or row.time.loss in options.only.split(","):
            result = measure(row, options.rounds, threads)
            lines.append(line(result))
            print(lines[-1], flush=True)
            failures += result.failures()
    if options.markdown:
        head = f"{datetime.date.today()}, {hardware}, torch {torch.__version__}"
        text = "\n".join(
            [f"# Losses: time and memory\n\n{head}; {unit}; reference: pytorch-metric-learning.\n", *lines]
        )
        options.markdown.write_text(text + "\n")
    for failure in failures:
        print("BOUND", failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

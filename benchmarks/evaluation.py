"""Time and memory of exact retrieval metrics beside a bare faiss flat search for the same neighbours.

Run:  python -m benchmarks.evaluation           # some ten minutes
      python -m benchmarks.evaluation --small   # seconds; only a trial
      python -m benchmarks.evaluation --markdown benchmarks/evaluation_DATE_HARDWARE.md

The bare side is one call of `faiss.knn` on vectors that are of unit length already. Ours starts from the embeddings
as a model leaves them and ends with Recall@1, 2, 4, 8, R-precision, MAP@R, sums by class, confidence intervals and
confusions. Both take turns in one process with one thread; CPU time, which other load on the machine disturbs little;
the fastest of several rounds counts. Memory is the peak of a fresh process with everything in it: imports, embeddings,
search. Exits with 1 if a bound does not hold or if the two sides do not find the same Recall@1.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import torch

from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.evaluate import evaluate
from dmlscale.evaluation.neighbors import normalize

MOST_RATIO, MOST_GIB = 1.2, 3.0
PER_CLASS = 10
DIM = 128
KS = (1, 2, 4, 8)


@dataclass(frozen=True)
class Size:
    """What is searched; without ``queries``, each item among all others."""

    items: int
    queries: int | None = None

    def __str__(self) -> str:
        if self.queries is None:
            return f"{self.items:,} x {DIM} against themselves"
        return f"{self.queries:,} queries against {self.items:,} x {DIM}"

    @property
    def num_neighbors(self) -> int:
        """That the metrics need: of all samples of a class, and one more where a query finds itself."""
        return PER_CLASS


SIZES = (Size(100_000), Size(1_000_000, 10_000))
SMALL = (Size(3_000), Size(5_000, 200))
Recall = Callable[[], float]


def embedded(size: Size) -> tuple[Embedded, Embedded | None]:
    """Queries and gallery: classes of ten around centers of their own, so near that many queries are not answered."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(size.items // PER_CLASS, DIM, generator=generator)

    def samples(labels: torch.Tensor) -> Embedded:
        rows = torch.randn(len(labels), DIM, generator=generator).mul_(1.6)
        for start in range(0, len(labels), 65_536):  # centers[labels] would be a second copy
            rows[start : start + 65_536] += centers[labels[start : start + 65_536]]
        return Embedded(rows, labels, torch.arange(len(labels)))

    items = samples(torch.arange(size.items) % len(centers))
    if size.queries is None:
        return items, None
    return samples(torch.randint(len(centers), (size.queries,), generator=generator)), items


def bare(queries: Embedded, gallery: Embedded | None, size: Size) -> Recall:
    """`faiss.knn` alone is timed; its Recall@1 is found afterwards."""
    there = normalize((queries if gallery is None else gallery).embeddings.numpy())
    here = there if gallery is None else normalize(queries.embeddings.numpy())
    labels = (queries if gallery is None else gallery).labels.numpy()

    def search() -> float:
        _, rows = faiss.knn(here, there, size.num_neighbors, metric=faiss.METRIC_INNER_PRODUCT)
        own = np.arange(len(here)) if gallery is None else np.full(len(here), -1)
        first = np.where(rows[:, 0] == own, rows[:, 1], rows[:, 0])
        return float((labels[first] == queries.labels.numpy()).mean())

    return search


def ours(queries: Embedded, gallery: Embedded | None, size: Size) -> Recall:
    """All of `evaluate` without clustering."""
    del size
    return lambda: evaluate(queries, gallery, ks=KS, groups=("retrieval",)).metrics["recall_at_1"]


SIDES = {"faiss": bare, "ours": ours}


@dataclass(frozen=True)
class Result:
    """Of each side."""

    size: Size
    seconds: dict[str, float]
    gibibytes: dict[str, float]
    recall: dict[str, float]

    @property
    def ratio(self) -> float:
        """Our time as a multiple of the bare search's."""
        return self.seconds["ours"] / self.seconds["faiss"]

    def failures(self) -> list[str]:
        """What does not hold."""
        found = []
        if self.ratio > MOST_RATIO:
            found.append(f"{self.size}: {self.ratio:.2f}x the bare search, bound {MOST_RATIO}x")
        if self.gibibytes["ours"] > MOST_GIB:
            found.append(f"{self.size}: {self.gibibytes['ours']:.2f} GiB, bound {MOST_GIB:g} GiB")
        if abs(self.recall["ours"] - self.recall["faiss"]) > 1e-4:  # nearly equal neighbours may change places
            found.append(f"{self.size}: Recall@1 {self.recall['ours']} here, {self.recall['faiss']} there")
        return found

    def row(self) -> str:
        """Of the table."""
        cells = [
            str(self.size),
            *(f"{self.seconds[side]:.1f}" for side in SIDES),
            f"{self.ratio:.2f}x",
            f"{MOST_RATIO}x",
            *(f"{self.gibibytes[side]:.2f}" for side in SIDES),
            f"{MOST_GIB:g}",
            f"{self.recall['ours']:.4f}",
        ]
        return "| " + " | ".join(cells) + " |"


def measure(size: Size, rounds: int) -> Result:
    """One size, its sides taking turns."""
    gibibytes = {side: _memory_in_own_process(side, size) for side in SIDES}
    inputs = embedded(size)
    searches = {side: make(*inputs, size) for side, make in SIDES.items()}
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    recall = {}
    for _ in range(rounds):
        for side, search in searches.items():
            start = time.process_time()
            recall[side] = search()
            seconds[side].append(time.process_time() - start)
    return Result(size, {side: min(times) for side, times in seconds.items()}, gibibytes, recall)


def _memory_in_own_process(side: str, size: Size) -> float:
    queries = [] if size.queries is None else [str(size.queries)]
    command = [sys.executable, "-m", "benchmarks.evaluation", "--cell", side, str(size.items), *queries]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return float(done.stdout.split()[-1])


def _peak_gibibytes() -> float:
    """Of this process since it was started; getrusage would count what its parent held when it was started."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 2**20


def _run_cell(side: str, numbers: list[int]) -> None:
    size = Size(*numbers)
    SIDES[side](*embedded(size), size)()
    print(_peak_gibibytes())


def main() -> int:
    """Measures, prints the table and says which bounds do not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a trial with few samples; its bounds mean nothing")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    parser.add_argument("--cell", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    if options.cell:
        _run_cell(options.cell[0], [int(number) for number in options.cell[1:]])
        return 0
    head = ["search", "faiss s", "ours s", "ratio", "bound", "faiss GiB", "ours GiB", "bound", "Recall@1"]
    lines = [
        "# Exact retrieval metrics beside a bare flat search",
        f"{datetime.date.today()}, {platform.processor() or platform.machine()}, one thread, CPU time, faiss "
        f"{faiss.__version__}, torch {torch.__version__}; {PER_CLASS} nearest, fastest of {options.rounds} rounds",
        "| " + " | ".join(head) + " |\n|---|" + "---:|" * (len(head) - 1),
    ]
    print("\n\n".join(lines), flush=True)
    failures = []
    for size in SMALL if options.small else SIZES:
        result = measure(size, options.rounds)
        print(result.row(), flush=True)
        lines[-1] += "\n" + result.row()
        failures += result.failures()
    if options.markdown:
        options.markdown.write_text("\n\n".join(lines) + "\n")
    for failure in failures:
        print("BOUND", failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""What asynchronous checkpoints and tracking cost a run, in step time.

Run:  python -m benchmarks.overhead            # some ten minutes; wall times mean little beside other load
      python -m benchmarks.overhead --small    # less than a minute; only a trial
      python -m benchmarks.overhead --device gpu --steps 400 --overrides model.backbone=resnet50 model.options={}
      python -m benchmarks.overhead --markdown benchmarks/overhead_DATE_HARDWARE.md

Each side is a real training of the quickstart's config in a process of its own, as `dmlscale train --local` does it, on
all cores. They take turns of some checkpoints, from the middle between two to the middle between two others. Meanwhile
all other sides are stopped (SIGSTOP), so that what threads still have to write or to send is done in a side's own turns
and nobody else's. A round, a turn of each, is compared with itself: a side's time a step as a multiple of that of
"neither". The ratio is the median of all rounds, with a bootstrapped interval of 95 %. CPU time counts all threads of
the process, and other load on the machine disturbs it little. What all sides have in common cancels: progress file,
heartbeats, the look whether a step is finite, the pace of ranks. Exits with 1 if a bound does not hold.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.overhead_sides import CONFIG, NEITHER, SIDES, SMALL, Setting, Turns, Written, run_side, written

MOST_RATIO = 1.03
BOUND = ("checkpoints", "tracking", "both")


@dataclass(frozen=True)
class Times:
    """Of a side: seconds a step in each round.

    Args:
        wall_s: (rounds,).
        cpu_s: (rounds,).
        left: what it wrote.
    """

    wall_s: NDArray[np.float64]
    cpu_s: NDArray[np.float64]
    left: Written


@dataclass(frozen=True)
class Ratio:
    """A side's step time as a multiple of that of another."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, side: NDArray[np.float64], other: NDArray[np.float64]) -> Ratio:
        """Round by round, with a bootstrapped interval of 95 %."""
        ratios = side / other
        drawn = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
        low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
        return cls(float(np.median(ratios)), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.median:.3f}x ({self.low:.3f} to {self.high:.3f})"


def measure(
    setting: Setting, names: Sequence[str] = tuple(SIDES), say: Callable[[str], None] = lambda line: None
) -> dict[str, Times]:
    """All sides, taking turns; who begins changes from round to round."""
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        sides: dict[str, Turns] = {}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        try:
            for name in names:
                sides[name] = Turns(name, setting, Path(folder) / f"{len(sides)}")
            for number in range(setting.rounds + 1):  # the first one warms up
                for name in (*names[number % len(names) :], *names[: number % len(names)]):
                    taken = sides[name].take()
                    if number:
                        seconds[name].append(taken)
                say(f"round {number} of {setting.rounds}")
            for side in sides.values():
                side.settle()
        finally:
            for side in sides.values():
                side.end()
        found = {}  # now, as a side may have been stopped while it held the lock of its database
        for n, name in enumerate(names):
            wall_s, cpu_s = np.array(seconds[name]).T / setting.steps_of_turn
            found[name] = Times(wall_s, cpu_s, written(Path(folder) / f"{n}"))
        return found


def report(times: Mapping[str, Times], setting: Setting) -> tuple[str, list[str]]:
    """The table in Markdown, and what does not hold."""
    head = ["beside training", "step ms", "wall", "CPU", "bound", "checkpoints a minute", "MB each", "figures sent"]
    lines = ["| " + " | ".join(head) + " |\n|---|" + "---:|" * (len(head) - 1)]
    failures = []
    for name, side in times.items():
        wall, cpu = (Ratio.of(getattr(side, kind), getattr(times[NEITHER], kind)) for kind in ("wall_s", "cpu_s"))
        step_s = float(np.median(side.wall_s))
        a_minute = 60 / (step_s * setting.steps) if side.left.checkpoints else 0.0
        ratios = ["1", "1"] if name == NEITHER else [str(wall), str(cpu)]
        bound = f"{MOST_RATIO}x" if name in BOUND else ""
        cells = [
            name,
            f"{1e3 * step_s:.1f}",
            *ratios,
            bound,
            f"{a_minute:.1f}",
            f"{side.left.megabytes:.1f}",
            f"{side.left.figures:,}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
        if name in BOUND and wall.median > MOST_RATIO:
            failures.append(f"{name}: {wall}, bound {MOST_RATIO}x")
    return "\n".join(lines), failures


def main() -> int:
    """Measures, prints the table and says which bounds do not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a trial with few steps; its bounds mean nothing")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--tracking-uri", help="an MLflow server; sqlite if it is missing")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--steps", type=int, help="between two checkpoints")
    parser.add_argument("--overrides", nargs="*", default=[], help="of the config")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--checkpoints", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    usual = SMALL if options.small else Setting()
    setting = replace(
        usual,
        rounds=options.rounds or usual.rounds,
        steps=options.steps or usual.steps,
        checkpoints=options.checkpoints or usual.checkpoints,
        overrides=(*usual.overrides, *options.overrides),
        tracking_uri=options.tracking_uri,
        device=options.device,
    )
    if options.side:
        run_side(SIDES[options.side], setting, options.folder)
        return 0
    table, failures = report(measure(setting, say=lambda line: print(line, file=sys.stderr, flush=True)), setting)
    where = "an MLflow server" if setting.tracking_uri else "MLflow in sqlite"
    gpu = f", {torch.cuda.get_device_name()}" if setting.device == "gpu" else ""
    config = " ".join([CONFIG.name, *setting.overrides])
    text = "\n\n".join(
        [
            "# What checkpoints and tracking cost a run",
            f"{datetime.date.today()}, {platform.processor() or platform.machine()}, {len(os.sched_getaffinity(0))} "
            f"cores{gpu}, torch {torch.__version__}; {config} in one process on all cores, {where}, a checkpoint each "
            f"{setting.steps} steps, figures each {setting.steps // 2}; median of {setting.rounds} rounds of "
            f"{setting.steps_of_turn} steps; load average at the end {os.getloadavg()[1]:.1f}, own load included",
            table,
        ]
    )
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")
    for failure in failures:
        print("BOUND", failure)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""What the person at the terminal sees."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

PRINT_EVERY_S = 2.0


class PackProgress:
    """A progress bar over packed samples, shown once the first are there."""

    def __init__(self) -> None:
        self._bar: Progress | None = None

    def __call__(self, count: int, total: int) -> None:
        """Shows that ``count`` samples of ``total`` are packed."""
        if self._bar is None:
            columns = (
                TextColumn("packing"),
                BarColumn(),
                TextColumn("{task.completed:,} of {task.total:,} samples"),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._task = self._bar.add_task("packing", total=total)
            self._bar.start()
        self._bar.update(self._task, completed=count)

    def __enter__(self) -> PackProgress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()


class ProgressTail:
    """Prints what rank 0 writes into the run's progress file, from now on.

    The file rather than the workers' output: it is the same with and without Ray and carries no prefixes.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._printed_at = 0.0

    def __enter__(self) -> ProgressTail:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._done.wait(0.2):
            self._read()
        self._read()

    def _read(self) -> None:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except OSError:  # not there yet, or storage that does not answer now
            return
        whole = text[: text.rfind(b"\n") + 1]  # the last line may still be being written
        self._offset += len(whole)
        for line in whole.splitlines():
            with suppress(ValueError):  # torn by a kill or a full disk
                self._show(json.loads(line))

    def _show(self, entry: dict[str, Any]) -> None:
        if "fault" in entry:
            print(f"fault: {entry['fault']}", flush=True)
        elif "message" in entry:
            print(entry["message"], flush=True)
        elif "evaluation" in entry:
            print(f"{_at(entry)}  evaluation  {_short(entry['evaluation'])}", flush=True)
        elif "checkpoint" in entry:
            print(f"{_at(entry)}  checkpoint  {_cost_of(entry)}", flush=True)
        elif "metrics" in entry:
            self._show_step(entry)

    def _show_step(self, entry: dict[str, Any]) -> None:
        now = time.monotonic()
        is_last = entry["step"] == entry["steps"]
        if now - self._printed_at < PRINT_EVERY_S and not is_last:
            return
        self._printed_at = now
        metrics = entry["metrics"]
        left = (entry["steps"] - entry["step"]) / max(1e-9, metrics["throughput/steps_per_s"])
        loss = f"loss {metrics['train/loss']:.4f}" if "train/loss" in metrics else "skipped"
        print(
            f"{_at(entry)}  {loss}  "
            f"{metrics['throughput/samples_per_s']:,.0f} samples/s  "
            f"{metrics['data/wait_fraction']:.0%} waiting for data  ETA {_duration(left)}",
            flush=True,
        )


def _at(entry: dict[str, Any]) -> str:
    width = len(str(entry["steps"]))
    return f"step {entry['step']:>{width}}/{entry['steps']}"


def _cost_of(checkpoint: dict[str, Any]) -> str:
    name = checkpoint["checkpoint"].rpartition("/")[2]
    if "mb" not in checkpoint:  # of a run that an earlier version began
        return str(name)
    held_up, written = checkpoint["held_up_s"], checkpoint["written_s"]
    return f"{name}  {checkpoint['mb']:,.1f} MB  held up training {held_up:.3f} s, written in {written:.2f} s"


def _short(metrics: dict[str, float]) -> str:
    shown = [name for name in metrics if not name.startswith("num_")][:5]
    return "  ".join(f"{name} {metrics[name]:.3f}" for name in shown)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"


def metrics_table(
    title: str,
    metrics: Mapping[str, float],
    raw_pixels: Mapping[str, float],
    intervals: Mapping[str, Sequence[float]] | None = None,
) -> Table:
    """Final figures with their 95 % intervals, beside those of the raw pixels where they were measured."""
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("this model", justify="right")
    if intervals:
        table.add_column("95 % interval", justify="right")
    if raw_pixels:
        table.add_column("raw pixels", justify="right")
    for name, value in metrics.items():
        cells = [f"{value:,.0f}" if name.startswith("num_") else f"{value:.4f}"]
        if intervals:
            cells.append(" \N{EN DASH} ".join(f"{end:.4f}" for end in intervals.get(name, ())))
        if raw_pixels:
            cells.append(f"{raw_pixels[name]:.4f}" if name in raw_pixels else "")
        table.add_row(name, *cells)
    return table


def left_out_lines(left_out: Mapping[str, str]) -> list[str]:
    """A line for each reason, with all that it has kept from being measured or drawn."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in left_out.items():
        by_reason.setdefault(reason, []).append(name)
    return [f"left out      {', '.join(names)}: {reason}" for reason, names in by_reason.items()]

"""What the rest of the program knows about tracking: a few verbs that never wait for a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

from matplotlib.figure import Figure

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Tracker(Protocol):
    """A run that is being recorded. Every verb returns at once; only `finish` and `close` may wait.

    Metric names make the sections of a dashboard: `train/loss`, `eval/<split>/recall_at_1`, `system/...`,
    `data/wait_fraction`. A metric has one value per step, and its steps only grow: a step that is not larger
    than the last one recorded is left out, so training that repeats steps after a resume draws no zig-zag.
    """

    @property
    def run_id(self) -> str:
        """The run's id in its store; empty if there is none, or while the store could not be reached yet."""
        ...

    @property
    def url(self) -> str:
        """Where to look at the run; empty if there is nowhere."""
        ...

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings by dotted name; a name that already has a value keeps it."""
        ...

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at a step."""
        ...

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Keep a copy of a file, or of a folder with all it holds, under ``folder`` of the run."""
        ...

    def log_figure(self, figure: Figure, name: str) -> None:
        """Keep a figure as ``name``, such as `gallery/step_00100.png`."""
        ...

    def log_text(self, text: str, name: str) -> None:
        """Keep a text as ``name``, such as `config.yaml`."""
        ...

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Set what runs are filtered by; the last value counts."""
        ...

    def finish(self, status: Status = "FINISHED", reason: str = "") -> int:
        """End the run and close the tracker; a second call does nothing.

        Returns:
            The number of records that could not be delivered in time and are kept for later.
        """
        ...

    def close(self) -> int:
        """Close the tracker of a run that another process goes on with, or will end; waits for 2 s at most.

        Returns:
            The number of records that are kept for that process.
        """
        ...


class NullTracker:
    """Records nothing: ranks other than 0, and runs without tracking."""

    run_id = ""
    url = ""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """Nothing."""

    def log_figure(self, figure: Figure, name: str) -> None:
        """Nothing."""

    def log_text(self, text: str, name: str) -> None:
        """Nothing."""

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        """Nothing."""

    def finish(self, status: Status = "FINISHED", reason: str = "") -> int:
        """Nothing."""
        return 0

    def close(self) -> int:
        """Nothing."""
        return 0

"""What a driver hands to its workers: plain values, so that it travels to another process or machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dmlscale.config.load import check_config
from dmlscale.config.schema import Config

STOP_FILE = "stop-requested"
HAND_OVER_FILE = "hand-over-requested"
HANDS_OVER = "hands_over"
"""In the result of workers that have saved and stopped so that others go on at once."""


@dataclass(frozen=True)
class Task:
    """One training or evaluation.

    Args:
        kind: what to do.
        config: resolved, with absolute paths.
        folder: of the run, on storage that all workers see.
        checkpoint: to evaluate; a training looks for the newest in its folder itself.
        tracking_uri: MLflow store.
        tracking_run: id of the run there; empty while a store that is away has not made it; None logs nothing.
        report_folder: where an evaluation writes its report, on storage that all workers see; None writes none. That
            of a training is in its own folder.
    """

    kind: Literal["train", "evaluate"]
    config: dict[str, Any]
    folder: str
    checkpoint: str | None = None
    tracking_uri: str = ""
    tracking_run: str | None = None
    report_folder: str | None = None

    @property
    def settings(self) -> Config:
        """The config, checked again on the worker."""
        return check_config(self.config, "the task's config")

    @property
    def checkpoints(self) -> Path:
        """Folder of the run's checkpoints."""
        return Path(self.folder) / "checkpoints"

    @property
    def progress(self) -> Path:
        """What rank 0 says while it works, one JSON object a line."""
        return Path(self.folder) / "progress.jsonl"

    @property
    def attempts(self) -> Path:
        """Folder that numbers the starts of the workers."""
        return Path(self.folder) / "attempts"

    @property
    def own_report(self) -> Path:
        """Folder of a training's report."""
        return Path(self.folder) / "report"

    @property
    def stop_file(self) -> Path:
        """Its presence asks the workers to save and stop."""
        return Path(self.folder) / STOP_FILE

    @property
    def hand_over_file(self) -> Path:
        """Its presence asks the workers to save and stop, since others will go on with the run."""
        return Path(self.folder) / HAND_OVER_FILE

    def is_stop_asked(self) -> bool:
        """Whether the workers shall save and stop."""
        return self.stop_file.exists() or self.hand_over_file.exists()

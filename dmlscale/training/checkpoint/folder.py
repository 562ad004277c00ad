"""The checkpoints in a folder."""

from __future__ import annotations

import re
from pathlib import Path

from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.manifest import RECORD_FILE, Manifest, parse_manifest
from dmlscale.training.state import Record

NAME = re.compile(r"step_(\d{8})")


def name_of(step: int) -> str:
    """Of the checkpoint of a step."""
    return f"step_{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if NAME.fullmatch(path.name) and (path / RECORD_FILE).is_file())


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    found = list_checkpoints(folder)
    return found[-1] if found else None


def read_manifest(path: Path) -> Manifest:
    """What a checkpoint says of itself.

    Raises:
        CheckpointError: it is none, or damaged.
    """
    file = path / RECORD_FILE
    if not file.is_file():
        raise CheckpointError(f"{path} is no checkpoint: it has no {RECORD_FILE}")
    return parse_manifest(file.read_text(), str(file))


def read_record(path: Path) -> Record:
    """Where the run stood; see `read_manifest`."""
    return read_manifest(path).record

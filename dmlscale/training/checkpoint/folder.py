"""The checkpoints in a folder."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.manifest import RECORD_FILE, Manifest, parse_manifest
from dmlscale.training.state import Record

NAME = re.compile(r"step_(\d{8,})")
_MOST_RECORD_BYTES = 2**30  # a piece takes 200, so there is room for 1,000 ranks with 5,000 tensors each


def name_of(step: int) -> str:
    """Of the checkpoint of a step."""
    return f"step_{step:08d}"


def step_of(path: Path) -> int | None:
    """The step that a checkpoint's name tells; None for other names."""
    match = NAME.fullmatch(path.name)
    return None if match is None else int(match[1])


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first; nothing is known of damage in them."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if step_of(path) is not None and (path / RECORD_FILE).is_file()]
    return sorted(found, key=lambda path: step_of(path) or 0)


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run whose record can be read; its files are not looked at.

    Raises:
        CheckpointError: there are checkpoints, and no record of them can be read.
    """
    problem: CheckpointError | None = None
    for path in reversed(list_checkpoints(folder)):
        try:
            read_manifest(path)
        except CheckpointError as error:
            problem = problem or error
        else:
            return path
    if problem is not None:
        raise problem
    return None


def read_manifest(path: Path) -> Manifest:
    """What a checkpoint says of itself.

    Raises:
        CheckpointError: it is none, damaged, or was written by an earlier version.
    """
    return manifest_of(path, record_text(path), f"cannot read {path / RECORD_FILE}")


def manifest_of(path: Path, text: str, where: str) -> Manifest:
    """What the text of a checkpoint's record says; messages begin with ``where``.

    Raises:
        CheckpointError: see `parse_manifest`; or it is of another step than its folder.
    """
    manifest = parse_manifest(text, where)
    step = step_of(path)
    if step is not None and step != manifest.record.step:
        raise CheckpointError(f"{where}: it is of step {manifest.record.step}, its folder of step {step}")
    return manifest


def record_text(path: Path) -> str:
    """The text of a checkpoint's record.

    Raises:
        CheckpointError: there is none, it cannot be read, or the checkpoint was written by an earlier version.
    """
    file = path / RECORD_FILE
    if (path / ".metadata").exists() and not any(path.glob("*.safetensors")):
        raise CheckpointError(
            f"{path} was written by an earlier version of dmlscale, whose checkpoints are pickled and may run code "
            "when they are opened: this version does not. Export its model with that version, or train again"
        )
    try:
        # Neither a link, which may lead anywhere, nor a pipe, which would be waited for.
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as opened:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise CheckpointError(f"cannot read {file}: it is no file")
            content = opened.read(_MOST_RECORD_BYTES + 1)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is no checkpoint: it has no {RECORD_FILE}") from None
    except OSError as error:
        raise CheckpointError(f"cannot read {file}: {error.strerror or error}") from None
    if len(content) > _MOST_RECORD_BYTES:
        raise CheckpointError(f"cannot read {file}: it has more than {_MOST_RECORD_BYTES:,} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"cannot read {file}: it is no text in UTF-8") from None


def read_record(path: Path) -> Record:
    """Where the run stood; see `read_manifest`."""
    return read_manifest(path).record

"""``record.json``: where the run stood, and what files the checkpoint consists of."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from dataclasses import dataclass
from typing import Any

from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.piece_file import StoredFile, StoredPiece
from dmlscale.training.state import Record

RECORD_FILE = "record.json"
_FORMAT = 1
_FILE_NAME = re.compile(r"[A-Za-z0-9_-]+\.safetensors")


@dataclass(frozen=True)
class Manifest:
    """All that is known of a checkpoint without reading its tensors."""

    record: Record
    files: tuple[StoredFile, ...]

    def to_json(self) -> str:
        """As text, with a digest of itself."""
        body = {"format": _FORMAT, **dataclasses.asdict(self)}
        return json.dumps(body | {"sha256": _digest(body)}, indent=1) + "\n"


def parse_manifest(text: str, where: str) -> Manifest:
    """The manifest that a text is.

    Args:
        text: of a record.json.
        where: it lies, for messages.

    Raises:
        CheckpointError: it is damaged, of another format, or names files outside of its folder.
    """
    try:
        body = json.loads(text)
        said = body.pop("sha256", None)
        if body.get("format") != _FORMAT:
            raise CheckpointError(f"{where} has the format {body.get('format')}, this version reads {_FORMAT}")
        if said != _digest(body):
            raise CheckpointError(f"{where} is damaged: its digest does not match")
        return Manifest(Record(**body["record"]), tuple(stored_file(entry) for entry in body["files"]))
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{where} is damaged: {error}") from error


def stored_file(entry: dict[str, Any]) -> StoredFile:
    """The file that an entry of the record, or the note of a rank, describes.

    Raises:
        ValueError, TypeError, KeyError: it does not describe one, or one outside of its folder.
    """
    if not _FILE_NAME.fullmatch(entry["name"]):
        raise ValueError(f"a file may not be named {entry['name']!r}")
    pieces = tuple(
        StoredPiece(p["name"], p["dtype"], tuple(p["shape"]), tuple(p["offsets"]), tuple(p["sizes"]))
        for p in entry["pieces"]
    )
    return StoredFile(entry["name"], entry["size"], entry["sha256"], pieces)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

"""``record.json``: where the run stood, and what files the checkpoint consists of.

It may come from anybody: what `parse_manifest` returns has been checked, and names files of its own folder alone.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from dmlscale.training.checkpoint.coverage import why_not_whole
from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.piece_file import DTYPES, StoredFile, StoredPiece
from dmlscale.training.state import Record

RECORD_FILE = "record.json"
_FORMAT = 1
_FILE_NAME = re.compile(r"[A-Za-z0-9_-]{1,200}\.safetensors")


@dataclass(frozen=True)
class Manifest:
    """All that is known of a checkpoint without reading its tensors."""

    record: Record
    files: tuple[StoredFile, ...]

    def to_json(self) -> str:
        """As text, with a digest of itself."""
        body = {"format": _FORMAT, **dataclasses.asdict(self)}
        return json.dumps(body | {"sha256": _digest(body)}) + "\n"

    def pieces_by_tensor(self) -> dict[str, list[StoredPiece]]:
        """Of each tensor, all its pieces."""
        found: defaultdict[str, list[StoredPiece]] = defaultdict(list)
        for file in self.files:
            for piece in file.pieces:
                found[piece.name].append(piece)
        return found


_MANIFESTS = TypeAdapter(Manifest)
_FILES = TypeAdapter(StoredFile)


def parse_manifest(text: str, where: str) -> Manifest:
    """The manifest that a text is.

    Args:
        text: of a record.json. Keys that this version does not know are passed over.
        where: it lies; messages begin with it.

    Raises:
        CheckpointError: it is damaged, of another format, names files outside of its folder, or its pieces do not
            fill each tensor.
    """
    try:
        body = json.loads(text, object_pairs_hook=_without_repeated_keys)
        if not isinstance(body, dict) or "format" not in body:
            raise ValueError("it does not tell its format: it is no record of a checkpoint of this version")
        if body["format"] != _FORMAT:
            raise ValueError(f"it has the format {body['format']!r:.50}, this version reads {_FORMAT}")
        said = body.pop("sha256", None)
        if said != _digest(body):
            raise ValueError("its digest does not match")
        manifest = _MANIFESTS.validate_json(text, strict=True)
        _check_record(manifest.record)
        _check_files(manifest)
    except RecursionError:
        raise CheckpointError(f"{where}: it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{where}: it is no JSON ({error})") from None
    except ValueError as error:
        raise CheckpointError(f"{where}: {_reason(error)}") from None
    return manifest


def stored_file(entry: dict[str, Any]) -> StoredFile:
    """The file that an entry of the record, or the note of a rank, describes.

    Raises:
        ValueError: it does not describe one, or one outside of its folder.
    """
    try:
        file = _FILES.validate_json(json.dumps(entry), strict=True)
    except ValidationError as error:
        raise ValueError(_reason(error)) from None
    _check_file(file)
    return file


def _check_record(record: Record) -> None:
    if record.step < 0 or record.num_ranks < 1:
        raise ValueError(f"step {record.step} of {record.num_ranks} workers is none of a run")


def _check_files(manifest: Manifest) -> None:
    names = [file.name for file in manifest.files]
    if len(set(names)) < len(names):
        raise ValueError("it names a file twice")
    for file in manifest.files:
        _check_file(file)
    for name, pieces in manifest.pieces_by_tensor().items():
        if (reason := why_not_whole(pieces)) is not None:
            raise ValueError(f"tensor {name!r:.200} {reason}")


def _check_file(file: StoredFile) -> None:
    if not _FILE_NAME.fullmatch(file.name):
        raise ValueError(f"a file may not be named {file.name!r:.200}")
    if not 0 <= file.size < 2**63:
        raise ValueError(f"{file.name} cannot have the size that it tells")
    names = [piece.name for piece in file.pieces]
    if len(set(names)) < len(names):
        raise ValueError(f"{file.name} holds two pieces of one name")
    unknown = {piece.dtype for piece in file.pieces} - DTYPES.keys()
    if unknown:
        raise ValueError(f"{file.name} holds values of type {min(unknown)!r:.50}, which this version does not know")
    if any(size < 0 for piece in file.pieces for size in piece.sizes):
        raise ValueError(f"{file.name} holds a piece of a negative size")
    if sum(math.prod(piece.sizes) * DTYPES[piece.dtype].itemsize for piece in file.pieces) > file.size:
        raise ValueError(f"{file.name} has {file.size} bytes, its pieces have more")


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice")
    return found


def _reason(error: ValueError) -> str:
    """In one line; pydantic's own messages have several and show what was found."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return str(error)


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()

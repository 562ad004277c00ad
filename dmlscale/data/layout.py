"""The files of a packed dataset, and what is in them: shared by the writer and the reader of the index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from dmlscale.data.errors import DataError
from dmlscale.data.sources import Source

INDEX_FILE = "index.parquet"
DESCRIPTION_FILE = "dataset.json"
FORMAT_VERSION = 1

# One row per sample, in the order of the shards; the row number is the sample's id.
INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("shard", pa.dictionary(pa.int32(), pa.string())),
        ("offset", pa.int64()),  # of the image's bytes in the shard
        ("size", pa.int64()),
        ("label", pa.int64()),
        ("class_name", pa.string()),
        ("split", pa.dictionary(pa.int32(), pa.string())),
    ]
)


def shard_name(split: str, number: int) -> str:
    """File name of the ``number``-th shard of a split."""
    return f"{split}-{number:06d}.tar"


def source_options(source: Source) -> dict[str, Any]:
    """The options that decide what a source yields, as JSON would give them back."""
    options = {f.name: getattr(source, f.name) for f in fields(source) if f.compare}
    return json.loads(json.dumps(options, default=str))


def read_description(folder: Path) -> dict[str, Any] | None:
    """What dataset.json in ``folder`` says; None where there is no such file.

    Raises:
        DataError: the file is damaged or of a format this version cannot read.
    """
    path = folder / DESCRIPTION_FILE
    if not path.is_file():
        return None
    try:
        description = json.loads(path.read_text())
        version = description["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged ({error}): delete {folder} and pack the dataset again") from None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{path} has format_version {version!r}, this dmlscale reads {FORMAT_VERSION}: pack the dataset again"
        )
    return description


def is_complete(folder: Path) -> bool:
    """Whether ``folder`` holds a dataset whose packing was finished (the index is written last)."""
    return (folder / INDEX_FILE).is_file() and (folder / DESCRIPTION_FILE).is_file()


def write_description(folder: Path, description: Mapping[str, Any]) -> None:
    """Write dataset.json into ``folder``."""
    text = json.dumps(description, indent=2) + "\n"
    (folder / DESCRIPTION_FILE).write_text(text)

"""The files of a packed dataset, and what is in them: shared by the writers and the reader of the index.

    index.arrow      one row per sample, in the order of the shards; the row number is the sample's id
    classes.arrow    one row per class; the row number is its label
    shards.arrow     one row per shard; the row number is what the index says
    dataset.json     where the samples came from, and counts
    rejects.csv      samples that were left out, and why
    duplicates.csv   samples with the same content as an earlier one
    <split>-<number>.tar

The tables are Arrow files of one uncompressed record batch, so that they can be mapped into memory: opening an index of
10^8 rows reads nothing, and all processes of a machine share its pages. pandas, polars and duckdb read them too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa

from dmlscale.data.errors import DataError
from dmlscale.data.sources import ShardSource, Source

INDEX_FILE = "index.arrow"
CLASSES_FILE = "classes.arrow"
SHARDS_FILE = "shards.arrow"
DESCRIPTION_FILE = "dataset.json"
REJECTS_FILE = "rejects.csv"
DUPLICATES_FILE = "duplicates.csv"
TABLE_FILES = (DESCRIPTION_FILE, CLASSES_FILE, SHARDS_FILE, INDEX_FILE)  # the index last: with it a dataset is complete
FORMAT_VERSION = 2

INDEX_SCHEMA = pa.schema(
    [
        ("key", pa.large_string()),
        ("shard", pa.int32()),
        # Of the sample's bytes in the shard; of the tar header of its first part, if it has several.
        ("offset", pa.int64()),
        ("size", pa.int64()),  # bytes from there; with several parts to the end of the last
        ("num_parts", pa.int16()),  # files the sample is made of: views of an object
        ("extension", pa.dictionary(pa.int8(), pa.string())),
        ("label", pa.int32()),
        ("split", pa.dictionary(pa.int8(), pa.string())),
        ("content_hash", pa.uint64()),  # hashing.content_hash of the parts
        # Not of the sample in this row: row numbers sorted by split, label and row. Finds a class's samples at once.
        ("by_class", pa.int64()),
    ]
)
CLASSES_SCHEMA = pa.schema([("name", pa.large_string()), ("super_class", pa.string())])  # "" for none
SHARDS_SCHEMA = pa.schema([("name", pa.string()), ("size_bytes", pa.int64()), ("num_samples", pa.int64())])


def shard_name(split: str, number: int) -> str:
    """File name of the ``number``-th shard of a split."""
    return f"{split}-{number:06d}.tar"


def source_options(source: Source | ShardSource) -> dict[str, Any]:
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
            f"{path} has format_version {version!r}, this dmlscale reads {FORMAT_VERSION}: "
            f"delete {folder} and pack the dataset again"
        )
    return description


def is_complete(folder: Path) -> bool:
    """Whether ``folder`` holds a dataset whose packing was finished."""
    # dataset.json with index.parquet is format 1: complete, and refused with a clear word by read_description.
    return (folder / DESCRIPTION_FILE).is_file() and any(
        (folder / name).is_file() for name in (INDEX_FILE, "index.parquet")
    )


def write_description(folder: Path, description: Mapping[str, Any]) -> None:
    """Write dataset.json into ``folder``."""
    text = json.dumps(description, indent=2) + "\n"
    (folder / DESCRIPTION_FILE).write_text(text)

"""The tables of a dataset on this machine, wherever the dataset lies."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from dmlscale.data.errors import DataError
from dmlscale.data.layout import DESCRIPTION_FILE, TABLE_FILES
from dmlscale.data.storage.cache import ShardCache
from dmlscale.data.storage.storage import Storage
from dmlscale.data.storage.transfer_errors import MissingFileError
from dmlscale.redaction import shown


@contextmanager
def tables_of(storage: Storage, cache: ShardCache) -> Iterator[tuple[Storage, Path]]:
    """Fetch the tables, unless they lie here; within the block they stay where they are, and what is mapped stays.

    The description is asked for each time: it tells which version of the dataset it is, and tables and shards of
    another version are then never taken from the cache.

    Returns:
        The storage of this version, and the folder that holds the tables.

    Raises:
        DataError: there is no dataset, or it cannot be fetched.
    """
    if storage.is_local:
        yield storage, storage.local_path("")
        return
    with ExitStack() as stack:
        try:
            versioned = replace(storage, version=_version(storage, cache))
            for name in TABLE_FILES:
                stack.enter_context(cache.open(versioned, name))  # what is open is not removed to make room
            folder = cache.fetch(versioned, TABLE_FILES[0]).parent
        except MissingFileError as error:
            raise DataError(
                f"no dataset at {storage} ({error}): pack one with `dmlscale pack` and upload its folder there"
            ) from None
        yield versioned, folder


def discard_tables(storage: Storage, cache: ShardCache) -> None:
    """Drop the copies of tables that turned out to be wrong."""
    for name in TABLE_FILES:
        cache.discard(storage, name)


def _version(storage: Storage, cache: ShardCache) -> str:
    url = storage.url(DESCRIPTION_FILE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, DESCRIPTION_FILE)
        cache.retry.call(lambda: storage.download(DESCRIPTION_FILE, path), url)
        try:
            return str(json.loads(path.read_text())["version"])
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{shown(url)} is no description of a dataset: pack and upload it again") from None


def map_table(path: Path, schema: pa.Schema, *, is_small: bool = False) -> pa.RecordBatch:
    """The one record batch of a file, mapped.

    Args:
        path: of the file.
        schema: columns it must have, with their types, and full in every row.
        is_small: look at every value, which reads the file: damaged texts would end the process when they are used.

    Raises:
        DataError: it is missing, damaged, or has other columns.
    """
    try:
        reader = pa.ipc.open_file(pa.memory_map(str(path)))
        batches = [reader.get_batch(n) for n in range(reader.num_record_batches)]
        for batch in batches if is_small else ():
            batch.validate(full=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is damaged or missing ({error}): delete {path.parent} and pack again") from None
    missing = [name for name in schema.names if name not in reader.schema.names]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r} (it has: {', '.join(reader.schema.names)})")
    if len(batches) != 1 or not batches[0].num_rows:
        raise DataError(f"{path} must hold one record batch of at least one row, has {len(batches)}: pack again")
    for field in schema:
        column = batches[0].column(field.name)
        if column.type != field.type:
            raise DataError(f"{path} has a column of the wrong type: {field.name!r} is {column.type}, not {field.type}")
        if column.null_count:
            raise DataError(f"{path}: column {field.name!r} is empty in {column.null_count} rows")
    return batches[0]

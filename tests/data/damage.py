"""Damage datasets, and tell what is found of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from dmlscale.data.index import Index
from dmlscale.data.inspection.verify import verify
from dmlscale.data.packing.index_writer import write_table


def found(folder: Path, *, quick: bool = False) -> list[tuple[str, str, str]]:
    return [
        (problem.where, problem.key, problem.what)
        for problem in verify(Index.load(folder), num_processes=1, quick=quick)
    ]


def overwrite(folder: Path, shard: str, offset: int, data: bytes) -> None:
    with (folder / shard).open("r+b") as file:
        file.seek(offset)
        file.write(data)


def flip(folder: Path, shard: str, offset: int, bits: int = 0xFF) -> None:
    overwrite(folder, shard, offset, bytes([(folder / shard).read_bytes()[offset] ^ bits]))


def change_table(folder: Path, table: str, changes: Mapping[str, Any]) -> None:
    """Replace columns, or the codes of those with names."""
    with pa.OSFile(str(folder / table)) as file:
        batch = pa.ipc.open_file(file).get_batch(0)
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    for name, values in changes.items():
        kind = batch.schema.field(name).type
        if pa.types.is_dictionary(kind):
            codes = pa.array(values, kind.index_type)
            columns[name] = pa.DictionaryArray.from_arrays(codes, columns[name].dictionary, safe=False)
        else:
            columns[name] = pa.array(values, kind)
    write_table(folder / table, pa.RecordBatch.from_arrays(list(columns.values()), schema=batch.schema))


def place(index: Index, row: int) -> tuple[str, str, int]:
    columns = index.columns
    return index.shards.names[columns.shards[row]], index.key(row), int(columns.offsets[row])

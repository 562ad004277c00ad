"""Tables for the source ``manifest``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq

from dmlscale.data.sources import Item
from dmlscale.data.sources.manifest import Manifest, OpenManifest


def listed(source: Manifest, scratch: Path) -> tuple[OpenManifest, list[Item]]:
    opened = source.open(scratch)
    return opened, list(opened.items())


def write_csv(path: Path, columns: Mapping[str, Any], delimiter: str = ",") -> None:
    rows = zip(*columns.values(), strict=True)
    lines = [delimiter.join(map(str, row)) for row in [tuple(columns), *rows]]
    path.write_text("\r\n".join(lines) + "\r\n")


def write_table(path: Path, columns: Mapping[str, Any]) -> None:
    table = pa.table(dict(columns))
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(table, path, compression="lz4", chunksize=2)
    elif path.suffix == ".arrow":
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    else:
        write_csv(path, columns, "\t" if path.suffix == ".tsv" else ",")

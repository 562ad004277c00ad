"""Pack a source: WebDataset shards, an index over them, and a description."""

from __future__ import annotations

import csv
from dataclasses import fields
from pathlib import Path
from typing import Any

from dmlscale.data.errors import DataError
from dmlscale.data.layout import is_complete, read_description, source_options
from dmlscale.data.packing.foreign_index import index_shards
from dmlscale.data.packing.fragments import Reject
from dmlscale.data.packing.index_tables import REPEATED, finish_tables
from dmlscale.data.packing.item_table import ItemTable, write_items
from dmlscale.data.packing.summary import PackSummary
from dmlscale.data.packing.work_folder import (
    SCRATCH,
    begin,
    continue_or_restart,
    finish_publishing,
    publish,
    remove_leftover,
    work_folder,
)
from dmlscale.data.packing.writing import REMEDY, PackOptions, Progress, refuse, write_shards
from dmlscale.data.sources import SOURCES, ShardSource, Source


def ensure_packed(
    source: Source | ShardSource,
    out_dir: str | Path,
    options: PackOptions | None = None,
    *,
    progress: Progress | None = None,
) -> PackSummary:
    """The dataset in ``out_dir``; packed now unless it is there, from the same source and options.

    A dataset that is there is taken as it is: that files were added to the source since is not noticed.

    Raises:
        DataError: ``out_dir`` holds a dataset of another source or of other options; or as `pack` does.
    """
    folder = _local(out_dir)
    wanted = _request(source, options or PackOptions())
    description = read_description(folder) if is_complete(folder) else None
    if description is None:
        return pack(source, folder, options, progress=progress)
    packed = {name: description.get(name) for name in wanted}
    if packed != wanted:
        name, old, new = _first_difference(packed, wanted)
        raise DataError(
            f"{folder} was packed with {name}={old!r}, now asked for {new!r}: choose another folder or delete this one"
        )
    remove_leftover(folder)
    return PackSummary.of(folder, description, is_reused=True)


def pack(
    source: Source | ShardSource,
    out_dir: str | Path,
    options: PackOptions | None = None,
    *,
    progress: Progress | None = None,
) -> PackSummary:
    """Write every sample of ``source`` into shards under ``out_dir``.

    A shard holds short runs of one class, in random class order: whoever reads it from front to back meets
    many classes, several samples of each. Labels are 0..C-1, the classes of "train" first, by name. The same
    source and options give the same bytes, whatever the number of processes. A dataset appears under ``out_dir`` only
    when it is complete; a packing that was cut off goes on after its last finished shard.

    Args:
        source: what to pack.
        out_dir: folder of the dataset; made if missing.
        options: how to pack.
        progress: called with the number of samples done, and of all.

    Raises:
        DataError: the folder cannot be written or holds a dataset; the source lists no sample or an impossible one, or
            none that can be read; a file cannot be read now; the disk is full; a reject, if ``options.strict``.
    """
    options = options or PackOptions()
    folder = _local(out_dir)
    request = _request(source, options)
    if is_complete(folder):
        raise DataError(f"{folder} holds a dataset already: choose another folder or delete it")
    with work_folder(folder) as work:
        if not finish_publishing(work, folder, request):
            begin(work, request)
            if isinstance(source, ShardSource):
                index_shards(source, work, request, options, progress)
                shards: list[str] = []
            else:
                shards = _write(source, work, request, options, progress)
            publish(work, folder, shards)
    description = read_description(folder)
    assert description is not None
    return PackSummary.of(folder, description, is_reused=False)


def _write(
    source: Source, work: Path, request: dict[str, Any], options: PackOptions, progress: Progress | None
) -> list[str]:
    """Write shards and tables into ``work``; the names of the shards."""
    opened = source.open(work / SCRATCH)
    table = write_items(opened.items(), work / "items.arrow", makes_keys=getattr(opened, "makes_keys", False))
    if options.strict:
        _refuse_listed(table)
    continue_or_restart(work, request, table.digest)
    records = write_shards(source, table, work, options, progress)
    return finish_tables(work, request, table, records)


def _refuse_listed(table: ItemTable) -> None:
    """Stop where the list alone tells that a sample is a reject."""
    with table.defective.open(newline="") as file:
        defective = next(csv.reader(file), None)
    if defective is not None:
        key, _, _, ref, reason = defective
        raise DataError(f"sample {key!r} ({ref}): {reason}; {REMEDY}")
    if len(table.repeated):
        refuse(table, Reject(int(table.repeated[0]), REPEATED))


def _local(out_dir: str | Path) -> Path:
    if "://" in str(out_dir):
        raise DataError(f"cannot pack into {out_dir}: pack into a folder of this machine and upload it")
    return Path(out_dir)


def _request(source: Source | ShardSource, options: PackOptions) -> dict[str, Any]:
    """What decides the bytes of a dataset; part of its description."""
    return {
        "source": next((name for name, cls in SOURCES.items() if cls is type(source)), type(source).__name__),
        "options": source_options(source),
        "packing": {f.name: getattr(options, f.name) for f in fields(options) if f.compare},
        "input": source.input,
    }


def _first_difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> tuple[str, Any, Any]:
    """Dotted name and both values of the first entry in which two descriptions differ."""
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            return _first_difference(before, after, f"{prefix}{name}.")
        return f"{prefix}{name}", before, after
    raise AssertionError("called with equal descriptions")

"""The command ``inspect``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.inspection.overview import ClassSize, Overview, SplitOverview, look_at
from dmlscale.data.layout import DUPLICATES_FILE, REJECTS_FILE

_BAR = 40  # characters
_MOST_REASONS = 3


def inspect(
    path: str,
    *,
    split: str | None = None,
    num_classes: int = 8,
    pictures_file: str | None = None,
    json_file: str | None = None,
) -> int:
    """Prints what a packed dataset holds.

    Args:
        path: of its folder, or a URL.
        split: to look at; None takes all.
        num_classes: to name, of the largest and of the smallest, and to draw of each split.
        pictures_file: for a contact sheet of some classes, PNG.
        json_file: for the same numbers, for machines.

    Raises:
        DataError: there is no dataset or no such split, or a file cannot be written.
    """
    if num_classes < 1:
        raise DataError(f"--classes {num_classes}, must be at least 1")
    index = Index.load(path)
    overview = look_at(index, None if split is None else [split], num_listed=num_classes)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    for part in _shown(overview):
        console.print(part)
    if json_file is not None:
        _write(json_file, (json.dumps(_plain(overview), indent=2) + "\n").encode())
    if pictures_file is not None:
        from dmlscale.launch.datasets.pictures import (
            draw_pictures,  # torch and matplotlib: seconds that numbers need not wait
        )

        _write(pictures_file, draw_pictures(index, list(overview.splits), num_classes))
        console.print(f"pictures: {pictures_file}")
    return 0


def _write(file: str, content: bytes) -> None:
    try:
        Path(file).write_bytes(content)
    except OSError as error:
        raise DataError(f"cannot write {file}: {error.strerror}") from None


def _plain(overview: Overview) -> dict[str, object]:
    """For JSON: named tuples with their names."""
    plain = asdict(overview)
    plain["overlaps"] = [overlap._asdict() for overlap in overview.overlaps]
    for name, split in overview.splits.items():
        for field in ("histogram", "group_choices", "largest", "smallest"):
            plain["splits"][name][field] = [entry._asdict() for entry in getattr(split, field)]
        plain["splits"][name]["numbers"] = split.numbers._asdict()
    return plain


def _shown(overview: Overview) -> Iterator[str | Table]:
    options = ", ".join(f"{name}={_short(value)}" for name, value in overview.options.items())
    yield f"{overview.path}: source {overview.source}{f' ({options})' if options else ''}, input {overview.input}"
    yield (
        f"{overview.num_shards:,} shards, {_size(overview.num_bytes)} (from {_size(overview.smallest_shard)} to "
        f"{_size(overview.largest_shard)} each)"
    )
    yield from _shared_classes(overview)
    if overview.num_empty_classes:
        yield f"{overview.num_empty_classes:,} classes have no sample"
    if overview.rejects:
        reasons = [f"{count:,} x {reason}" for reason, count in overview.rejects.items()]
        others = "; and others" if len(reasons) > _MOST_REASONS else ""
        first = "; ".join(reasons[:_MOST_REASONS])
        yield f"rejected: {overview.num_rejects:,} ({first}{others}), all in {REJECTS_FILE}"
    if overview.num_duplicates:
        across = overview.num_duplicates_across_splits
        yield (
            f"same content as an earlier sample: {overview.num_duplicates:,}, {across:,} of them in another split, "
            f"all in {DUPLICATES_FILE}"
        )
    for name, split in overview.splits.items():
        yield from _split(name, split)


def _shared_classes(overview: Overview) -> Iterator[str]:
    for overlap in overview.overlaps:
        first, second = overlap.splits
        if overlap.num_shared:
            yield f"classes that {first} and {second} share: {overlap.num_shared:,}, so not zero-shot"
        else:
            yield f"{first} and {second} share no class: zero-shot"


def _split(name: str, split: SplitOverview) -> Iterator[str | Table]:
    yield f"\n{name}: {split.numbers}"
    kinds = ", ".join(f"{count:,} x .{extension}" for extension, count in split.extensions.items())
    parts = f" of {split.fewest_parts} to {split.most_parts} files" if split.most_parts > 1 else ""
    yield (
        f"samples{parts}: {_size(split.smallest_bytes)} to {_size(split.largest_bytes)} "
        f"(median {_size(split.median_bytes)}); {kinds}"
    )
    if split.num_super_classes:
        yield f"super-classes: {split.num_super_classes:,}"
    yield f"largest classes: {_listed(split.largest)}"
    yield f"smallest classes: {_listed(split.smallest)}"
    yield _histogram(split)
    if split.group_choices:
        yield _groups(split)
        yield "P (classes_per_batch) may be as large as there are classes with K or more, or groups get smaller than K"


def _histogram(split: SplitOverview) -> Table:
    table = _table("samples of a class", "classes", "")
    most = max(entry.number for entry in split.histogram)
    for entry in split.histogram:
        sizes = f"{entry.first:,}" if entry.first == entry.last else f"{entry.first:,} - {entry.last:,}"
        bar = "\N{FULL BLOCK}" * round(_BAR * entry.number / most) or (
            "\N{LEFT ONE EIGHTH BLOCK}" if entry.number else ""
        )
        table.add_row(sizes, f"{entry.number:,}", bar)
    return table


def _groups(split: SplitOverview) -> Table:
    """What values of P and K the split allows."""
    table = _table("samples_per_class K", "classes with K or more", "of all samples")
    for choice in split.group_choices:
        share = choice.num_samples / split.numbers.num_samples
        table.add_row(str(choice.samples_per_class), f"{choice.num_classes:,}", f"{share:.1%}")
    return table


def _table(first: str, second: str, third: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    table.add_column(first, justify="right")
    table.add_column(second, justify="right")
    table.add_column(third)
    return table


def _listed(classes: tuple[ClassSize, ...]) -> str:
    return ", ".join(f"{entry.name} ({entry.num_samples:,})" for entry in classes)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _size(num_bytes: float) -> str:
    for unit, one in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if num_bytes >= one:
            return f"{num_bytes / one:,.1f} {unit}"
    return f"{num_bytes:,.0f} bytes"

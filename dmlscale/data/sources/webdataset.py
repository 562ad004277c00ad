"""WebDataset shards that others have made, used where they are."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from braceexpand import braceexpand

from dmlscale.data.errors import DataError
from dmlscale.data.inputs import InputKind
from dmlscale.data.packing.foreign_shards import Check, Scan
from dmlscale.data.sources import SOURCES, TRAIN_SPLIT

_COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst")

Shards = str | Sequence[str]


@SOURCES.register("webdataset")
@dataclass(frozen=True)
class WebDatasetShards:
    """Existing shards. An index over them is made by reading each once; nothing is copied, so they must stay.

    Args:
        shards: path or URL of the shards, or a list of them; braces ("train-{000000..000146}.tar") and wildcards
            ("train-*.tar") stand for many. Or those of several splits: {"train": ..., "test": ...}.
        split: of the shards, where ``shards`` does not tell.
        label: the member that tells the class: an extension ("cls"), or "json:" and the way to a text or whole number
            in it ("json:label", "json:annotation.species"). The class is named so.
        input: what the samples are; "views" are numbered members ("<key>.0.png", "<key>.1.png", ...).
        member: extension of the member that is the sample ("jpg", "left.png"); None finds it by its ending.
    """

    shards: Shards | Mapping[str, Shards]
    split: str = TRAIN_SPLIT
    label: str = "cls"
    input: InputKind = "image"
    member: str | None = None

    def __post_init__(self) -> None:
        extension, colon, way = self.label.partition(":")
        if not extension or (colon and not all(way.split("."))):
            raise DataError(f"webdataset: label={self.label!r}, must be an extension ('cls') or 'json:<key>'")

    def locations(self, storage_options: Mapping[str, Any] | None = None) -> list[tuple[str, str]]:
        """(path or URL, split) of each shard, in the order given; those of a wildcard by name.

        Args:
            storage_options: of fsspec, to list the shards of a URL with a wildcard.

        Raises:
            DataError: there are none, a local one is missing, one comes twice or has a compressed name.
            OSError: a URL cannot be listed.
        """
        of_split = self.shards if isinstance(self.shards, Mapping) else {self.split: self.shards}
        found = []
        for split, shards in of_split.items():
            locations = list(_expand(shards, storage_options))
            if not locations:
                raise DataError(f"webdataset: shards={shards!r} of split {split!r} names no shard")
            found += [(location, split) for location in locations]
        if not found:
            raise DataError("webdataset: shards={} names no shard")
        location, count = Counter(location for location, _ in found).most_common(1)[0]
        if count > 1:
            raise DataError(f"webdataset: shard {location} comes {count} times in shards={self.shards!r}")
        missing = [location for location, _ in found if "://" not in location and not Path(location).is_file()]
        if missing:
            raise DataError(f"webdataset: {len(missing)} of {len(found)} shards are missing, the first is {missing[0]}")
        return found

    def scan(self, check: Check | None = None) -> Scan:
        """What to look for in each shard; ``check`` tells why the files of a sample cannot be decoded."""
        return Scan(self.input, self.label, self.member, check)


def _expand(shards: Shards, storage_options: Mapping[str, Any] | None) -> Iterator[str]:
    """Paths and URLs without braces and wildcards."""
    for pattern in [shards] if isinstance(shards, str) else shards:
        try:
            names = list(braceexpand(pattern))
        except ValueError:
            raise DataError(f"webdataset: shards={pattern!r} has a brace that is not closed") from None
        for name in names:
            if name.endswith(_COMPRESSED):
                raise DataError(
                    f"webdataset: {name} is compressed, so samples cannot be read at an offset: decompress it first"
                )
            yield from _listed(name, storage_options)


def _listed(name: str, storage_options: Mapping[str, Any] | None) -> list[str]:
    is_url = "://" in name
    path = name if is_url else str(Path(name).expanduser().absolute())
    if not glob.has_magic(name):
        return [path]
    if is_url:
        system, pattern = fsspec.core.url_to_fs(name, **(storage_options or {}))
        found = sorted(system.unstrip_protocol(entry) for entry in system.glob(pattern))
    else:
        found = sorted(glob.glob(path))
    if not found:
        raise DataError(f"webdataset: there is no shard {name}")
    return found

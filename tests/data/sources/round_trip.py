"""A source packed and read back: what every source must survive."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from dmlscale.data.index import Index
from dmlscale.data.packing.pack import PackOptions, pack
from dmlscale.data.sources import TRAIN_SPLIT, Item, Source

Listed = dict[str, tuple[Item, tuple[bytes, ...]]]  # by key


def listed(source: Source, scratch: Path, unreadable: Collection[str] = ()) -> Listed:
    """Every item with its files, except those whose keys are ``unreadable``; keys must not repeat."""
    opened = source.open(scratch)
    items = [item for item in opened.items() if not item.defect]
    assert len({item.key for item in items}) == len(items)
    return {item.key: (item, tuple(opened.load(item.ref))) for item in items if item.key not in unreadable}


def assert_round_trip(
    source: Source, tmp_path: Path, unreadable: Collection[str] = (), *, num_processes: int = 1
) -> Index:
    """Pack ``source`` and compare each sample with what the source lists and loads.

    Args:
        source: what to pack; small.
        tmp_path: an empty folder.
        unreadable: keys of samples that must be rejected.
        num_processes: that pack; more than one take seconds to start.

    Returns:
        The packed dataset.
    """
    expected = listed(source, tmp_path / "scratch", unreadable)
    summary = pack(source, tmp_path / "packed", PackOptions(num_processes=num_processes, shard_size_bytes=20_000))
    index = Index.load(tmp_path / "packed")
    members = _members(tmp_path / "packed", index.shards.names)
    assert sorted(index.key(row) for row in range(len(index))) == sorted(expected)
    assert summary.num_rejects == len(unreadable)
    _, super_names = index.super_classes()
    super_codes, _ = index.super_classes()
    for row in range(len(index)):
        item, parts = expected[index.key(row)]
        label = int(index.columns.labels[row])
        assert index.class_names[label] == item.class_name
        assert index.splits[index.columns.splits[row]] == item.split
        assert super_names[super_codes[label]] == (item.super_class or item.class_name)
        assert index.extensions[index.columns.extensions[row]] == item.extension
        assert index.columns.num_parts[row] == len(parts)
        in_shard = [data for name, data in members if name.split(".")[0] == item.key and not name.endswith(".cls")]
        assert tuple(in_shard) == parts
        if len(parts) == 1:
            assert _at_offset(tmp_path / "packed", index, row) == parts[0]
    counts = Counter(item.split for item, _ in expected.values())
    assert summary.num_samples == dict(counts)
    classes = {split: {item.class_name for item, _ in expected.values() if item.split == split} for split in counts}
    assert summary.num_classes == {split: len(names) for split, names in classes.items()}
    assert index.num_classes == len(classes.get(TRAIN_SPLIT, ()))
    return index


def _members(folder: Path, shards: Collection[str]) -> list[tuple[str, bytes]]:
    members = []
    for name in shards:
        with tarfile.open(folder / name) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                members.append((member.name, file.read()))
    return members


def _at_offset(folder: Path, index: Index, row: int) -> bytes:
    with (folder / index.shards.names[index.columns.shards[row]]).open("rb") as file:
        file.seek(int(index.columns.offsets[row]))
        return file.read(int(index.columns.sizes[row]))

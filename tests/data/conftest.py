from __future__ import annotations

from pathlib import Path

import pytest

from dmlscale.data.index import Index
from dmlscale.data.packing.pack import pack
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.sources.glyphs import Glyphs
from tests.data.listed import Listed, mixed_items


@pytest.fixture(scope="session")
def small_source() -> Glyphs:
    return Glyphs(limit_classes=12, num_processes=1)


@pytest.fixture(scope="session")
def packed(small_source: Glyphs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed set of 12 + 12 glyph classes in several shards; tests must not change it."""
    folder = tmp_path_factory.mktemp("glyphs")
    pack(small_source, folder, PackOptions(shard_size_bytes=150_000, num_processes=1))
    return folder


@pytest.fixture(scope="session")
def train_index(packed: Path) -> Index:
    return Index.load(packed).split("train")


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small pictures of classes of 2 to 60 in eight train shards (see `mixed_items`); tests must not change it."""
    folder = tmp_path_factory.mktemp("mixed")
    pack(Listed(mixed_items()), folder, PackOptions(shard_size_bytes=1, num_processes=1))
    return folder

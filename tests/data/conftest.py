from __future__ import annotations

from pathlib import Path

import pytest

from dmlscale.data.index import Index
from dmlscale.data.shards import pack
from dmlscale.data.sources.glyphs import Glyphs


@pytest.fixture(scope="session")
def small_source() -> Glyphs:
    return Glyphs(limit_classes=12, num_processes=1)


@pytest.fixture(scope="session")
def packed(small_source: Glyphs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed set of 12 + 12 glyph classes in several shards; tests must not change it."""
    folder = tmp_path_factory.mktemp("glyphs")
    pack(small_source, folder, shard_size_bytes=150_000)
    return folder


@pytest.fixture(scope="session")
def train_index(packed: Path) -> Index:
    return Index.load(packed).split("train")

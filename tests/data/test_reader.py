from __future__ import annotations

import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dmlscale.data import reader as reader_module
from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.reader import Reader

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


def test_pixels_are_those_of_the_file(train_index: Index) -> None:
    reader = Reader(train_index, channels=1)
    row_id = int(train_index.row_ids[3])
    sample = reader.sample(row_id)
    expected = np.asarray(Image.open(BytesIO(reader.read(row_id))))
    assert np.array_equal(sample.image[0].numpy(), expected)
    assert sample.image.dtype == torch.uint8
    assert (sample.key, sample.label) == (train_index.key(row_id), train_index.labels[3])


def test_channels_convert(train_index: Index) -> None:
    grey, rgb = (Reader(train_index, channels=channels).image(0) for channels in (1, 3))
    assert rgb.shape == (3, 32, 32)
    assert torch.equal(rgb[1], grey[0])
    with pytest.raises(DataError, match="channels=2"):
        Reader(train_index, channels=2)


def test_cache_is_bounded_and_gives_the_same(train_index: Index) -> None:
    plain, cached = Reader(train_index, channels=1), Reader(train_index, channels=1, cache_bytes=3 * 1024)
    for row_id in [0, 1, 2, 3, 4, 0, 4]:
        assert torch.equal(plain.image(row_id), cached.image(row_id))
    assert cached.image(0) is cached.image(0)
    assert cached.image(4) is not cached.image(4)


def test_threads_share_few_descriptors(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_MAX_OPEN_SHARDS", 1)
    index = Index.load(packed)
    reader = Reader(index, channels=1)
    row_ids = np.random.default_rng(0).permutation(len(index)).tolist()
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(reader.image, row_ids))
    fresh = Reader(index, channels=1)
    assert all(torch.equal(image, fresh.image(row_id)) for image, row_id in zip(images, row_ids, strict=True))


def test_pickled_and_forked_readers_read(train_index: Index) -> None:
    reader = Reader(train_index, channels=1)
    expected = bytes(reader.read(5))
    assert bytes(pickle.loads(pickle.dumps(reader)).read(5)) == expected
    child = os.fork()
    if not child:
        os._exit(0 if bytes(reader.read(5)) == expected else 1)
    assert os.waitpid(child, 0)[1] == 0


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def test_undecodable_picture_is_named(copy: Path) -> None:
    index = Index.load(copy)
    offset = int(index.columns.offsets[0])
    with index.shard_path(0).open("r+b") as file:
        file.seek(offset)
        file.write(b"no picture")
    key = index.key(0)
    with pytest.raises(DataError, match=rf"'{key}' \(shard .*train-000000\.tar, offset {offset}\) is no readable"):
        Reader(index, channels=1).image(0)


def test_shard_that_shrinks_after_the_check_is_named(copy: Path) -> None:
    index = Index.load(copy)
    last = len(index) - 1
    os.truncate(index.shard_path(last), int(index.columns.offsets[last]) + 10)
    with pytest.raises(DataError, match=r"is cut off: 10 of \d+ bytes"):
        Reader(index, channels=1).image(last)


def test_shard_that_vanishes_after_the_check_is_named(copy: Path) -> None:
    index = Index.load(copy)
    index.shard_path(0).unlink()
    with pytest.raises(DataError, match="cannot be read: No such file"):
        Reader(index, channels=1).image(0)

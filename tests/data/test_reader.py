from __future__ import annotations

import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dmlscale.data import reader as reader_module
from dmlscale.data.decoding.decode import find_decoder
from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.packing.pack import pack
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.reader import LostSampleError, Reader
from tests.data.listed import Listed, item, picture

GREY = find_decoder("image", channels=1)


def test_pixels_are_those_of_the_file(train_index: Index) -> None:
    reader = Reader(train_index, GREY)
    row_id = int(train_index.row_ids[3])
    sample = reader.sample(row_id)
    (data,) = reader.read(row_id)
    assert np.array_equal(sample.image[0].numpy(), np.asarray(Image.open(BytesIO(data))))
    assert sample.image.dtype == torch.uint8
    assert (sample.key, sample.label) == (train_index.key(row_id), train_index.labels[3])


def test_channels_convert(train_index: Index) -> None:
    grey, rgb = (Reader(train_index, find_decoder("image", channels=channels)).decoded(0) for channels in (1, 3))
    assert rgb.shape == (3, 32, 32)
    assert torch.equal(rgb[1], grey[0])
    with pytest.raises(DataError, match="channels=2"):
        find_decoder("image", channels=2)


def test_cache_is_bounded_and_gives_the_same(train_index: Index) -> None:
    plain, cached = Reader(train_index, GREY), Reader(train_index, GREY, cache_bytes=3 * 1024)
    for row_id in [0, 1, 2, 3, 4, 0, 4]:
        assert torch.equal(plain.decoded(row_id), cached.decoded(row_id))
    assert cached.decoded(0) is cached.decoded(0)
    assert cached.decoded(4) is not cached.decoded(4)


def test_threads_share_few_descriptors(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "_MAX_OPEN_SHARDS", 1)
    index = Index.load(packed)
    reader = Reader(index, GREY)
    row_ids = np.random.default_rng(0).permutation(len(index)).tolist()
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(reader.decoded, row_ids))
    fresh = Reader(index, GREY)
    assert all(torch.equal(image, fresh.decoded(row_id)) for image, row_id in zip(images, row_ids, strict=True))


def test_pickled_and_forked_readers_read(train_index: Index) -> None:
    reader = Reader(train_index, GREY)
    expected = list(map(bytes, reader.read(5)))
    assert list(map(bytes, pickle.loads(pickle.dumps(reader)).read(5))) == expected
    child = os.fork()
    if not child:
        os._exit(0 if list(map(bytes, reader.read(5))) == expected else 1)
    assert os.waitpid(child, 0)[1] == 0


def open_files(folder: Path) -> list[str]:
    """Names of the files of a folder that this process has open."""
    opened = []
    for descriptor in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # that of the list itself, or of another thread
            opened.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
    return [path.name for path in opened if path.parent == folder]


def test_a_closed_reader_holds_no_shard_and_opens_again(packed: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))  # which no other test has open
    reader = Reader(Index.load(copy).split("train"), GREY, cache_bytes=10**6)
    before = open_files(copy)
    first = reader.decoded(0)
    (opened,) = set(open_files(copy)) - set(before)
    assert opened.endswith(".tar")
    reader.close()
    assert open_files(copy) == before
    assert reader.decoded(0) is not first
    reader.close()


def test_views_are_decoded_together(tmp_path: Path) -> None:
    views = [picture(str(view)) for view in range(3)]
    pack(Listed((item("a", parts=views),), "views"), tmp_path, PackOptions(num_processes=1))
    decoded = Reader(Index.load(tmp_path), find_decoder("views", channels=1)).decoded(0)
    assert decoded.shape == (3, 1, 8, 8)
    assert all(torch.equal(decoded[n], GREY([view])) for n, view in enumerate(views))


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def shard_of(index: Index, row_id: int) -> Path:
    return index.storage.local_path(index.shards.names[index.columns.shards[row_id]])


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_bytes_that_have_changed_are_named_although_they_decode(copy: Path) -> None:
    """The pixels of the sample before it, of the same size."""
    index = Index.load(copy)
    reader = Reader(index, GREY)
    sizes = index.columns.sizes
    first, second = next((a, b) for a in range(len(index)) for b in range(a) if sizes[a] == sizes[b])
    other = bytes(reader.read(second)[0])
    overwrite(shard_of(index, first), int(index.columns.offsets[first]), other)
    place = rf"'{index.key(first)}' \(shard train-\d+\.tar, offset {index.columns.offsets[first]}\)"
    with pytest.raises(LostSampleError, match=rf"{place} has changed since it was packed: restore the shard"):
        reader.read(first)
    assert reader.read(second) == [other]


def test_a_picture_that_the_packer_did_not_check_is_named_when_it_cannot_be_decoded(tmp_path: Path) -> None:
    listed = (item("a"), item("b", parts=[b"no picture"]))
    pack(Listed(listed), tmp_path, PackOptions(num_processes=1, check=False))
    index = Index.load(tmp_path)
    row_id = index.columns.keys.to_pylist().index("b")
    reader = Reader(index, GREY)
    with pytest.raises(LostSampleError, match=r"'b' \(shard train-000000\.tar, offset \d+\) cannot be decoded: is no"):
        reader.decoded(row_id)
    assert reader.decoded(1 - row_id).shape == (1, 8, 8)


@pytest.mark.parametrize("damage", ["header", "size", "part"])
def test_damaged_views_are_named(tmp_path: Path, damage: str) -> None:
    views = [picture(str(view)) for view in range(3)]
    pack(Listed((item("a", parts=views), item("b", parts=views)), "views"), tmp_path, PackOptions(num_processes=1))
    index = Index.load(tmp_path)
    offset = int(index.columns.offsets[0])
    place, data = {"header": (0, b"\xff" * 512), "size": (124, b"7777777"), "part": (520, b"zz")}[damage]
    overwrite(shard_of(index, 0), offset + place, data)
    reader = Reader(index, find_decoder("views"))
    with pytest.raises(LostSampleError, match=r"has changed since it was packed"):
        reader.read(0)
    assert len(reader.read(1)) == 3


def test_shard_that_shrinks_is_named(copy: Path) -> None:
    index = Index.load(copy)
    last = len(index) - 1
    reader = Reader(index, GREY)
    reader.read(last)
    os.truncate(shard_of(index, last), int(index.columns.offsets[last]) + 10)
    with pytest.raises(LostSampleError, match=r"is cut off: 10 of \d+ bytes; restore the shard"):
        reader.read(last)
    reader.read(last - 1)


def test_shard_that_is_gone_is_named_and_not_asked_for_again_until_closed(copy: Path) -> None:
    index = Index.load(copy)
    reader = Reader(index, GREY)
    shard = shard_of(index, 0)
    shard.rename(copy / "hidden")
    with pytest.raises(LostSampleError, match=r"train-000000\.tar is missing"):
        reader.read(0)
    (copy / "hidden").rename(shard)
    with pytest.raises(LostSampleError, match="is missing"):
        reader.read(1)
    reader.close()
    assert len(reader.read(0)) == 1

"""Reading samples of a data set behind a web server, through the cache."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dmlscale.data.decoding.decode import find_decoder
from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.layout import TABLE_FILES
from dmlscale.data.loader import Recipe, TrainStream, eval_batches
from dmlscale.data.packing.pack import pack
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.planning.planner import EpochPlanner
from dmlscale.data.planning.sampling import Sampling
from dmlscale.data.reader import Reader
from dmlscale.data.storage.cache import ShardCache
from dmlscale.data.storage.retry import Retry
from dmlscale.data.transforms import find_transform
from tests.data.listed import Listed, item, picture
from tests.data.servers import HttpServer

NUM_CLASSES, PER_CLASS = 12, 32
RECIPE = Recipe(find_decoder("image", channels=1), find_transform("standardize"))
WINDOWED = Sampling(classes_per_batch=4, samples_per_class=2, num_streams=2, window_shards=2)


def listing(salt: str = "") -> Listed:
    names = [f"{label}-{n}" for label in range(NUM_CLASSES) for n in range(PER_CLASS)]
    return Listed(tuple(item(name, salt + name.split("-")[0], parts=(picture(name),)) for name in names))


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("far") / "set"
    pack(listing(), folder, PackOptions(shard_size_bytes=50_000, num_processes=1))
    return folder


@pytest.fixture
def server(packed: Path, tmp_path: Path) -> Iterator[HttpServer]:
    shutil.copytree(packed, tmp_path / "www" / "set")
    with HttpServer(tmp_path / "www", tmp_path / "state") as running:
        yield running


def opened(server: HttpServer, tmp_path: Path, max_bytes: int = 10**9) -> Index:
    cache = ShardCache(tmp_path / "cache", max_bytes, Retry(seconds=2.0))
    return Index.load(f"{server.url}/set", cache=cache)


def test_windows_need_no_more_than_two_of_them_in_the_cache(server: HttpServer, tmp_path: Path, packed: Path) -> None:
    tables = sum((packed / name).stat().st_size for name in TABLE_FILES)
    shards = [path.stat().st_size for path in packed.glob("*.tar")]
    assert len(shards) > 8
    limit = tables + 4 * max(shards)
    split = opened(server, tmp_path, limit).split("train")
    planner = EpochPlanner(split.class_rows, WINDOWED, seed=0, shards=split.shard_rows)
    with TrainStream(split, planner, RECIPE, seed=0, num_workers=2) as stream:
        for _ in range(planner.num_steps(0)):
            next(stream)
            assert split.cache.used_bytes() <= limit
    requests = [server.requests(f"set/{path.name}") for path in packed.glob("*.tar")]
    assert min(requests) == 1  # an epoch needs each once; reading ahead into the next asks for a few again
    assert sum(requests) <= len(shards) + 4


def test_an_evaluation_keeps_few_shards(server: HttpServer, tmp_path: Path, packed: Path) -> None:
    tables = sum((packed / name).stat().st_size for name in TABLE_FILES)
    limit = tables + 5 * max(path.stat().st_size for path in packed.glob("*.tar"))
    split = opened(server, tmp_path, limit).split("train")
    rows = [batch.ids.numpy() for batch in eval_batches(split, RECIPE, batch_size=16)]
    assert np.array_equal(np.concatenate(rows), split.row_ids)
    assert split.cache.used_bytes() <= limit


def test_a_damaged_copy_is_fetched_again(server: HttpServer, tmp_path: Path) -> None:
    index = opened(server, tmp_path)
    Reader(index, RECIPE.decoder).read(0)
    (copy,) = (tmp_path / "cache").rglob("train-000000.tar")
    copy.write_bytes(bytes(copy.stat().st_size))
    reader = Reader(index, RECIPE.decoder)
    for row in range(5):
        assert len(reader.read(row)) == 1
    assert server.requests("set/train-000000.tar") == 2


def test_tables_of_two_versions_are_refused_until_the_upload_is_complete(server: HttpServer, tmp_path: Path) -> None:
    pack(listing("new"), tmp_path / "new", PackOptions(shard_size_bytes=50_000, num_processes=1))
    place = tmp_path / "www" / "set"
    shutil.copy(tmp_path / "new" / "dataset.json", place)  # the first file of an upload
    with pytest.raises(DataError, match="different versions"):
        opened(server, tmp_path)
    shutil.copytree(tmp_path / "new", place, dirs_exist_ok=True)
    assert opened(server, tmp_path).class_names[0].startswith("new")


def test_a_shard_that_is_gone_takes_no_memory_for_each_sample(packed: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    (copy / "train-000000.tar").unlink()
    reader = Reader(Index.load(copy), RECIPE.decoder)

    def frames() -> int:
        try:
            reader.read(0)
        except DataError as error:
            count, traceback = 0, (error.__context__ or error).__traceback__
            while traceback is not None:
                count, traceback = count + 1, traceback.tb_next
            return count
        raise AssertionError("the sample was read")

    counts = [frames() for _ in range(20)]
    assert counts[-1] <= counts[1]

"""Datasets that somebody crafted: nothing in them is run, and no file outside of them is opened or written."""

from __future__ import annotations

import csv
import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dmlscale.data.decoding.contents import read_picture
from dmlscale.data.decoding.decode import find_decoder
from dmlscale.data.embeddings_file import read_embeddings
from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.packing.index_writer import write_table
from dmlscale.data.packing.pack import pack
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.reader import LostSampleError, Reader
from dmlscale.data.shard_names import check_shard_names
from dmlscale.data.sources.arrays import Arrays
from dmlscale.data.sources.webdataset import WebDatasetShards
from dmlscale.data.storage.storage import Storage
from tests.data.damage import change_table
from tests.data.hostile import (
    add_file,
    add_special,
    everything_below,
    npy_of_objects,
    npz_of_objects,
    pickled,
)
from tests.data.listed import picture

ALONE = PackOptions(num_processes=1)
EVIL_NAMES = [
    *("../outside.tar", "a/../../outside.tar", "./../outside.tar", "..", "", "/", "x//y", "./train-000000.tar"),
    *("/etc/passwd", "file:///etc/passwd", "local:///etc/passwd", "https://host.invalid/x.tar", "memory://x.tar"),
    *("filecache::file:///etc/passwd", "simplecache::train-000000.tar", "train\n.tar", "train\u0000.tar"),
]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return tmp_path / "payload-was-run"


@pytest.mark.parametrize("name", EVIL_NAMES)
def test_an_index_may_not_name_files_elsewhere(packed: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "dataset"
    shutil.copytree(packed, folder)
    names = list(Index.load(folder).shards.names)
    shutil.copy(folder / names[0], tmp_path / "outside.tar")  # it would be read without complaint
    change_table(folder, "shards.arrow", {"name": [name, *names[1:]]})
    with pytest.raises(DataError, match=r"shards\.arrow at .* names a shard .*: it is not opened"):
        Index.load(folder)


@pytest.mark.parametrize("column", ["offset", "size"])
@pytest.mark.parametrize("number", [-1, 2**40, 2**62, 2**63 - 1])
def test_places_outside_of_a_shard_take_no_memory(packed: Path, tmp_path: Path, column: str, number: int) -> None:
    folder = tmp_path / "dataset"
    shutil.copytree(packed, folder)
    before = Index.load(folder).columns
    numbers = (before.offsets if column == "offset" else before.sizes).tolist()
    change_table(folder, "index.arrow", {column: [number, *numbers[1:]]})
    reader = Reader(Index.load(folder), find_decoder("image"))
    with pytest.raises(LostSampleError, match="lies outside of its shard"):
        reader.read(0)
    assert len(reader.read(1)) == 1


def test_only_an_index_over_shards_of_others_may_and_never_files_of_another_machine() -> None:
    here, far = Storage.open("/data/birds"), Storage.open("https://host.invalid/birds")
    over_others = {"source": "webdataset"}
    for name in ("/data/shards/0.tar", "https://host.invalid/0.tar", "s3://bucket/0.tar"):
        check_shard_names([name], over_others, here)
        with pytest.raises(DataError, match="outside of the dataset's folder"):
            check_shard_names([name], {"source": "folder"}, here)
    check_shard_names(["https://other.invalid/0.tar", "a/b.tar"], over_others, far)
    for name in ("/etc/passwd", "file:///etc/passwd", "local:///etc/passwd"):
        with pytest.raises(DataError, match="is a file of this machine, while the dataset is not on it"):
            check_shard_names([name], over_others, far)
    with pytest.raises(DataError, match="leads out of"):
        check_shard_names(["../0.tar"], over_others, far)


def hostile_shard(path: Path, trace: Path) -> Path:
    """Two good samples among what somebody has planted."""
    with tarfile.open(path, "w") as archive:
        for key in ("good-0", "../../up", "/absolute/name", "a/../../../b", "good-1"):
            add_file(archive, f"{key}.png", picture(key))
            add_file(archive, f"{key}.cls", b"7")
            for ending in ("pyd", "pkl", "pickle", "pth", "mp"):
                add_file(archive, f"{key}.{ending}", pickled(trace))
        for number, kind in enumerate(
            (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
        ):
            add_special(archive, f"special-{number}.png", kind, "/etc/passwd")
            add_file(archive, f"special-{number}.cls", b"7")
        add_file(archive, "pickled-label.png", picture("x"))
        add_file(archive, "pickled-label.cls", pickled(trace))
        add_file(archive, "pickled-picture.png", pickled(trace))
        add_file(archive, "pickled-picture.cls", b"7")
    return path


def test_members_of_a_hostile_shard_are_names_and_bytes(tmp_path: Path, trace: Path) -> None:
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    shard = hostile_shard(inside / "shard.tar", trace)
    before = everything_below(tmp_path)
    pack(WebDatasetShards(str(shard)), inside / "index", ALONE)
    index = Index.load(inside / "index")
    reader = Reader(index, find_decoder("image"))
    read = {index.key(row): bytes(reader.read(row)[0]) for row in range(len(index))}
    for row in range(len(index)):
        reader.decoded(row)
    reader.close()
    # What looks like a path is a key: nothing is opened or written under it.
    good = {"good-0", "good-1", "../../up", "/absolute/name", "a/../../../b"}
    assert read.keys() - {"pickled-label"} == good
    assert all(data == picture("x" if key == "pickled-label" else key) for key, data in read.items())
    with (inside / "index" / "rejects.csv").open(newline="") as file:
        reasons = {row["key"]: row["reason"] for row in csv.DictReader(file)}
    # A link, a device and the like are no files, so those samples have a label and no picture.
    assert {f"special-{number}" for number in range(6)} | {"pickled-picture"} <= reasons.keys()
    assert everything_below(tmp_path, [inside / "index"]) == before
    assert not trace.exists()


@pytest.mark.parametrize("kind", ["npy", "npz"])
def test_arrays_of_objects_in_a_shard_are_left_out(tmp_path: Path, trace: Path, kind: str) -> None:
    good = io.BytesIO()
    np.save(good, np.ones((3, 4), np.float32))
    bad = (npy_of_objects if kind == "npy" else npz_of_objects)(trace)
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for key, ending, content in (("good", "npy", good.getvalue()), ("bad", kind, bad)):
            add_file(archive, f"{key}.{ending}", content)
            add_file(archive, f"{key}.cls", b"1")
    source = WebDatasetShards(str(tmp_path / "shard.tar"), input="array")
    pack(source, tmp_path / "checked", ALONE)
    assert Index.load(tmp_path / "checked").key(0) == "good"
    assert "allow_pickle=False" in (tmp_path / "checked" / "rejects.csv").read_text()
    # Packed without a look at it, it is left out when it is read.
    pack(source, tmp_path / "unchecked", PackOptions(num_processes=1, check=False))
    index = Index.load(tmp_path / "unchecked")
    (row,) = (row for row in range(len(index)) if index.key(row) == "bad")
    with pytest.raises(LostSampleError, match=r"cannot be decoded: .*allow_pickle=False"):
        Reader(index, find_decoder("array")).decoded(row)
    assert not trace.exists()


def test_arrays_of_objects_in_files_are_left_out(tmp_path: Path, trace: Path) -> None:
    for name in ("good", "bad"):
        (tmp_path / "files" / "train" / name).mkdir(parents=True)
    np.save(tmp_path / "files" / "train" / "good" / "1.npy", np.ones(5, np.float32))
    (tmp_path / "files" / "train" / "bad" / "1.npy").write_bytes(npy_of_objects(trace))
    (tmp_path / "files" / "train" / "bad" / "2.npz").write_bytes(npz_of_objects(trace))
    (tmp_path / "files" / "train" / "bad" / "3.npy").write_bytes(pickled(trace))
    pack(Arrays(str(tmp_path / "files")), tmp_path / "packed", ALONE)
    assert len(Index.load(tmp_path / "packed")) == 1
    assert not trace.exists()


@pytest.mark.parametrize("name", ["x", "y", "split"])
@pytest.mark.parametrize("kind", ["objects", "pickle"])
def test_rows_of_objects_are_refused(tmp_path: Path, trace: Path, name: str, kind: str) -> None:
    np.save(tmp_path / "x.npy", np.ones((1, 5), np.float32))
    np.save(tmp_path / "y.npy", np.zeros(1, int))
    (tmp_path / f"{name}.npy").write_bytes(npy_of_objects(trace) if kind == "objects" else pickled(trace))
    with pytest.raises(DataError, match=f"arrays: '{name}' of .* cannot be read: "):
        pack(Arrays(str(tmp_path)), tmp_path / "packed", ALONE)
    assert not trace.exists()


@pytest.mark.parametrize("table", ["index.arrow", "classes.arrow", "shards.arrow"])
def test_arrow_extension_types_are_not_unpickled(packed: Path, tmp_path: Path, trace: Path, table: str) -> None:
    """As pyarrow did until 14.0.0 (CVE-2023-47248)."""
    folder = tmp_path / "dataset"
    shutil.copytree(packed, folder)
    with pa.OSFile(str(folder / table)) as file:
        batch = pa.ipc.open_file(file).get_batch(0)
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickled(trace)}
    fields = [field.with_metadata(metadata) for field in batch.schema]
    write_table(folder / table, pa.RecordBatch.from_arrays(batch.columns, schema=pa.schema(fields)))
    Index.load(folder)
    pq.write_table(pa.Table.from_batches([batch], schema=pa.schema(fields)), tmp_path / "e.parquet")
    with pytest.raises(DataError, match="does not tell which model made it"):
        read_embeddings(tmp_path / "e.parquet")
    assert not trace.exists()


def test_postscript_is_no_picture(tmp_path: Path) -> None:
    """Pillow would start Ghostscript, which runs the program that such a picture is."""
    text = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) print\nshowpage\n%%EOF\n"
    with pytest.raises(ValueError, match="is PostScript"):
        read_picture(text)

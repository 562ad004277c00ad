from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dmlscale.data.errors import DataError
from dmlscale.data.sources import SOURCES
from dmlscale.data.sources.arrays import Arrays
from tests.data.sources import official
from tests.data.sources.round_trip import assert_round_trip, listed

X = np.random.default_rng(0).normal(size=(6, 3, 4)).astype(np.float32)
Y = np.array([0, 1, 2, 0, 1, 2])
SPLIT = np.array(["train", "test"] * 3)


def npy(array: NDArray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


TREE = {
    "train/walk/1.npy": npy(X[0]),
    "train/walk/2.0.npy": npy(X[1]),
    "train/run/fast/1.npy": npy(X[2]),
    "test/jump/1.NPY": npy(X[3]),
    "train/notes.txt": b"no sample",
}


def test_registry_finds_it() -> None:
    assert SOURCES["arrays"] is Arrays


def test_round_trip_of_files_in_folders(tmp_path: Path) -> None:
    official.write_folder(TREE, tmp_path / "data")
    index = assert_round_trip(Arrays(str(tmp_path / "data")), tmp_path)
    assert set(index.class_names) == {"walk", "run/fast", "jump"}


def test_folder_and_archives_list_the_same(tmp_path: Path) -> None:
    plain = listed(Arrays(str(official.write_folder(TREE, tmp_path / "data"))), tmp_path)
    assert set(plain) == {"train/walk/1", "train/walk/2_0", "train/run/fast/1", "test/jump/1"}
    around = {f"around/{name}": data for name, data in TREE.items()}
    for archive in (official.write_zip(TREE, tmp_path / "a.zip"), official.write_tar(around, tmp_path / "a.tgz")):
        assert listed(Arrays(str(archive)), tmp_path / "scratch") == plain


@pytest.mark.parametrize("kind", ["npz", "compressed", "folder"])
def test_round_trip_of_rows(tmp_path: Path, kind: str) -> None:
    arrays = {"x": X, "y": Y, "split": SPLIT}
    if kind == "folder":
        path = tmp_path / "data"
        official.write_folder({f"{name}.npy": npy(array) for name, array in arrays.items()}, path)
    else:
        path = tmp_path / "data.npz"
        (np.savez if kind == "npz" else np.savez_compressed)(path, **arrays)  # type: ignore[arg-type]
    source = Arrays(str(path))
    found = listed(source, tmp_path / "scratch")
    for row, (item, [data]) in enumerate(found.values()):
        assert (item.key, item.class_name, item.split) == (f"{row:08d}", str(Y[row]), SPLIT[row])
        np.testing.assert_array_equal(np.load(io.BytesIO(data)), X[row])
    assert_round_trip(source, tmp_path)


def test_unpacking_is_done_once_and_again_when_cut_off(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    source, scratch = Arrays(str(tmp_path / "data.npz")), tmp_path / "scratch"
    expected = listed(source, scratch)
    files = {path: path.stat().st_mtime_ns for path in scratch.iterdir()}
    assert listed(source, scratch) == expected
    assert {path: path.stat().st_mtime_ns for path in scratch.iterdir()} == files
    for path in files:
        path.rename(f"{path}.partial")
        Path(f"{path}.partial").write_bytes(b"cut off")
    assert listed(source, scratch) == expected


def test_other_names_text_labels_and_a_deal_by_class(tmp_path: Path) -> None:
    names = np.array([b"\xc3\xa9t\xc3\xa9", b"tea"] * 3)
    np.savez(tmp_path / "data.npz", features=X, names=names)
    source = Arrays(str(tmp_path / "data.npz"), data="features", labels="names", train_fraction=1)
    found = listed(source, tmp_path)
    assert [item.class_name for item, _ in found.values()] == ["\u00e9t\u00e9", "tea"] * 3
    assert {item.split for item, _ in found.values()} == {"train"}


def test_a_row_without_label_is_rejected(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X[:2], y=np.array(["", "a"]))
    opened = Arrays(str(tmp_path / "data.npz")).open(tmp_path / "scratch")
    first, second = opened.items()
    assert (first.key, first.defect) == ("00000000", "its row has an empty 'y'")
    assert not second.defect
    assert opened.load(second.ref) == (npy(X[1]),)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X}, r"has no array 'y' \(it has: x\)"),
        ({"y": Y}, r"has no array 'x' \(it has: y\)"),
        ({"x": Y, "y": Y}, r"'x' of .* has the shape \(6,\), must have a row per sample"),
        ({"x": X, "y": Y[:5]}, r"'y' of .* has the shape \(5,\), must be \(6,\)"),
        ({"x": X, "y": Y + 0.5}, "'y' of .* holds float64, must hold whole numbers or texts"),
        ({"x": X, "y": Y, "split": Y}, "'split' of .* holds int64, must hold texts"),
        ({"x": X, "y": np.array([{}] * 6)}, "'y' of .* cannot be read"),
    ],
)
def test_bad_arrays_are_named(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "data.npz", **arrays)
    with pytest.raises(DataError, match=message):
        Arrays(str(tmp_path / "data.npz")).open(tmp_path / "scratch")


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", x=X, y=Y)
    whole = (tmp_path / "data.npz").read_bytes()
    damaged = bytearray(whole)
    damaged[400] ^= 1
    for data, message in [(whole[:-50], "cannot be read as .npz"), (bytes(damaged), "cannot be unpacked into")]:
        (tmp_path / "data.npz").write_bytes(data)
        with pytest.raises(DataError, match=message):
            Arrays(str(tmp_path / "data.npz")).open(tmp_path / "scratch")
    (tmp_path / "empty" / "train").mkdir(parents=True)
    (tmp_path / "bare").mkdir()
    for path, message in [
        (tmp_path / "none", "there is no .*none"),
        (tmp_path / "bare", "has neither x.npy nor a folder 'train'"),
        (tmp_path / "empty", "has no file <split>/<class>/<name>.npy"),
    ]:
        with pytest.raises(DataError, match=message):
            list(Arrays(str(path)).open(tmp_path / "scratch").items())
    with pytest.raises(DataError, match="train_fraction=-1"):
        Arrays("x", train_fraction=-1)

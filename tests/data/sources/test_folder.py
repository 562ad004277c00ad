from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlscale.data.errors import DataError
from dmlscale.data.sources.folder import Folder
from tests.data.sources import official
from tests.data.sources.round_trip import assert_round_trip, listed

SPLIT = official.pictures(
    [
        "train/cat/1.JPG",
        "train/cat/2.jpeg",
        "train/birds/owl/1.png",
        "train/birds/hawk/x y.jpg",
        "test/dog/1.jpg",
        "val/eel/1.jpg",
    ]
)
CLASSES = official.pictures(
    [f"{name}/{n}.jpg" for name in ("ant", "bee", "cat", "dog/big", "dog/small") for n in (1, 2)]
)


def splits(folder: Folder, scratch: Path) -> dict[str, str]:
    return {item.class_name: item.split for item, _ in listed(folder, scratch).values()}


def test_round_trip_of_folders_that_are_splits(tmp_path: Path) -> None:
    official.write_folder(SPLIT, tmp_path / "data")
    index = assert_round_trip(Folder(str(tmp_path / "data")), tmp_path)
    assert index.splits == ("train", "test", "val")


def test_round_trip_of_classes_split_here(tmp_path: Path) -> None:
    official.write_folder(CLASSES, tmp_path / "data")
    assert_round_trip(Folder(str(tmp_path / "data"), train_classes=3), tmp_path)


def test_keys_classes_and_super_classes(tmp_path: Path) -> None:
    found = listed(Folder(str(official.write_folder(SPLIT, tmp_path))), tmp_path)
    told = {key: (item.split, item.class_name, item.super_class, item.extension) for key, (item, _) in found.items()}
    assert told == {
        "train/birds/hawk/x y": ("train", "birds/hawk", "birds", "jpg"),
        "train/birds/owl/1": ("train", "birds/owl", "birds", "png"),
        "train/cat/1": ("train", "cat", "", "jpg"),
        "train/cat/2": ("train", "cat", "", "jpeg"),
        "test/dog/1": ("test", "dog", "", "jpg"),
        "val/eel/1": ("val", "eel", "", "jpg"),
    }


@pytest.mark.parametrize(("tree", "train_classes"), [(SPLIT, None), (CLASSES, 0.5)])
def test_archive_and_folder_list_the_same(tree: official.Tree, train_classes: float | None, tmp_path: Path) -> None:
    expected = listed(Folder(str(official.write_folder(tree, tmp_path / "data")), train_classes), tmp_path)
    assert len(expected) == len(tree)
    around = {f"outer/{name}": data for name, data in tree.items()} | {"README.txt": b"read me"}
    archives = [
        official.write_zip(tree, tmp_path / "x.zip"),
        official.write_tar(tree, tmp_path / "x.tar"),
        official.write_tar(tree, tmp_path / "x.tgz"),
        official.write_zip(around, tmp_path / "around.zip"),
        official.write_tar(around, tmp_path / "around.tar.gz"),
    ]
    for path in archives:
        assert listed(Folder(str(path), train_classes), tmp_path / "scratch") == expected


def test_the_first_classes_by_name_are_train(tmp_path: Path) -> None:
    path = str(official.write_folder(CLASSES, tmp_path))
    names = ["ant", "bee", "cat", "dog/big", "dog/small"]
    for train_classes, count in ((1, 1), (3, 3), (5, 5), (0.6, 3), (0.01, 1), (0.99, 5)):
        expected = {name: "train" if place < count else "test" for place, name in enumerate(names)}
        assert splits(Folder(path, train_classes), tmp_path / "s") == expected


def test_a_seed_draws_the_classes(tmp_path: Path) -> None:
    path = str(official.write_folder(CLASSES, tmp_path))
    drawn = [splits(Folder(path, 2, seed), tmp_path / "s") for seed in range(30)]
    assert drawn[0] == splits(Folder(path, 2, 0), tmp_path / "s")
    assert all(Counter(each.values()) == {"train": 2, "test": 3} for each in drawn)
    assert len({tuple(sorted(each.items())) for each in drawn}) > 5


@given(st.sets(st.text("abc", min_size=1, max_size=4), min_size=2, max_size=9), st.integers(0, 2**31))
def test_a_class_less_changes_no_other_by_more_than_its_place(names: set[str], seed: int) -> None:
    folder, classes = Folder("x", 0.5, seed), sorted(names)
    before, after = folder._split_classes(classes), folder._split_classes(classes[1:])
    assert before is not None
    assert after is not None
    assert sum(before[name] != after[name] for name in classes[1:]) <= 1


def test_what_is_no_picture_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    extra = {
        "cat/notes.txt": b"",
        "loose.jpg": b"",
        "cat/.hidden.jpg": b"",
        ".cache/a/1.jpg": b"",
        "cat/Thumbs.db": b"",
    }
    official.write_folder({**CLASSES, **extra}, tmp_path / "data")
    (tmp_path / "data" / "empty").mkdir()
    with caplog.at_level(logging.WARNING):
        found = listed(Folder(str(tmp_path / "data"), 2), tmp_path)
    assert len(found) == len(CLASSES)
    assert [record.getMessage() for record in caplog.records if record.name.startswith("dmlscale")] == [
        f"{tmp_path / 'data'}: passed over 3 files that are no pictures by name or lie in no class, e.g. cat/Thumbs.db"
    ]


def test_bad_files_are_rejected(tmp_path: Path) -> None:
    root = official.write_folder({**CLASSES, "bee/bad.jpg": b"no picture", "bee/empty.jpg": b""}, tmp_path / "data")
    (root / "ant" / "gone.jpg").symlink_to(tmp_path / "nothing")
    (root / "linked").symlink_to(official.write_folder(official.pictures(["1.jpg"]), tmp_path / "elsewhere"))
    index = assert_round_trip(Folder(str(root), 2), tmp_path, unreadable={"ant/gone", "bee/bad", "bee/empty"})
    assert "linked/1" in {index.key(row) for row in range(len(index))}


def test_a_name_that_is_no_utf8_is_rejected(tmp_path: Path) -> None:
    root = official.write_folder(CLASSES, tmp_path / "data")
    (root / "ant" / b"\xe9t\xe9.jpg".decode("utf-8", "surrogateescape")).write_bytes(official.picture(1))
    assert_round_trip(Folder(str(root), 2), tmp_path, unreadable={"ant/?t?"})


def test_names_that_become_one_key_stay_apart(tmp_path: Path) -> None:
    official.write_folder(official.pictures(["a/1.jpg", "a/1.png", "a/x.y.jpg", "a/x_y.jpg"]), tmp_path / "data")
    found = listed(Folder(str(tmp_path / "data"), 1), tmp_path)
    assert {key: item.ref for key, (item, _) in found.items()} == {
        "a/1": "a/1.jpg",
        "a/1-2": "a/1.png",
        "a/x_y": "a/x.y.jpg",
        "a/x_y-2": "a/x_y.jpg",
    }


@pytest.mark.parametrize(
    ("train_classes", "seed", "message"),
    [
        (0, None, "train_classes=0, must be"),
        (-2, None, "train_classes=-2, must be"),
        (1.5, None, "train_classes=1.5, must be"),
        (float("inf"), None, "train_classes=inf, must be"),
        (float("nan"), None, "train_classes=nan, must be"),
        (None, 3, "seed=3 draws classes: set train_classes too"),
        (9, None, "train_classes=9, but .* has 5 classes"),
        (None, None, "has no folder 'train'.*or set train_classes"),
    ],
)
def test_options_that_cannot_be(train_classes: float | None, seed: int | None, message: str, tmp_path: Path) -> None:
    official.write_folder(CLASSES, tmp_path)
    with pytest.raises(DataError, match=message):
        list(Folder(str(tmp_path), train_classes, seed).open(tmp_path / "s").items())


def test_folders_without_pictures(tmp_path: Path) -> None:
    official.write_folder({"train/a/b.txt": b"", "train/loose.jpg": b""}, tmp_path)
    with pytest.raises(DataError, match="has no pictures in folders that are classes"):
        list(Folder(str(tmp_path)).open(tmp_path).items())
    with pytest.raises(DataError, match=r"there is no .*absent"):
        Folder(str(tmp_path / "absent")).open(tmp_path)

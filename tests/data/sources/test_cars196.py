from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.sources.cars196 import Cars196
from tests.data.sources import official
from tests.data.sources.round_trip import assert_round_trip, listed

TREE, DEVKIT = official.cars196(), official.cars196_devkit()
CLASSES = {
    ("train", "Ram C/V Cargo Van Minivan 2012"): 2,
    ("train", "Citroën Décapotable 2010"): 1,
    ("train", "Maker Model 98 2012"): 2,
    ("test", "Maker Model 99 2012"): 2,
    ("test", "Maker Model 196 2012"): 1,
}


def test_round_trip(tmp_path: Path) -> None:
    official.write_tar(official.below(TREE, "car_ims"), tmp_path / "car_ims.tgz")
    official.write_folder(official.below(TREE, "cars_annos.mat"), tmp_path)
    assert_round_trip(Cars196(str(tmp_path)), tmp_path)


def test_round_trip_of_the_devkit(tmp_path: Path) -> None:
    official.write_folder(DEVKIT, tmp_path)
    assert_round_trip(Cars196(str(tmp_path)), tmp_path)


def test_first_98_classes_are_train(tmp_path: Path) -> None:
    for name, tree in (("all", TREE), ("devkit", DEVKIT)):
        official.write_folder(tree, tmp_path / name)
        items = [item for item, _ in listed(Cars196(str(tmp_path / name)), tmp_path).values()]
        assert Counter((item.split, item.class_name) for item in items) == CLASSES
    assert items[0].key == "cars_train/00001"


def test_archive_and_folder_list_the_same(tmp_path: Path) -> None:
    expected = listed(Cars196(str(official.write_folder(TREE, tmp_path / "folder"))), tmp_path)
    assert len(expected) == 8
    archives = official.write_folder(official.below(TREE, "cars_annos.mat"), tmp_path / "archives")
    archive = official.write_tar(official.below(TREE, "car_ims"), archives / "car_ims.tgz")
    assert listed(Cars196(str(archives)), tmp_path / "scratch") == expected
    assert listed(Cars196(str(archive)), tmp_path / "scratch") == expected
    everything = official.write_zip(
        {f"cars196/{name}": data for name, data in TREE.items()}, tmp_path / "z" / "cars.zip"
    )
    assert listed(Cars196(str(everything)), tmp_path / "scratch") != {}


def test_devkit_archives_list_the_same(tmp_path: Path) -> None:
    expected = listed(Cars196(str(official.write_folder(DEVKIT, tmp_path / "folder"))), tmp_path)
    archives = tmp_path / "archives"
    for folder, archive in (
        ("cars_train", "cars_train.tgz"),
        ("cars_test", "cars_test.tgz"),
        ("devkit", "car_devkit.tgz"),
    ):
        official.write_tar(official.below(DEVKIT, folder), archives / archive)
    official.write_folder(official.below(DEVKIT, "cars_test_annos_withlabels.mat"), archives)
    assert listed(Cars196(str(archives)), tmp_path / "scratch") == expected


def test_a_copy_with_a_folder_too_many_and_both_annotations(tmp_path: Path) -> None:
    expected = listed(Cars196(str(official.write_folder(DEVKIT, tmp_path / "folder"))), tmp_path)
    nested = {f"{name.split('/')[0]}/{name}" if name.endswith("jpg") else name: data for name, data in DEVKIT.items()}
    official.write_folder({**nested, "cars_annos.mat": TREE["cars_annos.mat"]}, tmp_path / "copy")
    assert listed(Cars196(str(tmp_path / "copy")), tmp_path) == expected


def test_a_missing_picture_is_rejected(tmp_path: Path) -> None:
    official.write_folder(official.without(TREE, "car_ims/000001.jpg"), tmp_path)
    assert_round_trip(Cars196(str(tmp_path)), tmp_path, unreadable={"car_ims/000001"})


def test_one_annotation_is_no_list(tmp_path: Path) -> None:
    row = [("car_ims/000001.jpg", 1)]
    annotations = official.structs(["relative_im_path", "class"], row)
    content = official.matlab(annotations=annotations, class_names=official.cells(["A"]))
    official.write_folder({"car_ims/000001.jpg": official.picture(1), "cars_annos.mat": content}, tmp_path)
    assert [item.class_name for item, _ in listed(Cars196(str(tmp_path)), tmp_path).values()] == ["A"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"cars196: cannot read .*cars_annos\.mat"),
        (b"<html>Not Found</html>" * 20, r"cannot read .*cars_annos\.mat"),
        (TREE["cars_annos.mat"][:-100], r"cannot read .*cars_annos\.mat"),
        (official.matlab(annotations=1), r"cars_annos\.mat has no 'class_names'"),
        (official.matlab(class_names=official.cells(["A"])), r"cars_annos\.mat has no 'annotations'"),
        (
            official.matlab(
                class_names=official.cells(["A"]),
                annotations=official.structs(["relative_im_path"], [("car_ims/1.jpg",)]),
            ),
            "'annotations' without class",
        ),
        (
            official.matlab(
                class_names=official.cells(["A"]),
                annotations=official.structs(["relative_im_path", "class"], [("car_ims/1.jpg", 2)]),
            ),
            r"gives car_ims/1\.jpg the class 2, must be 1 to 1",
        ),
    ],
)
def test_damaged_annotations(content: bytes, message: str, tmp_path: Path) -> None:
    official.write_folder({**TREE, "cars_annos.mat": content}, tmp_path)
    with pytest.raises(DataError, match=message):
        list(Cars196(str(tmp_path)).open(tmp_path).items())


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    official.write_folder(official.below(TREE, "car_ims"), tmp_path / "a")
    with pytest.raises(DataError, match=r"found no cars_annos\.mat in "):
        Cars196(str(tmp_path / "a")).open(tmp_path)
    with pytest.raises(DataError, match=r"found no car_ims/000001\.jpg or car_ims\.tgz or cars_train\.tgz"):
        Cars196(str(official.write_folder(official.below(TREE, "cars_annos.mat"), tmp_path / "b"))).open(tmp_path)
    official.write_folder(official.without(DEVKIT, "cars_test_annos_withlabels.mat"), tmp_path / "c")
    with pytest.raises(DataError, match=r"found no cars_test_annos_withlabels\.mat"):
        Cars196(str(tmp_path / "c")).open(tmp_path)

"""Caltech-UCSD Birds-200-2011: half of the species to train on, the others to retrieve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from dmlscale.data.errors import DataError
from dmlscale.data.inputs import InputKind
from dmlscale.data.originals.downloads import Download, ListedFiles, OfficialCount
from dmlscale.data.originals.extensions import extension_of
from dmlscale.data.originals.files import Files
from dmlscale.data.originals.names import SampleKeys
from dmlscale.data.sources import SOURCES, TEST_SPLIT, TRAIN_SPLIT, Item, OpenSource

_DOWNLOAD = Download("cub200", "https://data.caltech.edu/records/65de6-vp158")
_LAST_TRAIN_CLASS, _LAST_CLASS = 100, 200


@SOURCES.register("cub200")
@dataclass(frozen=True)
class Cub200:
    """Birds (Wah et al. 2011); classes 1 to 100 are "train", 101 to 200 "test", as in Song et al. 2016.

    Keys are the paths in images.txt, class names those of classes.txt ("001.Black_footed_Albatross").

    Args:
        path: CUB_200_2011.tgz, the folder it lies in, or the folder it was unpacked into.
    """

    path: str

    input: ClassVar[InputKind] = "image"
    official_counts: ClassVar[Mapping[str, OfficialCount]] = {
        TRAIN_SPLIT: OfficialCount(5_864, 100),
        TEST_SPLIT: OfficialCount(5_924, 100),
    }

    def open(self, scratch: Path) -> OpenSource:
        """See ``Source``."""
        files = _DOWNLOAD.find(self.path, scratch, "images.txt", archives=["CUB_200_2011.tgz"])
        return ListedFiles(files, partial(_items, files))


def _items(files: Files) -> Iterator[Item]:
    class_names = {row[0]: row[1] for row in _rows(files, "classes.txt", "class_id", "class_name")}
    class_of_image = {row[0]: row[1] for row in _rows(files, "image_class_labels.txt", "image_id", "class_id")}
    keys = SampleKeys()
    for image, path in _rows(files, "images.txt", "image_id", "path"):
        class_id = class_of_image.get(image, "")
        if class_id not in class_names or not 1 <= int(class_id) <= _LAST_CLASS:
            where = "image_class_labels.txt" if not class_id else "classes.txt"
            raise DataError(
                f"{files.location(where)} has no class 1..{_LAST_CLASS} for image {image} ({path}): restore it from "
                f"{_DOWNLOAD.address}"
            )
        split = TRAIN_SPLIT if int(class_id) <= _LAST_TRAIN_CLASS else TEST_SPLIT
        yield Item(keys.add(path), class_names[class_id], split, f"images/{path}", extension_of(path))


def _rows(files: Files, name: str, number: str, value: str) -> Iterator[tuple[str, ...]]:
    return _DOWNLOAD.rows(files, name, (number, value), integers=(number,), spaced=value)

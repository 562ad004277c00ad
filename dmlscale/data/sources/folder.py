"""Pictures in folders, one folder per class: whatever is at hand, with a split by folder or by class."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import ClassVar

from dmlscale.data.errors import DataError
from dmlscale.data.inputs import InputKind
from dmlscale.data.originals.archives import open_files
from dmlscale.data.originals.downloads import ListedFiles
from dmlscale.data.originals.extensions import EXTENSIONS, extension_of
from dmlscale.data.originals.files import Files, Subfolder
from dmlscale.data.originals.names import SampleKeys, readable
from dmlscale.data.sources import SOURCES, TEST_SPLIT, TRAIN_SPLIT, Item, OpenSource

_logger = logging.getLogger(__name__)


@SOURCES.register("folder")
@dataclass(frozen=True)
class Folder:
    """Pictures whose folders are their classes.

    A class is the path of a folder that holds pictures, a super-class that of the folder around it. Without
    ``train_classes`` the folder "train" and those beside it are splits: train/<class>/1.jpg, test/<class>/2.jpg. With
    it the outermost folders are classes, and split here: <class>/1.jpg. Keys are the paths. Links are followed. Hidden
    files are passed over; so are, with a warning, those that are no pictures by name or lie in no class.

    Args:
        path: a folder, or a zip or tar file; one folder around everything in an archive is no class.
        train_classes: how many classes are "train", or which part of them if it is below 1; the others are "test".
        seed: draws the classes of "train", as a function of their names; null takes the first by name.
    """

    path: str
    train_classes: int | float | None = None
    seed: int | None = None

    input: ClassVar[InputKind] = "image"

    def __post_init__(self) -> None:
        number = self.train_classes
        if number is not None and not (0 < number < 1 or (number >= 1 and float(number).is_integer())):
            raise DataError(f"folder: train_classes={number}, must be a number of classes or a part of them below 1")
        if self.seed is not None and number is None:
            raise DataError(f"folder: seed={self.seed} draws classes: set train_classes too, or seed to null")

    def open(self, scratch: Path) -> OpenSource:
        """See ``Source``."""
        place = Path(self.path).expanduser()
        if not place.exists():
            raise DataError(f"folder: there is no {place}: set path to a folder of pictures, or to an archive of it")
        files = open_files(place, scratch)
        if self.train_classes is None:
            files = self._at_splits(files)
        elif place.is_file():
            files = _without_outer_folder(files)
        return ListedFiles(files, partial(self._items, files))

    def _items(self, files: Files) -> Iterator[Item]:
        classes = sorted({class_name for _, class_name in self._pictures(files)})
        if not classes:
            raise DataError(f"folder: {self.path} has no pictures in folders that are classes")
        split_of = self._split_classes(classes)
        keys = SampleKeys()
        for name, class_name in self._pictures(files, warn=True):
            split = name.partition("/")[0] if split_of is None else split_of[class_name]
            super_class = class_name.rpartition("/")[0]
            yield Item(keys.add(name), class_name, split, readable(name), extension_of(name), super_class)

    def _at_splits(self, files: Files) -> Files:
        found = files.find(f"{TRAIN_SPLIT}/")
        if found is None:
            raise DataError(
                f"folder: {self.path} has no folder {TRAIN_SPLIT!r}: make it train/<class>/<picture> and "
                f"test/<class>/<picture>, or set train_classes to split its classes here"
            )
        return found

    def _pictures(self, files: Files, *, warn: bool = False) -> Iterator[tuple[str, str]]:
        """Names and classes of the pictures."""
        num_split_folders = 1 if self.train_classes is None else 0
        num_passed, example = 0, ""
        for name in files.names():
            class_name = "/".join(readable(name).split("/")[num_split_folders:-1])
            if class_name and extension_of(name) in EXTENSIONS["image"]:
                yield name, class_name
            else:
                num_passed, example = num_passed + 1, example or name
        if num_passed and warn:
            _logger.warning(
                "%s: passed over %d files that are no pictures by name or lie in no class, e.g. %s",
                self.path,
                num_passed,
                example,
            )

    def _split_classes(self, classes: list[str]) -> Mapping[str, str] | None:
        """Split of each class; None if the folders say it."""
        if self.train_classes is None:
            return None
        num_train = self.train_classes if self.train_classes >= 1 else max(1, round(self.train_classes * len(classes)))
        if num_train > len(classes):
            raise DataError(f"folder: train_classes={self.train_classes}, but {self.path} has {len(classes)} classes")
        order = classes if self.seed is None else sorted(classes, key=self._draw)
        return {name: TRAIN_SPLIT if place < num_train else TEST_SPLIT for place, name in enumerate(order)}

    def _draw(self, class_name: str) -> bytes:
        return blake2b(f"{self.seed}/{class_name}".encode()).digest()


def _without_outer_folder(files: Files) -> Files:
    """An archive as seen from inside the folder that holds all pictures, if that is no class itself."""
    pictures = [name for name in files.names() if extension_of(name) in EXTENSIONS["image"]]
    outer = {name.partition("/")[0] for name in pictures}
    if len(outer) == 1 and all(name.count("/") > 1 for name in pictures):
        return Subfolder(files, f"{outer.pop()}/")
    return files

"""Stanford Cars: half of the models to train on, the others to retrieve."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.errors import DataError
from dmlscale.data.inputs import InputKind
from dmlscale.data.originals.downloads import Download, OfficialCount
from dmlscale.data.originals.extensions import extension_of
from dmlscale.data.originals.files import Files
from dmlscale.data.originals.names import SampleKeys
from dmlscale.data.sources import SOURCES, TEST_SPLIT, TRAIN_SPLIT, Item, OpenSource

_DOWNLOAD = Download("cars196", "a copy of http://ai.stanford.edu/~jkrause/cars/car_dataset.html")
_LAST_TRAIN_CLASS = 98
_TOGETHER, _FOLDERS = "car_ims/", ("cars_train/", "cars_test/")
_DEVKIT = ["car_devkit.tgz"]


class _Part(NamedTuple):
    """A folder of pictures, and the file that lists them."""

    folder: str
    images: Files
    annotations: Files
    annotations_file: str
    path_field: str  # of the listed file; relative to the folder
    names: Files  # that have the file with the names of the classes
    names_file: str


@SOURCES.register("cars196")
@dataclass(frozen=True)
class Cars196:
    """Cars (Krause et al. 2013); classes 1 to 98 are "train", 99 to 196 "test", as in Song et al. 2016.

    Keys are the paths of the pictures, class names the official ones ("AM General Hummer SUV 2000").

    Args:
        path: the folder with car_ims.tgz and cars_annos.mat; or with cars_train.tgz, cars_test.tgz, car_devkit.tgz and
            cars_test_annos_withlabels.mat. The archives may be unpacked.
    """

    path: str

    input: ClassVar[InputKind] = "image"
    official_counts: ClassVar[Mapping[str, OfficialCount]] = {
        TRAIN_SPLIT: OfficialCount(8_054, 98),
        TEST_SPLIT: OfficialCount(8_131, 98),
    }

    def open(self, scratch: Path) -> OpenSource:
        """See ``Source``."""
        train, test = _FOLDERS
        # Copies often have a folder too many, so the first picture is looked for before its folder.
        markers = (f"{_TOGETHER}000001.jpg", _TOGETHER, f"{train}00001.jpg", train)
        images = _DOWNLOAD.find(self.path, scratch, *markers, archives=["car_ims.tgz", "cars_train.tgz"])
        if images.find(_TOGETHER, depth=0) is not None:
            file = "cars_annos.mat"
            annotations = _DOWNLOAD.find(self.path, scratch, file, archives=[])
            return OpenCars196(
                [_Part(_TOGETHER, images, annotations, file, "relative_im_path", names=annotations, names_file=file)]
            )
        test_images = _DOWNLOAD.find(self.path, scratch, f"{test}00001.jpg", test, archives=["cars_test.tgz"])
        devkit = _DOWNLOAD.find(self.path, scratch, "cars_meta.mat", archives=_DEVKIT)
        test_file = "cars_test_annos_withlabels.mat"
        labelled = _DOWNLOAD.find(self.path, scratch, test_file, archives=_DEVKIT)
        return OpenCars196(
            [
                _Part(train, images, devkit, "cars_train_annos.mat", "fname", devkit, "cars_meta.mat"),
                _Part(test, test_images, labelled, test_file, "fname", devkit, "cars_meta.mat"),
            ]
        )


@dataclass(frozen=True)
class OpenCars196:
    """Cars whose files were found."""

    parts: Sequence[_Part]

    def items(self) -> Iterator[Item]:
        """See ``OpenSource``."""
        keys = SampleKeys()
        for part in self.parts:
            class_names = [str(name) for name in _matlab(part.names, part.names_file, "class_names")]
            listed = _matlab(part.annotations, part.annotations_file, "annotations", part.path_field, "class")
            for row in listed:
                path = part.folder + str(row[part.path_field]).removeprefix(part.folder)
                number = int(row["class"])
                if not 1 <= number <= len(class_names):
                    raise DataError(
                        f"{part.annotations.location(part.annotations_file)} gives {path} the class {number}, must be "
                        f"1 to {len(class_names)}: restore it from {_DOWNLOAD.address}"
                    )
                split = TRAIN_SPLIT if number <= _LAST_TRAIN_CLASS else TEST_SPLIT
                yield Item(keys.add(path), class_names[number - 1], split, path, extension_of(path))

    def load(self, ref: str) -> Sequence[bytes]:
        """See ``OpenSource``."""
        part = next(part for part in self.parts if ref.startswith(part.folder))
        return (part.images.read(ref),)


def _matlab(files: Files, name: str, variable: str, *fields: str) -> NDArray[Any]:
    """(n,) entries of a variable in a .mat file.

    Raises:
        DataError: the file cannot be read, or has no such variable with these fields.
    """
    from scipy.io import loadmat  # slow to import, and all sources are imported to find one

    try:
        variables = loadmat(io.BytesIO(files.read(name)), squeeze_me=True)
    except Exception as error:  # damaged files raise what they like
        raise DataError(
            f"cars196: cannot read {files.location(name)} ({error}): restore it from {_DOWNLOAD.address}"
        ) from None
    values = np.atleast_1d(variables.get(variable, ()))
    missing = [field for field in fields if field not in (values.dtype.names or ())]
    if not len(values) or missing:
        what = f"{variable!r} without {', '.join(missing)}" if len(values) else f"no {variable!r}"
        raise DataError(f"{files.location(name)} has {what}: restore it from {_DOWNLOAD.address}")
    return values

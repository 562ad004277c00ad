"""iNaturalist 2018, in the zero-shot split of Smooth-AP: some species to train on, others to retrieve."""

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

_IMAGES = Download("inaturalist2018", "https://github.com/visipedia/inat_comp/tree/master/2018")
_SPLITS = Download("inaturalist2018", "https://github.com/Andrew-Brown1/Smooth_AP (section Data)")
_LISTS = {TRAIN_SPLIT: "Inaturalist_train_set1.txt", TEST_SPLIT: "Inaturalist_test_set1.txt"}


@SOURCES.register("inaturalist2018")
@dataclass(frozen=True)
class INaturalist2018:
    """Animals, plants and fungi (Van Horn et al. 2018), split by the two lists of Brown et al. 2020.

    Keys are the listed paths, class names the two folders around a picture ("Plantae/7477"), super-classes the first of
    them.

    Args:
        path: the folder with train_val2018.tar.gz (120 GB, unpacked for the time of packing) or the folder it was
            unpacked into, and the two lists or the Inat_dataset_splits.zip that has them.
    """

    path: str

    input: ClassVar[InputKind] = "image"
    official_counts: ClassVar[Mapping[str, OfficialCount]] = {
        TRAIN_SPLIT: OfficialCount(325_846, 5_690),
        TEST_SPLIT: OfficialCount(136_093, 2_452),
    }

    def open(self, scratch: Path) -> OpenSource:
        """See ``Source``."""
        lists = _SPLITS.find(self.path, scratch, _LISTS[TRAIN_SPLIT], archives=["Inat_dataset_splits.zip"])
        archives = ["train_val2018.tar.gz", "train_val2018.tar"]
        images = _IMAGES.find(self.path, scratch, "train_val2018/", archives=archives)
        return ListedFiles(images, partial(_items, lists))


def _items(lists: Files) -> Iterator[Item]:
    keys = SampleKeys()
    for split, name in _LISTS.items():
        for (path,) in _SPLITS.rows(lists, name, ("path",), spaced="path"):
            *_, group, species, _ = ("", "", *path.split("/"))
            if not group:
                raise DataError(
                    f"{lists.location(name)} lists {path!r}, must be train_val2018/<group>/<species>/<picture>: "
                    f"restore it from {_SPLITS.address}"
                )
            yield Item(keys.add(path), f"{group}/{species}", split, path, extension_of(path), group)

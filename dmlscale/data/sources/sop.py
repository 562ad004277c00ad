"""Stanford Online Products: 22,634 products, half to train on, the others to retrieve."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from dmlscale.data.inputs import InputKind
from dmlscale.data.originals.downloads import Download, ListedFiles, OfficialCount
from dmlscale.data.originals.extensions import extension_of
from dmlscale.data.originals.files import Files
from dmlscale.data.originals.names import SampleKeys
from dmlscale.data.sources import SOURCES, TEST_SPLIT, TRAIN_SPLIT, Item, OpenSource

_DOWNLOAD = Download("sop", "https://cvgl.stanford.edu/projects/lifted_struct/")
_LISTS = {TRAIN_SPLIT: "Ebay_train.txt", TEST_SPLIT: "Ebay_test.txt"}


@SOURCES.register("sop")
@dataclass(frozen=True)
class StanfordOnlineProducts:
    """Products on sale (Song et al. 2016); the two lists of the authors are "train" and "test".

    Keys are the listed paths, class names the kind and number of the product ("bicycle/00001"), super-classes the
    twelve kinds.

    Args:
        path: Stanford_Online_Products.zip, the folder it lies in, or the folder it was unpacked into.
    """

    path: str

    input: ClassVar[InputKind] = "image"
    official_counts: ClassVar[Mapping[str, OfficialCount]] = {
        TRAIN_SPLIT: OfficialCount(59_551, 11_318),
        TEST_SPLIT: OfficialCount(60_502, 11_316),
    }

    def open(self, scratch: Path) -> OpenSource:
        """See ``Source``."""
        files = _DOWNLOAD.find(
            self.path, scratch, _LISTS[TRAIN_SPLIT], archives=["Stanford_Online_Products.zip", "online_products.zip"]
        )
        return ListedFiles(files, partial(_items, files))


def _items(files: Files) -> Iterator[Item]:
    columns = ("image_id", "class_id", "super_class_id", "path")
    keys = SampleKeys()
    for split, name in _LISTS.items():
        for _, product, _, path in _DOWNLOAD.rows(files, name, columns, integers=columns[:3], spaced="path"):
            kind = path.partition("/")[0].removesuffix("_final")
            yield Item(keys.add(path), f"{kind}/{int(product):05d}", split, path, extension_of(path), kind)

"""DeepFashion In-Shop Clothes Retrieval: a split to train on, queries and the gallery they are looked up in."""

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
from dmlscale.data.sources import SOURCES, TRAIN_SPLIT, Item, OpenSource

_DOWNLOAD = Download("inshop", "https://mmlab.ie.cuhk.edu.hk/projects/DeepFashion/InShopRetrieval.html")
_LIST = "list_eval_partition.txt"
QUERY_SPLIT, GALLERY_SPLIT = "query", "gallery"


@SOURCES.register("inshop")
@dataclass(frozen=True)
class InShop:
    """Clothes in the pictures of a shop (Liu et al. 2016); the splits are "train", "query" and "gallery".

    Queries and gallery show the same classes. Keys are the listed paths, class names the item ids, super-classes the
    two folders around them ("WOMEN/Dresses").

    Args:
        path: the folder with list_eval_partition.txt and img.zip, in the folders Eval and Img or not; img.zip may be
            unpacked.
    """

    path: str

    input: ClassVar[InputKind] = "image"
    official_counts: ClassVar[Mapping[str, OfficialCount]] = {
        TRAIN_SPLIT: OfficialCount(25_882, 3_997),
        QUERY_SPLIT: OfficialCount(14_218, 3_985),
        GALLERY_SPLIT: OfficialCount(12_612, 3_985),
    }

    def open(self, scratch: Path) -> OpenSource:
        """See ``Source``."""
        partition = _DOWNLOAD.find(self.path, scratch, _LIST, archives=[])
        images = _DOWNLOAD.find(self.path, scratch, "img/WOMEN/", "img/MEN/", archives=["img.zip"])
        return ListedFiles(images, partial(_items, partition))


def _items(partition: Files) -> Iterator[Item]:
    columns = ("image_name", "item_id", "evaluation_status")
    keys = SampleKeys()
    super_classes: dict[str, str] = {}
    for path, product, split in _DOWNLOAD.rows(partition, _LIST, columns, spaced="image_name"):
        if split not in InShop.official_counts:
            raise DataError(
                f"{partition.location(_LIST)} puts {path} into {split!r}, must be one of "
                f"{', '.join(InShop.official_counts)}: restore it from {_DOWNLOAD.address}"
            )
        # A class has one super-class, that of its first picture.
        super_class = super_classes.setdefault(product, "/".join(path.split("/")[-4:-2]))
        yield Item(keys.add(path), product, split, path, extension_of(path), super_class)

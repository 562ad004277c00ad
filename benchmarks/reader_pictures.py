"""Two sets of pictures in shards: small ones, where reading can cost more than decoding, and large as photographs."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
from PIL import Image

from dmlscale.data.index import Index
from dmlscale.data.inputs import InputKind
from dmlscale.data.packing.pack import ensure_packed
from dmlscale.data.packing.writing import PackOptions
from dmlscale.data.planning.sampling import Sampling
from dmlscale.data.sources import TRAIN_SPLIT, Item

SAMPLES_PER_CLASS = 8
NUM_SHARDS = 16  # at most, so that two processes get nearly the same work; the packer fills shards by 32 samples


@dataclass(frozen=True)
class Pictures:
    """Pictures that are a function of their number, packed like any dataset.

    Args:
        count: of pictures; eight of a class.
        width: of each, pixels.
        height: of each, pixels.
        channels: 1 for grey, 3 for RGB.
        noise: standard deviation in grey levels: decides how many bytes a picture takes.
        extension: "png" or "jpg".
    """

    count: int
    width: int
    height: int
    channels: int
    noise: float
    extension: str

    input: ClassVar[InputKind] = "image"

    def open(self, scratch: Path) -> Pictures:
        """See ``Source``; there is nothing to unpack."""
        return self

    def items(self) -> Iterator[Item]:
        """See ``OpenSource``."""
        for number in range(self.count):
            class_name = f"{number // SAMPLES_PER_CLASS:06d}"
            yield Item(f"{number:08d}", class_name, TRAIN_SPLIT, str(number), self.extension)

    def load(self, ref: str) -> tuple[bytes]:
        """See ``OpenSource``; smooth shapes with noise over them."""
        rng = np.random.default_rng(int(ref))
        coarse = rng.integers(0, 256, (6, 8, self.channels), dtype=np.uint8).squeeze()
        shapes = np.asarray(Image.fromarray(coarse).resize((self.width, self.height), Image.Resampling.BICUBIC))
        pixels = (shapes + rng.normal(0, self.noise, shapes.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, {"jpg": "JPEG", "png": "PNG"}[self.extension])
        return (file.getvalue(),)


@dataclass(frozen=True)
class PackedPictures:
    """A set in shards, and how it is put into batches."""

    name: str
    index: Index
    shards: list[str]  # paths
    extension: str
    channels: int
    sampling: Sampling
    least_ratio: float  # of our speed and plain webdataset's


def pack_small(count: int, folder: Path) -> PackedPictures:
    """Grey PNGs of 32 x 32 pixels, nearly 1 kB each; batches of 32 classes x 4."""
    pictures = Pictures(count, 32, 32, 1, 8.0, "png")
    return _pack("small", pictures, folder, 2_560, Sampling(32, 4, num_streams=8), least_ratio=2.0)


def pack_large(count: int, folder: Path) -> PackedPictures:
    """RGB JPEGs of 500 x 375 pixels, about 60 kB each; batches of 8 classes x 4."""
    pictures = Pictures(count, 500, 375, 3, 25.0, "jpg")
    return _pack("large", pictures, folder, 60_000, Sampling(8, 4, num_streams=8), least_ratio=0.95)


def _pack(
    name: str, pictures: Pictures, folder: Path, bytes_per_sample: int, sampling: Sampling, *, least_ratio: float
) -> PackedPictures:
    shard_size = max(1, pictures.count * bytes_per_sample // NUM_SHARDS)
    ensure_packed(pictures, folder / name, PackOptions(shard_size_bytes=shard_size))
    index = Index.load(folder / name).split(TRAIN_SPLIT)
    shards = [str(folder / name / shard) for shard in index.shards.names]
    return PackedPictures(name, index, shards, pictures.extension, pictures.channels, sampling, least_ratio)

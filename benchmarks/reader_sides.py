"""The ways to read the same shards. Each gives one epoch as (pictures, labels): of one sample, or of a batch.

All decode with ``data.decoding.decode``, and those that batch do it with ``torch.stack``: the cheapest thing to do, the
same on both sides.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch
import webdataset
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.reader_pictures import PackedPictures
from dmlscale.data.decoding.decode import decode, find_decoder
from dmlscale.data.inputs import InputKind
from dmlscale.data.loader import Recipe, TrainStream
from dmlscale.data.planning.planner import EpochPlanner
from dmlscale.data.reader import Reader

Read = Iterable[tuple[Tensor, int | Tensor]]

SHUFFLED = 1_000  # samples that webdataset draws from, as its documentation has it


@dataclass(frozen=True)
class Stack:
    """The cheapest recipe: pixels as they are decoded."""

    inputs: ClassVar[tuple[InputKind, ...]] = ("image",)

    def __call__(self, images: Sequence[Tensor], ids: NDArray[np.int64], *, seed: int, epoch: int) -> Tensor:
        """See ``Transform``."""
        return torch.stack(list(images))


def tar_loop(pictures: PackedPictures) -> Read:
    """Shards front to back, without any library."""
    for path in pictures.shards:
        with tarfile.open(path, "r|") as tar:
            for member in tar:
                file = tar.extractfile(member)
                assert file is not None
                if not member.name.endswith(".cls"):
                    image = decode(file.read(), pictures.channels, is_checked=True)
                else:  # stands behind its picture
                    yield image, int(file.read())


def webdataset_in_order(pictures: PackedPictures) -> Read:
    """Shards front to back, sample by sample."""
    dataset = webdataset.WebDataset(pictures.shards, shardshuffle=False)
    read: Read = dataset.map(_decode_of(pictures))
    return read


def webdataset_batches(pictures: PackedPictures, num_workers: int) -> Read:
    """Shuffled as its documentation has it, decoded, in batches; may be iterated again.

    Args:
        pictures: to read.
        num_workers: processes of a DataLoader, kept from epoch to epoch; 0 reads in this one, without it.
    """
    dataset = (
        webdataset.WebDataset(pictures.shards, shardshuffle=len(pictures.shards), seed=0)
        .shuffle(SHUFFLED)
        .map(_decode_of(pictures))
        .batched(pictures.sampling.batch_size, collation_fn=_collate)
    )
    if num_workers == 0:
        read: Read = dataset
        return read
    return DataLoader(dataset, batch_size=None, num_workers=num_workers, persistent_workers=True)


def _decode_of(pictures: PackedPictures) -> Callable[[dict[str, Any]], tuple[Tensor, int]]:
    return partial(_decoded, extension=pictures.extension, channels=pictures.channels)  # a DataLoader may pickle it


def _decoded(sample: dict[str, Any], extension: str, channels: int) -> tuple[Tensor, int]:
    return decode(sample[extension], channels, is_checked=True), int(sample["cls"])


def _collate(samples: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)


def reader_in_plan_order(pictures: PackedPictures) -> Read:
    """Our reader alone, sample by sample, in the order of random batches of classes."""
    plan = _planner(pictures).plan(0)
    reader = Reader(pictures.index, find_decoder("image", channels=pictures.channels, is_checked=True))
    labels = pictures.index.columns.labels
    for step in range(plan.num_steps):
        for row_id in plan.batch(step).tolist():
            yield reader.decoded(row_id), int(labels[row_id])
    reader.close()


def our_batches(pictures: PackedPictures, num_workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of classes x samples as training gets them, nothing kept from one epoch to the next.

    Args:
        pictures: to read.
        num_workers: threads.
    """
    planner = _planner(pictures)
    recipe = Recipe(find_decoder("image", channels=pictures.channels, is_checked=True), Stack())
    with TrainStream(pictures.index, planner, recipe, seed=0, num_workers=num_workers, cache_bytes=0) as stream:
        for _, batch in islice(stream, planner.num_steps(0)):
            yield batch.images, batch.labels


def _planner(pictures: PackedPictures) -> EpochPlanner:
    return EpochPlanner(pictures.index.class_rows, pictures.sampling, seed=0)

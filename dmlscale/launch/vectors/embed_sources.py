"""Samples to embed: of a packed dataset, or files of a folder."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import numpy as np
from fsspec.utils import get_protocol
from torch import Tensor

from dmlscale.data.errors import DataError
from dmlscale.data.hold_out import VALIDATION_SPLIT, hold_out_classes
from dmlscale.data.index import Index
from dmlscale.data.layout import is_complete
from dmlscale.data.loader import Recipe, eval_batches
from dmlscale.data.originals.extensions import EXTENSIONS, extension_of
from dmlscale.data.originals.files import FolderFiles
from dmlscale.data.originals.names import readable
from dmlscale.data.prefetch import Prefetcher
from dmlscale.data.storage.file_systems import same_service
from dmlscale.data.transforms import apply
from dmlscale.launch import build
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.models.embedding_model import EmbeddingModel
from dmlscale.launch.vectors.printable import printable

_logger = logging.getLogger(__name__)

_MOST_THREADS = 8  # each holds a batch
_DEPTH = 2  # batches ready beyond those that the threads work on
_WARNINGS = 5  # about single files


class NamedBatch(NamedTuple):
    """Samples as the network takes them, and what they are called."""

    ids: list[str]
    labels: list[str | None]
    splits: list[str | None]
    images: Tensor  # (b, ...) as the transform gives it


class PackedSamples:
    """The samples of a packed dataset, in the order of its rows; ids are their keys.

    Args:
        model: that will see them.
        source: folder or URL of the dataset.
        split: to take; None takes all.
        batch_size: of the batches.

    Raises:
        DataError: there is no such dataset or split, or its samples are not what the model takes.
    """

    def __init__(self, model: EmbeddingModel, source: str, split: str | None, batch_size: int) -> None:
        self._model, self._batch_size = model, batch_size
        index = open_dataset(model, source, split)
        found, wanted = index.description["input"], model.config.data.input
        if found != wanted:
            raise DataError(f"{source} holds samples of the input {found!r}, {model.name} takes {wanted!r}")
        self._index = index if split is None else index.split(split)
        self.total = len(self._index)
        self.remarks: list[str] = []

    def batches(self) -> Generator[NamedBatch]:
        """All samples that can be read; the others are warned of."""
        index, columns = self._index, self._index.columns
        class_names = index.classes.column("name")
        made = eval_batches(
            index,
            Recipe(build.build_decoder(self._model.config, index), self._model.transform),
            batch_size=self._batch_size,
            num_workers=_num_threads(),
            max_skipped=len(index),
        )
        with closing(made), _advised():
            for batch in made:
                rows = batch.ids.numpy()
                yield NamedBatch(
                    columns.keys.take(rows).to_pylist(),
                    class_names.take(batch.labels.numpy()).to_pylist(),
                    [index.splits[code] for code in columns.splits[rows]],
                    batch.images,
                )


class FileSamples:
    """Files of a folder at any depth, or one file; ids are their paths in the folder. They have no class and no split.

    Hidden files are passed over; so are, and counted, those that are no samples by name.

    Args:
        model: that will see them.
        source: the folder or the file.
        batch_size: of the batches.

    Raises:
        DataError: the folder cannot be listed or has no samples.
        LaunchError: the model takes samples of several files.
    """

    def __init__(self, model: EmbeddingModel, source: str, batch_size: int) -> None:
        self._model, self._batch_size = model, batch_size
        self._kind = model.config.data.input
        if self._kind == "views":
            raise LaunchError(
                f"{model.name} takes objects of several views, and {source} does not tell which files belong together: "
                "pack them with `dmlscale pack views` and give the dataset"
            )
        place = Path(source)
        self._is_file = place.is_file()
        self._files = FolderFiles(place.parent if self._is_file else place)
        self._only = place.name if self._is_file else ""
        self._num_lost, self._lock = 0, Lock()
        self.total = sum(1 for _ in self._names())
        if not self.total:
            endings = ", ".join(sorted(EXTENSIONS[self._kind]))
            raise DataError(f"{source} is neither a packed dataset nor a folder of files that end in {endings}")
        self.remarks = self._passed_over()

    def batches(self) -> Generator[NamedBatch]:
        """All samples that can be read; the others are warned of."""
        num_threads = _num_threads()
        pool = ThreadPoolExecutor(num_threads, thread_name_prefix="dmlscale-data")
        names = self._names()
        chunks = iter(lambda: tuple(islice(names, self._batch_size)), ())
        with closing(Prefetcher(self._load, chunks, pool=pool, depth=num_threads + _DEPTH)) as made:
            yield from (batch for batch in made if batch is not None)

    def _names(self) -> Iterator[str]:
        """Of the files that are samples; the one that was given is taken whatever its name."""
        if self._is_file:
            return iter((self._only,))
        return (name for name in self._files.names() if extension_of(name) in EXTENSIONS[self._kind])

    def _load(self, names: tuple[str, ...]) -> NamedBatch | None:
        ids, samples = [], []
        for name in names:
            try:
                samples.append(self._model.decoder([self._files.read(name)]))
            except (OSError, ValueError) as error:
                self._lose(name, error.strerror if isinstance(error, OSError) and error.strerror else str(error))
                continue
            ids.append(readable(name))
        if not ids:
            return None
        try:
            images = apply(self._model.transform, samples, np.arange(len(ids)), seed=0, epoch=0)
        except DataError as error:
            raise DataError(f"{printable(ids[0])} to {printable(ids[-1])}: {_with_advice(error)}") from None
        nothing: list[str | None] = [None] * len(ids)
        return NamedBatch(ids, nothing, nothing, images)

    def _lose(self, name: str, why: str) -> None:
        with self._lock:
            self._num_lost += 1
            count = self._num_lost
        if count <= _WARNINGS or count & (count - 1) == 0:  # then at every power of two
            _logger.warning("skipped %d file(s) so far: %s: %s", count, printable(self._files.location(name)), why)

    def _passed_over(self) -> list[str]:
        if self._is_file:
            return []
        others = (name for name in self._files.names() if extension_of(name) not in EXTENSIONS[self._kind])
        example = next(others, None)
        if example is None:
            return []
        number = 1 + sum(1 for _ in others)
        return [f"passed over {number:,} files that are no samples by name, e.g. {printable(readable(example))}"]


def open_samples(model: EmbeddingModel, source: str, split: str | None, batch_size: int) -> PackedSamples | FileSamples:
    """What there is to embed.

    Raises:
        DataError: there is nothing that the model can take.
        LaunchError: there is no such place, or a split is asked for where there are none.
    """
    if is_packed(source):
        return PackedSamples(model, source, split, batch_size)
    if not Path(source).exists():
        raise LaunchError(f"there is no {source}: give a packed dataset, a folder of files, or a file")
    if split is not None:
        raise LaunchError(f"--split {split}: {source} is no packed dataset, so it has no splits; leave --split out")
    return FileSamples(model, source, batch_size)


def is_packed(source: str) -> bool:
    """Whether a source is a packed dataset; only such ones are opened by URL."""
    return "://" in source or is_complete(Path(source))


def open_dataset(model: EmbeddingModel, source: str, split: str | None = None) -> Index:
    """A packed dataset, with the cache and, for the same kind of place, the options that the model was trained with.

    Args:
        model: whose config says all that.
        source: folder or URL of the dataset.
        split: to be taken of it. Where that is "validation" and the dataset has no such split of its own, the classes
            are set apart that were in the training.

    Raises:
        DataError: there is none, or it is damaged.
    """
    data = model.config.data
    options = data.storage_options if same_service(get_protocol(source), get_protocol(data.path)) else {}
    here = data.model_copy(update={"path": source, "storage_options": options, "validation_classes": 0.0})
    index = build.open_index(model.config.model_copy(update={"data": here}))
    if split != VALIDATION_SPLIT or split in index.splits or not data.validation_classes:
        return index
    return hold_out_classes(index, data.validation_classes, train_split=data.train_split)


@contextmanager
def _advised() -> Iterator[None]:
    try:
        yield
    except DataError as error:
        raise DataError(_with_advice(error)) from None


def _with_advice(error: DataError) -> str:
    """What can be done here about samples that do not fit together."""
    is_of_sizes = "different sizes" in str(error)  # there is one kind of error for all that is wrong with data
    return f"{error}; or embed them one by one with --batch-size 1" if is_of_sizes else str(error)


def _num_threads() -> int:
    return min(_MOST_THREADS, len(os.sched_getaffinity(0)))

"""Samples of a packed dataset as a picture: what ``inspect --pictures`` writes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from dmlscale.data.decoding.decode import find_decoder
from dmlscale.data.index import Index
from dmlscale.data.reader import LostSampleError, Reader
from dmlscale.evaluation.contact_sheet import ClassLine, contact_sheet
from dmlscale.evaluation.thumbnails import thumbnail

_COLUMNS = 8
_SEED = 0  # the same classes and samples each time, for comparing two versions of a dataset


def draw_pictures(index: Index, splits: Sequence[str], num_classes: int) -> bytes:
    """A contact sheet of classes and samples chosen at random.

    Args:
        index: of the whole dataset; says what its samples are.
        splits: to draw.
        num_classes: to draw of each split.

    Returns:
        A PNG file.
    """
    lines = [line for split in splits for line in _lines(index, split, num_classes)]
    reader = Reader(index, find_decoder(index.description["input"]))

    def load_image(row_id: int) -> NDArray[np.uint8] | None:
        try:
            return thumbnail(reader.decoded(row_id))
        except LostSampleError:
            return None

    try:
        figure = contact_sheet(lines, load_image, title=str(index.storage))
    finally:
        reader.close()
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _lines(index: Index, split: str, num_classes: int) -> Iterator[ClassLine]:
    class_rows, rng = index.split(split).class_rows, np.random.default_rng(_SEED)
    labels = np.flatnonzero(class_rows.counts)
    for label in rng.permutation(labels)[:num_classes].tolist():
        rows = class_rows.rows[class_rows.starts[label] : class_rows.starts[label + 1]]
        chosen = np.sort(rng.choice(rows, min(_COLUMNS, len(rows)), replace=False))
        note = f"{split}, {len(rows):,} sample{'s' if len(rows) > 1 else ''}"
        yield ClassLine(index.class_names[label], note, chosen.tolist())

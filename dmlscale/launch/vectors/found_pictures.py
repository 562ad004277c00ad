"""Pictures of embedded samples, read again from where they were embedded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dmlscale.data.embeddings_file import Provenance
from dmlscale.data.errors import DataError
from dmlscale.data.originals.files import FolderFiles
from dmlscale.data.reader import LostSampleError, Reader
from dmlscale.evaluation.thumbnails import thumbnail
from dmlscale.launch.models.embedding_model import EmbeddingModel
from dmlscale.launch.vectors.embed_sources import is_packed, open_dataset

Picture = NDArray[np.uint8]  # (height, width) or (height, width, 3)


def read_pictures(
    model: EmbeddingModel, provenance: Provenance, ids: Sequence[str]
) -> tuple[list[Picture | None], list[str]]:
    """The pictures of some samples, as far as they can be had.

    Args:
        model: that knows how to decode them.
        provenance: says where they were.
        ids: of the samples.

    Returns:
        A picture, or None, for each id; and why some cannot be had.
    """
    source = provenance.source
    if is_packed(source):
        return _of_dataset(model, source, ids)
    place = Path(source)
    if not place.exists():
        return [None] * len(ids), [f"there is no {source} any more (seen from {Path.cwd()})"]
    files = FolderFiles(place.parent if place.is_file() else place)
    pictures: list[Picture | None] = []
    problems = []
    for name in ids:
        try:
            pictures.append(thumbnail(model.decoder([files.read(name)])))
        except (OSError, ValueError) as error:
            pictures.append(None)
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            problems.append(f"{files.location(name)}: {reason}")
    return pictures, problems


def _of_dataset(model: EmbeddingModel, source: str, ids: Sequence[str]) -> tuple[list[Picture | None], list[str]]:
    try:
        index = open_dataset(model, source)
    except DataError as error:
        return [None] * len(ids), [str(error)]
    reader = Reader(index, model.decoder)
    # By row the position among the ids: the keys of a dataset are many, and are not to be put into a table.
    positions = pc.index_in(index.columns.keys, value_set=pa.array(ids, pa.large_string()))
    rows = np.flatnonzero(positions.is_valid())
    row_of = dict(zip(positions.take(pa.array(rows)).to_pylist(), rows.tolist(), strict=True))
    pictures: list[Picture | None] = []
    problems = []
    for position, key in enumerate(ids):
        try:
            if position not in row_of:
                raise DataError(f"{source} has no sample {key!r} any more")
            pictures.append(thumbnail(reader.decoded(row_of[position])))
        except (LostSampleError, DataError) as error:
            pictures.append(None)
            problems.append(str(error))
    reader.close()
    return pictures, problems

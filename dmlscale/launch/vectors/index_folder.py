"""The folder of an index: ``index.faiss``, ``ids.parquet`` and ``index.json``.

Rows of ``ids.parquet`` are id, label, split and ``vector``, the place in ``index.faiss``: equal vectors share one.
"""

from __future__ import annotations

import json
import shutil
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from dmlscale.data.embeddings_file import ROW_NAMES, Embeddings, Provenance, check_names
from dmlscale.data.errors import DataError
from dmlscale.evaluation.closeness import Metric
from dmlscale.evaluation.copies import Copies
from dmlscale.evaluation.vector_index import Kind, Parameters, Recall, VectorIndex
from dmlscale.launch.errors import LaunchError

VECTORS_FILE, NAMES_FILE, DESCRIPTION_FILE = "index.faiss", "ids.parquet", "index.json"
_FORMAT, _FORMAT_VERSION = "dmlscale index", 2
_VECTOR = "vector"  # column of the names


@dataclass(frozen=True, eq=False)
class IndexFolder:
    """What a folder holds."""

    index: VectorIndex
    names: pa.Table  # n rows of `ROW_NAMES`
    provenance: Provenance
    kind: str


def check_target(folder: Path) -> None:
    """Whether a folder can be written.

    Raises:
        LaunchError: something is there already.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise LaunchError(f"{folder} is there already and is no empty folder: name another one")


def write_index_folder(
    folder: Path,
    index: VectorIndex,
    embeddings: Embeddings,
    kind: Kind,
    parameters: Parameters,
    recall: Recall | None,
    build_seconds: float,
) -> float:
    """Writes all files or none: they are written beside the folder, which they then become.

    Returns:
        Bytes that a row takes in the index.

    Raises:
        LaunchError: it cannot be written.
    """
    partial = folder.absolute().parent / f".partial-{folder.name}-{uuid.uuid4().hex[:8]}"
    try:
        partial.mkdir(parents=True)
        index.save(partial / VECTORS_FILE)
        names = embeddings.names.append_column(_VECTOR, pa.array(index.copies.number))
        pq.write_table(names, partial / NAMES_FILE, use_dictionary=["label", "split"])
        bytes_per_vector = (partial / VECTORS_FILE).stat().st_size / index.num_vectors
        description = {
            "format": _FORMAT,
            "format_version": _FORMAT_VERSION,
            "kind": kind,
            "num_vectors": index.num_vectors,
            "num_different": len(index.copies.counts),
            "embedding_dim": index.embedding_dim,
            "parameters": asdict(parameters),
            "recall": None if recall is None else recall._asdict(),
            "bytes_per_vector": bytes_per_vector,
            "build_seconds": build_seconds,
            "embeddings": asdict(embeddings.provenance),
        }
        (partial / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n")
        partial.rename(folder)
    except OSError as error:
        raise LaunchError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return bytes_per_vector


def open_index_folder(folder: Path) -> IndexFolder:
    """An index with the names of its rows. Only from people you trust: see `VectorIndex.load`.

    Raises:
        LaunchError: it is missing or damaged, or its files do not belong together.
    """
    description = _read_description(folder)
    again = "build it again with `dmlscale index`"
    try:
        provenance = Provenance(**description["embeddings"])
        table = pq.read_table(folder / NAMES_FILE, columns=[*ROW_NAMES.names, _VECTOR])
        names = table.select(ROW_NAMES.names).cast(ROW_NAMES)
        check_names(names)
        copies = Copies(table.column(_VECTOR).cast(pa.int64()).to_numpy())
        index = VectorIndex.load(folder / VECTORS_FILE, copies, cast(Metric, provenance.metric))
    except KeyError as error:
        raise LaunchError(f"{folder / DESCRIPTION_FILE} is damaged: {error} is missing; {again}") from None
    except (TypeError, ValueError, DataError, OSError, pa.ArrowException) as error:
        raise LaunchError(f"the index {folder} is damaged ({error}): {again}") from None
    told = (description.get("num_vectors"), description.get("embedding_dim"))
    found = (index.num_vectors, index.embedding_dim)
    if told != found:
        raise LaunchError(
            f"the files of {folder} do not belong together: {NAMES_FILE} has {found[0]} rows, {VECTORS_FILE} vectors "
            f"of {found[1]} dimensions, {DESCRIPTION_FILE} tells {told[0]} of {told[1]}; {again}"
        )
    return IndexFolder(index, names, provenance, str(description.get("kind")))


def _read_description(folder: Path) -> dict[str, Any]:
    file = folder / DESCRIPTION_FILE
    if not file.is_file():
        raise LaunchError(f"{folder} is no index (it has no {DESCRIPTION_FILE}): build one with `dmlscale index`")
    try:
        description = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise LaunchError(f"{file} is damaged: {error}") from None
    if not isinstance(description, dict) or description.get("format") != _FORMAT:
        raise LaunchError(f"{file} does not describe an index: its format is not {_FORMAT!r}")
    if description.get("format_version") != _FORMAT_VERSION:
        raise LaunchError(
            f"{file} has format_version {description.get('format_version')!r}, this dmlscale reads {_FORMAT_VERSION}: "
            "build it again with `dmlscale index`"
        )
    return description

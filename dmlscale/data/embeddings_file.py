"""Embeddings in a Parquet file, with ids, classes and splits: what ``embed`` writes and ``index`` reads.

pandas, polars and duckdb read it too. Columns: ``id`` (text: key of a packed sample, or relative path of a file),
``label`` (name of the class, null where unknown), ``split`` (null where there are none), ``embedding`` (a list of d
float32). The schema's metadata tell under "dmlscale" which model made them, of what.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dmlscale.data.errors import DataError

FORMAT_VERSION = 1
ROWS_PER_GROUP = 8_192  # 16 MB at 512 dimensions
ROW_NAMES = pa.schema([("id", pa.string()), ("label", pa.string()), ("split", pa.string())])
_METADATA_KEY = b"dmlscale"


@dataclass(frozen=True)
class Provenance:
    """How embeddings came about.

    Args:
        model: name of the model, for people.
        model_hash: of its weights.
        model_path: where it was, as it was given.
        metric: that tells which embeddings are near: "cosine" or "euclidean".
        source: of the samples, as it was given: a packed dataset, a folder of files, or a file.
        input: what the samples are: "image", "views", "array" or "audio".
    """

    model: str
    model_hash: str
    model_path: str
    metric: str
    source: str
    input: str

    def __post_init__(self) -> None:
        for field in fields(self):
            if not isinstance(getattr(self, field.name), str):
                raise DataError(f"{field.name}={getattr(self, field.name)!r}, must be a text")
        if self.metric not in ("cosine", "euclidean"):
            raise DataError(f"metric={self.metric!r}, must be 'cosine' or 'euclidean'")


@dataclass(frozen=True, eq=False)
class Embeddings:
    """What a file holds."""

    names: pa.Table  # n rows of `ROW_NAMES`
    vectors: NDArray[np.float32]  # (n, d) finite
    provenance: Provenance


class EmbeddingsWriter:
    """Writes a file row group by row group, in bounded memory; it appears under its name when it is complete.

    Owns the file; leaving a ``with`` block without `publish` deletes what was written.

    Args:
        path: of the file; one that is there is replaced.
        embedding_dim: d.
        provenance: of all rows.

    Raises:
        DataError: the file cannot be written.
    """

    def __init__(self, path: Path, embedding_dim: int, provenance: Provenance) -> None:
        self._path, self._dim = path, embedding_dim
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        self._waiting: list[pa.RecordBatch] = []
        metadata = {_METADATA_KEY: json.dumps({"format_version": FORMAT_VERSION, **asdict(provenance)})}
        embedding = pa.field("embedding", pa.list_(pa.field("element", pa.float32(), nullable=False), embedding_dim))
        self._schema = pa.schema([*ROW_NAMES, embedding], metadata=metadata)
        self.num_rows = 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            # Values of floats hardly repeat: dictionaries of them would only cost time.
            self._writer = pq.ParquetWriter(self._partial, self._schema, use_dictionary=["label", "split"])
        except OSError as error:
            raise DataError(f"cannot write {path}: {error}") from None

    def __enter__(self) -> EmbeddingsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        try:
            self._writer.close()
        finally:
            self._partial.unlink(missing_ok=True)

    def append(
        self,
        ids: Sequence[str],
        labels: Sequence[str | None],
        splits: Sequence[str | None],
        vectors: NDArray[np.float32],
    ) -> None:
        """Add m rows.

        Args:
            ids: (m,) of the samples.
            labels: (m,) names of their classes.
            splits: (m,) names of their splits.
            vectors: (m, d).

        Raises:
            DataError: the vectors are not (m, d) finite numbers, or cannot be written.
        """
        if vectors.shape != (len(ids), self._dim):
            raise DataError(f"{len(ids)} ids with vectors {vectors.shape}, must be ({len(ids)}, {self._dim})")
        broken = _first_broken(vectors)
        if broken is not None:
            raise DataError(
                f"the embedding of {ids[broken]!r} holds NaN or infinity: the training has probably diverged"
            )
        flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
        lists = pa.FixedSizeListArray.from_arrays(flat, type=self._schema.field("embedding").type)
        names = [pa.array(column, pa.string()) for column in (ids, labels, splits)]
        self._waiting.append(pa.record_batch([*names, lists], schema=self._schema))
        self.num_rows += len(ids)
        if sum(batch.num_rows for batch in self._waiting) >= ROWS_PER_GROUP:
            self._flush()

    def publish(self) -> None:
        """Close the file and give it its name.

        Raises:
            DataError: it cannot be written.
        """
        self._flush()
        try:
            self._writer.close()
            with self._partial.open("rb") as file:
                os.fsync(file.fileno())
            self._partial.replace(self._path)
        except OSError as error:
            raise DataError(f"cannot write {self._path}: {error}") from None

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.Table.from_batches(self._waiting, self._schema)
        self._waiting = []
        try:
            self._writer.write_table(table, row_group_size=ROWS_PER_GROUP)
        except OSError as error:
            raise DataError(f"cannot write {self._path}: {error}") from None


def read_embeddings(path: Path) -> Embeddings:
    """All of a file, in memory: 4 d bytes a row and the names.

    Raises:
        DataError: it is missing, damaged, empty, of another format, or holds vectors that are not finite.
    """
    file = _open(path)
    try:
        provenance = _provenance(file.schema_arrow, path)
        dim, num_rows = _embedding_dim(file.schema_arrow, path), file.metadata.num_rows
        if not num_rows:
            raise DataError(f"{path} holds no embeddings")
        vectors = np.empty((num_rows, dim), np.float32)
        names: list[pa.RecordBatch] = []
        start = 0
        for batch in _batches(file):
            column = batch.column("embedding")
            if column.null_count or column.flatten().null_count:
                raise DataError(f"{path}: embeddings after row {start} have holes")
            vectors[start : start + len(batch)] = column.flatten().to_numpy().reshape(len(batch), dim)
            broken = _first_broken(vectors[start : start + len(batch)])
            if broken is not None:
                raise DataError(f"{path}: the embedding of row {start + broken} holds NaN or infinity")
            names.append(batch.select(ROW_NAMES.names))
            start += len(batch)
        all_names = pa.Table.from_batches(names).cast(ROW_NAMES)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is damaged ({error}): embed again") from None
    finally:
        file.close()
    try:
        check_names(all_names)
    except DataError as error:
        raise DataError(f"{path}: {error}; embed again") from None
    return Embeddings(all_names, vectors, provenance)


def check_names(names: pa.Table) -> None:
    """Whether every row has an id, and all names are text that can be shown.

    Args:
        names: rows of `ROW_NAMES`.

    Raises:
        DataError: they are not.
    """
    if names.column("id").null_count:
        row = pc.index(names.column("id").is_null(), True).as_py()
        raise DataError(f"row {row} has no id")
    try:
        names.validate(full=True)  # Parquet does not look into its texts
    except pa.ArrowInvalid as error:
        raise DataError(f"names are no text in UTF-8 ({str(error).splitlines()[0]})") from None


def _batches(file: pq.ParquetFile) -> Iterator[pa.RecordBatch]:
    """Group by group: `ParquetFile.iter_batches` keeps all groups that it has read."""
    for number in range(file.metadata.num_row_groups):
        group = file.read_row_group(number, columns=[*ROW_NAMES.names, "embedding"], use_threads=False)
        yield from group.to_batches(ROWS_PER_GROUP)


def _open(path: Path) -> pq.ParquetFile:
    if not path.is_file():
        raise DataError(f"there is no {path}: make one with `dmlscale embed`")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no Parquet file, or is damaged ({error}): embed again") from None


def _provenance(schema: pa.Schema, path: Path) -> Provenance:
    try:
        values = json.loads((schema.metadata or {})[_METADATA_KEY])
        version = values.pop("format_version")
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError):
        raise DataError(f"{path} does not tell which model made it: it is none of `dmlscale embed`") from None
    if version != FORMAT_VERSION:
        raise DataError(f"{path} has format_version {version!r}, this dmlscale reads {FORMAT_VERSION}: embed again")
    try:
        return Provenance(**values)
    except (TypeError, DataError) as error:
        raise DataError(f"{path} does not tell which model made it ({error}): embed again") from None


def _embedding_dim(schema: pa.Schema, path: Path) -> int:
    """Length of the vectors, where all columns are there and of their types."""
    for field in ROW_NAMES:
        found = schema.field(field.name).type if field.name in schema.names else None
        if found not in (pa.string(), pa.large_string()):
            raise DataError(f"{path}: column {field.name!r} is {found or 'missing'}, must be text")
    kind: Any = schema.field("embedding").type if "embedding" in schema.names else "missing"
    is_list = isinstance(kind, pa.FixedSizeListType) and kind.value_type == pa.float32() and kind.list_size > 0
    if not is_list:
        raise DataError(f"{path}: column 'embedding' is {kind}, must be a fixed_size_list of float")
    return int(kind.list_size)


def _first_broken(vectors: NDArray[np.float32]) -> int | None:
    is_finite = np.isfinite(vectors).all(axis=1)
    return None if is_finite.all() else int(np.argmin(is_finite))

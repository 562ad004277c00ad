"""Indexes for many searches, exact or approximate: the second door to faiss.

n vectors, m different ones among them, d dimensions, q queries, k neighbours.
"""

from __future__ import annotations

import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlscale.evaluation.closeness import FloatArray, IntArray, Metric, closeness_of_pairs
from dmlscale.evaluation.copies import Copies
from dmlscale.evaluation.neighbors import Gallery, prepare, require_faiss

Kind = Literal["flat", "ivf_pq", "hnsw"]

_CHUNK = 65_536  # rows brought to the metric's form at a time
# k-means needs so many points per centroid, or faiss warns; beyond the larger number recall hardly grows.
_FEWEST_PER_CENTROID, _MOST_PER_CENTROID = 39, 64
_CODES = 256  # centroids of a product quantizer of one byte
_MOST_CODE_BYTES = 64


@dataclass(frozen=True)
class Parameters:
    """What an index is made of.

    Args:
        factory: for ``faiss.index_factory``.
        settings: by the names of ``faiss.ParameterSpace``.
        num_training: vectors that it is trained on; 0 where nothing is learned.
    """

    factory: str
    settings: Mapping[str, int]
    num_training: int


def choose_parameters(kind: Kind, num_vectors: int, embedding_dim: int) -> Parameters:
    """The parameters of an index, by the "Guidelines to choose an index" of faiss's wiki.

    * flat: exhaustive, exact, 4 d bytes a vector.
    * hnsw: 32 links a vector (of 4 to 64), lists of 200 candidates while building and 128 while searching: 4 d + 256
      bytes a vector.
    * ivf_pq: 4 sqrt(n) lists, or n / 39 if that is less, of which a search looks into a 16th, at least 8; codes of one
      byte for two dimensions, at most 64 bytes; trained on at most 64 vectors per list.

    Args:
        kind: of the index.
        num_vectors: m, since each is kept once.
        embedding_dim: d.

    Raises:
        ValueError: no such kind, or too few vectors to train ivf_pq.
    """
    if num_vectors < 1 or embedding_dim < 1:
        raise ValueError(f"{num_vectors} vectors of {embedding_dim} dimensions: must be at least one of each")
    if kind == "flat":
        return Parameters("Flat", {}, 0)
    if kind == "hnsw":
        return Parameters("HNSW32,Flat", {"efConstruction": 200, "efSearch": 128}, 0)
    if kind != "ivf_pq":
        raise ValueError(f"unknown kind of index {kind!r} (there are: flat, ivf_pq, hnsw)")
    fewest = _FEWEST_PER_CENTROID * _CODES
    if num_vectors < fewest:
        raise ValueError(
            f"{num_vectors:,} vectors are too few to train ivf_pq, which needs {fewest:,}: use flat, which is "
            "exact, and fast with so few"
        )
    num_lists = min(round(4 * math.sqrt(num_vectors)), num_vectors // _FEWEST_PER_CENTROID)
    num_bytes = min(-(-embedding_dim // 2), _MOST_CODE_BYTES)
    padded = -(-embedding_dim // num_bytes) * num_bytes  # zeros change no product and no distance
    num_training = min(num_vectors, _MOST_PER_CENTROID * max(num_lists, _CODES))
    # "np": without polysemous training, which takes most of the time and serves a search that is not used here.
    factory = f"Pad{padded},IVF{num_lists},PQ{num_bytes}np"
    return Parameters(factory, {"nprobe": max(8, num_lists // 16)}, num_training)


class VectorIndex:
    """Vectors to search; make one with `build` or `load`.

    Copies of a vector are kept once. Among thousands of them all links of a graph would lead from one to the next, and
    no search would come to the other vectors.

    Args:
        index: faiss's, over the m different vectors.
        copies: of them.
        metric: "cosine" gives similarities (higher is closer), "euclidean" distances (lower is closer).
    """

    def __init__(self, index: Any, copies: Copies, metric: Metric) -> None:
        self._index = index
        self.copies = copies
        self.metric: Metric = metric

    @classmethod
    def build(
        cls, vectors: NDArray[Any], copies: Copies, parameters: Parameters, metric: Metric, *, seed: int = 0
    ) -> VectorIndex:
        """Train an index and add all vectors, which keep their row numbers.

        Args:
            vectors: (n, d) finite.
            copies: of vectors, as from `Copies.among`.
            parameters: as from `choose_parameters`.
            metric: of the searches.
            seed: of the choice of training vectors.

        Raises:
            FaissMissingError: neither faiss wheel is installed.
        """
        faiss = require_faiss()
        rows = copies.first_rows
        index = faiss.index_factory(vectors.shape[1], parameters.factory, _faiss_metric(faiss, metric))
        for name, value in parameters.settings.items():
            faiss.ParameterSpace().set_index_parameter(index, name, value)
        if parameters.num_training:
            faiss.downcast_index(faiss.extract_index_ivf(index)).pq.cp.max_points_per_centroid = _MOST_PER_CENTROID
            chosen = np.random.default_rng(seed).choice(rows, parameters.num_training, replace=False)
            index.train(prepare(vectors[np.sort(chosen)], metric))
        for start in range(0, len(rows), _CHUNK):
            index.add(prepare(vectors[rows[start : start + _CHUNK]], metric))
        return cls(index, copies, metric)

    @classmethod
    def load(cls, path: Path, copies: Copies, metric: Metric) -> VectorIndex:
        """An index that `save` wrote, with the copies that it was built with.

        Only from people you trust: faiss takes sizes and offsets from the file without checking them all, so a crafted
        one can do what it likes (github.com/facebookresearch/faiss/issues/5400).

        Raises:
            ValueError: the file is missing or damaged, was made for another metric, or has more or fewer vectors than
                the copies are of.
            FaissMissingError: neither faiss wheel is installed.
        """
        faiss = require_faiss()
        if not path.is_file():
            raise ValueError(f"there is no {path}")
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise ValueError(f"{path} is damaged, or no index of faiss ({_reason(error)})") from None
        if index.metric_type != _faiss_metric(faiss, metric):
            raise ValueError(f"{path} was not made for the metric {metric!r}")
        if index.ntotal != len(copies.counts):
            raise ValueError(f"{path} holds {index.ntotal:,} vectors, {len(copies.counts):,} different ones are named")
        return cls(index, copies, metric)

    @property
    def num_vectors(self) -> int:
        """Number of vectors with their copies, n."""
        return self.copies.num_rows

    @property
    def embedding_dim(self) -> int:
        """Values of a vector, d."""
        return int(self._index.d)

    def search(
        self, queries: NDArray[Any], k: int, *, exclude: NDArray[np.int64] | None = None
    ) -> tuple[FloatArray, IntArray]:
        """The k nearest vectors of each query that the index finds, nearest first; copies by their rows.

        Args:
            queries: (q, d) finite.
            k: at least 1; may be larger than n.
            exclude: (q,) row of the query itself, which is left out.

        Returns:
            (q, k) float32 similarities or distances, by ivf_pq approximate ones (-inf or inf where there is nothing),
            (q, k) int64 rows (-1 where there is nothing).

        Raises:
            ValueError: NaN or infinite values, or shapes that do not fit.
        """
        if queries.ndim != 2 or queries.shape[1] != self.embedding_dim:
            raise ValueError(f"queries {queries.shape} must be (q, {self.embedding_dim})")
        if not np.isfinite(queries).all():
            raise ValueError("queries hold NaN or infinity")
        if k < 1:
            raise ValueError(f"k = {k} neighbours: must be at least 1")
        wanted = k if exclude is None else k + 1
        closest, numbers = self._index.search(prepare(queries, self.metric), wanted)
        values, rows = self.copies.spread(closest, numbers, wanted)
        if exclude is not None:
            # To the end with the query itself, or with the last one where it was not found.
            kept = np.argsort(rows == exclude[:, None], axis=1, kind="stable")[:, :k]
            values, rows = np.take_along_axis(values, kept, axis=1), np.take_along_axis(rows, kept, axis=1)
        is_cosine = self.metric == "cosine"
        if not is_cosine:
            values = np.sqrt(np.maximum(values, 0))  # faiss gives squares
        values[rows < 0] = -np.inf if is_cosine else np.inf
        return values, rows

    def save(self, path: Path) -> None:
        """Write the different vectors to a file; the copies are the caller's to keep.

        Raises:
            OSError: the file cannot be written.
        """
        faiss = require_faiss()
        # By a file of Python's: faiss's own only prints that the last bytes have not found room.
        with path.open("wb") as file:
            faiss.write_index(self._index, faiss.PyCallbackIOWriter(file.write))
            file.flush()
            os.fsync(file.fileno())


class Recall(NamedTuple):
    """How well an index finds what exact search finds."""

    at: Mapping[int, float]  # k -> which part of the k nearest are among the k found, mean over queries
    num_queries: int
    ms_per_query: float  # all queries at once
    exact_ms_per_query: float  # the same of exhaustive search


def measure_recall(index: VectorIndex, vectors: NDArray[Any], queries: IntArray, ks: Sequence[int] = (1, 10)) -> Recall:
    """Compare an index with exact search, each query looked up among all other vectors.

    What is found counts if it is as close as the k-th nearest: of equally near ones any will do.

    Args:
        index: over ``vectors``.
        vectors: (n, d), n at least 2.
        queries: (q,) rows of the vectors to look up, q at least 1.
        ks: numbers of neighbours; where there are fewer, all of them count.

    Raises:
        ValueError: there is nothing to compare.
    """
    if len(vectors) < 2 or not len(queries):
        raise ValueError(f"recall of {len(queries)} queries in {len(vectors)} vectors: needs one query and two vectors")
    most = min(max(ks), len(vectors) - 1)
    gallery = Gallery(vectors, index.metric)
    index.search(vectors[queries[:1]], most)  # the first search makes tables and starts threads
    start = time.perf_counter()
    _, found = index.search(vectors[queries], most, exclude=queries)
    between = time.perf_counter()
    _, exact = gallery.nearest(vectors[queries], most, exclude=queries)
    end = time.perf_counter()
    looked_up = gallery.rows[queries]
    found_closeness, exact_closeness = (
        closeness_of_pairs(looked_up, gallery.rows, rows, index.metric) for rows in (found, exact)
    )
    at = {}
    for k in ks:
        count = min(k, most)
        at[k] = float((found_closeness[:, :count] >= exact_closeness[:, count - 1 : count]).mean())
    ms = 1000 / len(queries)
    return Recall(at, len(queries), (between - start) * ms, (end - between) * ms)


def _faiss_metric(faiss: Any, metric: Metric) -> int:
    return int(faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2)


def _reason(error: Exception) -> str:
    """What faiss says, without the place in its sources."""
    return re.sub(r"^Error in .*? at \S+:\d+: ", "", str(error).strip())

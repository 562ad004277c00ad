"""The command ``index``."""

from __future__ import annotations

import time
from pathlib import Path
from typing import cast

import numpy as np

from dmlscale.data.embeddings_file import read_embeddings
from dmlscale.evaluation.closeness import Metric
from dmlscale.evaluation.copies import Copies
from dmlscale.evaluation.vector_index import Kind, Recall, VectorIndex, choose_parameters, measure_recall
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.vectors.index_folder import check_target, write_index_folder

_SEED = 0  # the same queries each time, for comparing two indexes of the same embeddings


def build_index(embeddings: str, out: str, *, kind: str = "flat", num_queries: int = 1000) -> int:
    """Builds an index of embeddings and measures how well it finds what exact search finds.

    Takes about three times the memory of the embeddings, 4 bytes a value, and some 200 bytes a vector.

    Args:
        embeddings: Parquet file of ``embed``.
        out: folder to write; it must not be there, or be empty.
        kind: flat, ivf_pq or hnsw; see `choose_parameters`.
        num_queries: at most so many vectors, chosen at random, are looked up among all others; 0 measures nothing. Of
            equal vectors one is looked up, or the figure would be that of a heap of copies.

    Returns:
        0.

    Raises:
        LaunchError: the folder is not empty or cannot be written, or there are too few vectors for this kind.
        DataError: there are no such embeddings.
        FaissMissingError: neither faiss wheel is installed.
    """
    if num_queries < 0:
        raise LaunchError(f"--queries {num_queries}, must not be negative")
    target = Path(out)
    check_target(target)
    given = read_embeddings(Path(embeddings))
    num_vectors, dim = given.vectors.shape
    start = time.perf_counter()
    copies = Copies.among(given.vectors)
    num_different = len(copies.counts)
    try:
        parameters = choose_parameters(cast(Kind, kind), num_different, dim)
    except ValueError as error:
        raise LaunchError(f"--kind {kind}: {error}") from None
    index = VectorIndex.build(given.vectors, copies, parameters, cast(Metric, given.provenance.metric), seed=_SEED)
    seconds = time.perf_counter() - start
    recall = None
    if num_queries and num_vectors > 1:
        chosen = np.random.default_rng(_SEED).choice(copies.first_rows, min(num_queries, num_different), replace=False)
        recall = measure_recall(index, given.vectors, chosen)
    size = write_index_folder(target, index, given, cast(Kind, kind), parameters, recall, seconds)
    made = ", ".join([parameters.factory, *(f"{name} {value}" for name, value in parameters.settings.items())])
    equal = f" ({num_different:,} different)" if num_different < num_vectors else ""
    print(f"{out}: {num_vectors:,} vectors{equal} of {dim} dimensions by {given.provenance.model}, {index.metric}")
    print(f"{kind} ({made}): {size:,.0f} bytes a vector, built in {seconds:,.1f} s")
    print(_shown(recall))
    return 0


def _shown(recall: Recall | None) -> str:
    if recall is None:
        return "recall is not measured"
    shares = ", ".join(f"recall@{k} {share:.4f}" for k, share in recall.at.items())
    return (
        f"{shares} against exact search, of {recall.num_queries:,} vectors among all others; "
        f"{recall.ms_per_query:.3g} ms a query, exact search {recall.exact_ms_per_query:.3g} ms (all queries at once)"
    )

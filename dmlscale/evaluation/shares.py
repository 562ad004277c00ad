"""What a rank knows of samples that are spread over ranks: all labels, but only its own embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.neighbors import FloatArray, IntArray, Metric, first_unusable, what_is_unusable
from dmlscale.evaluation.ranks import Gather, alone


@dataclass(frozen=True)
class Share:
    """This rank's samples among the n of all ranks, each of which counts once.

    Rows are numbered by ascending id, so they are the same for any number of ranks.

    Args:
        ids: (n,) of all ranks, ascending.
        labels: (n,) of all ranks.
        embeddings: (m, d) of this rank's samples.
        rows: (m,) which samples these are.
    """

    ids: IntArray
    labels: IntArray
    embeddings: FloatArray
    rows: IntArray

    @property
    def own_labels(self) -> IntArray:
        """(m,) labels of this rank's samples."""
        return self.labels[self.rows]

    @property
    def dim(self) -> int:
        """Dimensions of the embeddings; 0 where no rank has any."""
        return int(self.embeddings.shape[1])


def share_of(local: Embedded, gather: Gather = alone, *, rank: int = 0) -> Share:
    """This rank's share. A sample that several ranks, or one rank twice, embedded belongs to the first of them.

    Args:
        local: what this rank embedded, uneven or empty.
        gather: concatenates over ranks.
        rank: this rank.

    Returns:
        The share; a rank without samples learns d as well.

    Raises:
        ValueError: on every rank alike: shapes that do not fit, or embeddings of different lengths.

    Communication: gather of 2 n int64, and of 12 from each rank; no embeddings.
    """
    sizes, dim = _sizes_and_dim(gather(_shapes(local)).cpu().tolist())
    everyone = gather(local.ids.long()).cpu().numpy()
    labels = gather(local.labels.long()).cpu().numpy()
    ids, first = np.unique(everyone, return_index=True)
    start = sum(sizes[:rank])
    rows = np.flatnonzero((first >= start) & (first < start + sizes[rank]))
    embeddings: NDArray[np.float32] = (
        local.embeddings.detach().float().cpu().reshape(len(local.ids), dim).contiguous().numpy()
    )
    if len(rows) == len(embeddings):  # the usual case: nothing twice, so no copy, but rows in the order of positions
        rows = rows[np.argsort(first[rows])]
    else:
        embeddings = embeddings[first[rows] - start]
    return Share(ids, labels[first], embeddings, rows)


def check_shares(
    queries: Share, searched: Share | None = None, *, metric: Metric = "cosine", gather: Gather = alone
) -> None:
    """Raises what is wrong on every rank alike; on one rank alone, the others would wait for it.

    Args:
        queries: this rank's share.
        searched: of the gallery, where there is one.
        metric: by which they will be compared.
        gather: concatenates over ranks.

    Raises:
        ValueError: no samples, NaN or infinity, Euclidean lengths above `neighbors.LONGEST`, or other dimensions on
            one side than on the other.

    Communication: gather of 1 int64.
    """
    if not len(queries.ids):
        raise ValueError("there are no samples to evaluate")
    if searched is not None and not len(searched.ids):
        raise ValueError("there are no samples in the gallery")
    sides = [queries] if searched is None else [queries, searched]
    unusable = sum(first_unusable(side.embeddings, metric)[0] for side in sides)
    if gather(torch.tensor([unusable])).any():
        raise ValueError(f"embeddings {what_is_unusable(metric)}: the training has diverged; try a lower learning rate")
    if searched is not None and searched.dim != queries.dim:
        raise ValueError(
            f"queries have {queries.dim} dimensions and the gallery has {searched.dim}: embed both with one model"
        )


def require_seed(seed: int) -> None:
    """Raises ValueError where random numbers cannot start from it."""
    if seed < 0:
        raise ValueError(f"seed = {seed}: must be at least 0")


def _shapes(local: Embedded) -> torch.Tensor:
    """(1, 3, 4) of embeddings, labels and ids: number of axes, and the first three sizes, 0 where there is none."""
    return torch.tensor([[[values.dim(), *(*values.shape, 0, 0, 0)[:3]] for values in local]])


def _sizes_and_dim(shapes: list[list[list[int]]]) -> tuple[list[int], int]:
    """How many samples each rank has, and d, from the `_shapes` of all ranks."""
    for rank, ((num_axes, *sizes), labels, ids) in enumerate(shapes):
        count, dim = sizes[:2]
        if num_axes != 2 or not labels == ids == [1, count, 0, 0] or (count and not dim):
            told = [tuple(sizes[:num_axes]) for num_axes, *sizes in shapes[rank]]
            raise ValueError(
                f"rank {rank}: embeddings {told[0]}, labels {told[1]} and ids {told[2]} must be (n, d), (n,) and (n,) "
                "with d at least 1"
            )
    dims = sorted({embeddings[2] for embeddings, _, _ in shapes if embeddings[1]})
    if len(dims) > 1:
        raise ValueError(f"ranks hold embeddings of {dims} dimensions: embed all samples with one model")
    return [embeddings[1] for embeddings, _, _ in shapes], dims[0] if dims else 0

"""What a rank knows of samples that are spread over ranks: all labels, but only its own embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.neighbors import FloatArray, IntArray, first_not_finite
from dmlscale.evaluation.ranks import AllSum, Gather, alone


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
        """Dimensions of the embeddings; 0 on a rank that had nothing to embed."""
        return int(self.embeddings.shape[1])


def share_of(local: Embedded, gather: Gather = alone, *, rank: int = 0) -> Share:
    """This rank's share. A sample that several ranks, or one rank twice, embedded belongs to the first of them.

    Args:
        local: what this rank embedded, uneven or empty.
        gather: concatenates over ranks.
        rank: this rank.

    Communication: gather of 2 n + 1 int64; no embeddings.
    """
    sizes = gather(torch.tensor([len(local.ids)])).numpy()
    everyone = gather(local.ids.long()).cpu().numpy()
    labels = gather(local.labels.long()).cpu().numpy()
    ids, first = np.unique(everyone, return_index=True)
    start = int(sizes[:rank].sum())
    rows = np.flatnonzero((first >= start) & (first < start + int(sizes[rank])))
    embeddings: NDArray[np.float32] = local.embeddings.float().cpu().contiguous().numpy()
    if len(rows) == len(embeddings):  # the usual case: nothing twice, so no copy, but rows in the order of positions
        rows = rows[np.argsort(first[rows])]
    else:
        embeddings = embeddings[first[rows] - start]
    return Share(ids, labels[first], embeddings, rows)


def check_shares(queries: Share, searched: Share | None, gather: Gather, all_sum: AllSum) -> None:
    """Raises what is wrong on every rank alike; on one rank alone, the others would wait for it.

    Raises:
        ValueError: no samples, NaN or infinity, or other dimensions on one side than on the other.
    """
    if not len(queries.ids):
        raise ValueError("there are no samples to evaluate")
    if searched is not None and not len(searched.ids):
        raise ValueError("there are no samples in the gallery")
    sides = [queries] if searched is None else [queries, searched]
    broken = sum(first_not_finite(side.embeddings)[0] for side in sides)
    if int(all_sum(torch.tensor([broken]))):
        raise ValueError("embeddings hold NaN or infinity: the training has diverged; try a lower learning rate")
    dims = gather(torch.tensor([[side.dim if len(side.rows) else 0 for side in sides]])).amax(dim=0).tolist()
    if len(set(dims)) > 1:
        raise ValueError(f"queries have {dims[0]} dimensions and the gallery has {dims[1]}: embed both with one model")

"""Embeddings on a plane, to be looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from dmlscale.evaluation.neighbors import Metric, normalize

_PERPLEXITY = 30.0  # about how many neighbours a point keeps; scikit-learn's default
_FEWEST = 5  # below it neighbourhoods mean nothing


def project(embeddings: NDArray[Any], *, seed: int = 0, metric: Metric = "cosine") -> NDArray[np.float64]:
    """Places near-by embeddings near each other on a plane: t-SNE, started from the two main axes.

    Distances between far groups, and sizes of groups, mean nothing in such a map. Fewer than five points, and points
    that all coincide, are laid out along their main axes instead.

    Args:
        embeddings: (n, d) finite; n up to about 1,500: 1,000 x 128 take two to three seconds of one core, and the time
            grows a little faster than n.
        seed: of what is drawn at random; the same gives the same map.
        metric: which points are near. "cosine" compares directions.

    Returns:
        (n, 2).

    Raises:
        ValueError: not a matrix, or NaN or infinite values.

    Source: van der Maaten and Hinton 2008, Visualizing Data using t-SNE.
    """
    if embeddings.ndim != 2:
        raise ValueError(f"embeddings {embeddings.shape} must be (n, d)")
    if not np.isfinite(embeddings).all():
        raise ValueError("the embeddings hold NaN or infinity: there is no map of them")
    # Of unit vectors the Euclidean distance orders neighbours as the cosine does, and is the faster of the two.
    rows = normalize(embeddings) if metric == "cosine" else np.asarray(embeddings, np.float32)
    start = _main_axes(rows, seed)
    spread = float(start[:, 0].std()) if len(rows) else 0.0
    if len(rows) < _FEWEST or spread == 0:
        return start
    tsne = TSNE(
        perplexity=min(_PERPLEXITY, (len(rows) - 1) / 3),
        # As scikit-learn's own init="pca" would scale it, but also for one dimension.
        init=(start / spread * 1e-4).astype(np.float32),
        random_state=seed,
    )
    return np.asarray(tsne.fit_transform(rows), np.float64)


def _main_axes(rows: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """(n, d) -> (n, 2): the first two principal components, zeros where there are fewer."""
    places = np.zeros((len(rows), 2))
    num_axes = min(2, *rows.shape)
    if num_axes and len(rows) > 1 and np.ptp(rows, axis=0).any():
        places[:, :num_axes] = PCA(num_axes, random_state=seed).fit_transform(rows)
    return places

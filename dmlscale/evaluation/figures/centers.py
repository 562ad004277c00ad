"""How many of its centers a class makes use of, in losses with several centers per class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter
from numpy.typing import NDArray
from torch import Tensor

from dmlscale.evaluation.figures.style import INK, MODEL, panel
from dmlscale.losses.block import SimilarityBlock
from dmlscale.losses.soft_triple import SoftTriple

HOW_TO_READ = (
    "Classes at the left have merged their centers into one, those at the right keep them all apart: if most lie at "
    "the left end, fewer centers do as well; if most lie at the right, more may help."
)
_CLASSES_AT_ONCE = 8192


class _EachClass:
    """What `SoftTriple.metrics` reads of a block, with one value per class where that sums over the classes."""

    num_columns = 1

    def __init__(self, cosines: Tensor) -> None:
        self._cosines = cosines

    def center_similarities(self, value: Callable[[Tensor], Tensor]) -> Tensor:
        return value(self._cosines)


def effective_centers(centers: NDArray[Any]) -> NDArray[np.float64]:
    """Effective number of centers of each class, as `SoftTriple.metrics` has its mean.

    Args:
        centers: (C, K, d); their lengths do not matter.

    Returns:
        (C,) from 1, where all K centers have the same direction, to K, where all are orthogonal.

    Raises:
        ValueError: not three axes, NaN or infinite values, or a center without a direction.
    """
    if centers.ndim != 3:
        raise ValueError(f"centers {centers.shape} must be (C, K, d)")
    num_classes, per_class, _ = centers.shape
    if per_class == 1:
        return np.ones(num_classes)
    found = np.empty(num_classes)
    for start in range(0, num_classes, _CLASSES_AT_ONCE):
        rows = torch.from_numpy(np.asarray(centers[start : start + _CLASSES_AT_ONCE], np.float64))
        lengths = rows.norm(dim=2, keepdim=True)
        if not bool(((lengths > 0) & lengths.isfinite()).all()):
            raise ValueError("centers must be finite and not zero: the training has probably diverged")
        rows = rows / lengths
        block = cast(SimilarityBlock, _EachClass(rows @ rows.mT))
        values = SoftTriple(centers_per_class=per_class).metrics(block)["effective_centers"]
        found[start : start + len(rows)] = values.numpy()
    return found


def centers_used(effective: NDArray[Any], most: int, *, title: str = "Centers in use per class") -> Figure:
    """Draw how many classes use how many of their centers.

    Args:
        effective: (C,) effective numbers, as from `effective_centers`.
        most: centers that each class has.
        title: heading.

    Raises:
        ValueError: no classes.
    """
    effective = np.asarray(effective, np.float64)
    if not len(effective):
        raise ValueError("centers in use need at least one class")
    mean = float(effective.mean())
    note = (
        f"{len(effective):,} classes with {most} {'centers' if most > 1 else 'center'} each, {mean:.2f} in use on "
        f"average; 1 where all have merged, {most} where all are orthogonal."
    )
    figure, axes = panel(title, note, height=3.8)
    num_bins = min(40, 4 * max(1, most - 1))
    edges = np.linspace(1, most, num_bins + 1) if most > 1 else np.array([0.75, 1.25])
    counts, _ = np.histogram(effective.clip(edges[0], edges[-1]), edges)
    axes.stairs(counts, edges, fill=True, color=MODEL, alpha=0.3)
    axes.stairs(counts, edges, color=MODEL, linewidth=1.6)
    axes.axvline(mean, ymax=0.98, color=INK, linewidth=1.2, linestyle=(0, (4, 2)))
    axes.annotate(
        f"mean {mean:.2f}",
        (mean, 0.94),
        xycoords=("data", "axes fraction"),
        xytext=(4, -4),
        textcoords="offset points",
        ha="left",
        va="bottom",
        size=8.5,
        color=INK,
    )
    pad = 0.03 * (edges[-1] - edges[0])
    axes.set(xlim=(edges[0] - pad, edges[-1] + pad), ylim=(0, 1.18 * counts.max()))
    if most <= 20:
        axes.set_xticks(range(1, most + 1))
    axes.set_xlabel("effective number of centers")
    axes.set_ylabel("classes")
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    return figure

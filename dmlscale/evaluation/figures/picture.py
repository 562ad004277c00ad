"""A sample's picture in a figure, and what is written below it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from dmlscale.evaluation.figures.style import FAINT, INK, families, written

LoadImage = Callable[[int], NDArray[np.uint8] | None]
"""Sample id -> (height, width) or (height, width, 1 or 3) uint8; None where it cannot be had."""


def draw_picture(
    axes: Axes,
    image: NDArray[np.uint8] | None,
    *,
    extent: tuple[float, float, float, float] | None = None,
    zorder: float | None = None,
) -> None:
    """Draw a picture, or say that there is none.

    Args:
        axes: lose their ticks where the picture fills them.
        image: as from `LoadImage`.
        extent: left, right, bottom and top in data coordinates; None fills the axes and keeps the picture's shape.
        zorder: what it lies above.
    """
    if extent is None:
        axes.set_xticks([])
        axes.set_yticks([])
    if image is None:
        if extent is None:
            axes.text(
                0.5, 0.5, "cannot\nbe read", size=8, color=FAINT, ha="center", va="center", transform=axes.transAxes
            )
        return
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    axes.imshow(
        image,
        cmap="gray" if image.ndim == 2 else None,
        vmin=0,
        vmax=255,
        # Small pictures are enlarged without blur: what the network sees is what the reader sees.
        interpolation="nearest" if max(image.shape[:2]) < 100 else "antialiased",
        extent=extent,
        aspect="equal" if extent is None else "auto",
        zorder=zorder,
    )


def caption(axes: Axes, name: str, number: str, colour: str) -> None:
    """Write a class's name below a picture, and between the two a number where there is one."""
    lines = textwrap.wrap(written(name, 32), 16, max_lines=2, placeholder="\N{HORIZONTAL ELLIPSIS}")
    parts = [("\n".join(lines), 7.0, "normal", INK, -16 if number else -4)]
    if number:
        parts.append((number, 8.5, "bold", colour, -4))
    for text, size, weight, ink, points_below in parts:
        axes.annotate(
            text,
            (0.5, 0),
            xycoords="axes fraction",
            xytext=(0, points_below),
            textcoords="offset points",
            ha="center",
            va="top",
            size=size,
            weight=weight,
            color=ink,
            linespacing=1.0,
            family=families(),
            parse_math=False,
        )

"""Contact sheet: samples of some classes, a line for each, to be looked at before training."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dmlscale.evaluation.figures.picture import LoadImage, draw_picture
from dmlscale.evaluation.figures.style import DPI, FAINT, INK

_CELL, _GAP, _LEFT, _TOP, _EDGE = 0.96, 0.08, 2.3, 0.62, 0.16  # inches
_WIDEST = 6  # views stand side by side, so a picture may be many times as wide as it is high


class ClassLine(NamedTuple):
    """What to show of a class."""

    name: str
    note: str  # below the name
    ids: Sequence[int]  # of samples


def contact_sheet(lines: Sequence[ClassLine], load_image: LoadImage, *, title: str) -> Figure:
    """Draw a line of samples for each class, with its name beside them.

    Args:
        lines: classes, from top to bottom.
        load_image: gives the picture of a sample id.
        title: heading.

    Returns:
        A figure of 100 dots per inch.

    Raises:
        ValueError: there are no classes, or none has a sample.
    """
    num_columns = max((len(line.ids) for line in lines), default=0)
    if not num_columns:
        raise ValueError("a contact sheet needs at least one sample")
    images = [[load_image(row) for row in line.ids] for line in lines]
    across = _CELL * _shape(images)
    width = _LEFT + num_columns * (across + _GAP) + _EDGE
    height = _TOP + len(lines) * (_CELL + _GAP) + _EDGE
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    most = int(9 * width)  # letters that have room; the end of a path tells more than its beginning
    title = title if len(title) <= most else f"\N{HORIZONTAL ELLIPSIS}{title[-most:]}"
    figure.text(
        _EDGE / width, 1 - 0.32 / height, title, size=12, weight="bold", color=INK, va="center", parse_math=False
    )
    for number, (line, shown) in enumerate(zip(lines, images, strict=True)):
        y = height - _TOP - number * (_CELL + _GAP) - _CELL
        _name(figure, line, _EDGE / width, (y + _CELL / 2) / height, 0.17 / height)
        for column, image in enumerate(shown):
            x = _LEFT + column * (across + _GAP)
            _picture(figure.add_axes((x / width, y / height, across / width, _CELL / height)), image)
    return figure


def _shape(images: Sequence[Sequence[NDArray[np.uint8] | None]]) -> float:
    """Width of a cell to its height: that of most pictures."""
    shapes = [image.shape[1] / image.shape[0] for line in images for image in line if image is not None]
    return float(np.clip(np.median(shapes), 1 / 2, _WIDEST)) if shapes else 1.0


def _name(figure: Figure, line: ClassLine, x: float, y: float, line_height: float) -> None:
    name = "\n".join(textwrap.wrap(line.name, 28, max_lines=2, placeholder="\N{HORIZONTAL ELLIPSIS}"))
    figure.text(x, y, name, size=9, color=INK, va="bottom", parse_math=False)
    figure.text(x, y - 0.2 * line_height, line.note, size=8, color=FAINT, va="top", parse_math=False)


def _picture(axes: Axes, image: NDArray[np.uint8] | None) -> None:
    for spine in axes.spines.values():
        spine.set(color=FAINT, linewidth=0.5)
    draw_picture(axes, image)

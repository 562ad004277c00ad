"""Retrieval gallery: queries and what was found for them, right and wrong told apart without colour too."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from dmlscale.evaluation.gallery import Kind, RetrievalRow

LoadImage = Callable[[int], NDArray[np.uint8]]
"""Sample id -> (height, width) or (height, width, 1 or 3) uint8."""

# Green and red that stay apart for colour-blind readers; solid and dashed frames and marks say it once more.
_RIGHT, _WRONG, _INK, _FAINT = "#0b7a3b", "#c8321e", "#1b1f24", "#5b6470"
_KINDS: dict[Kind, str] = {"worst": "Worst", "random": "Random", "best": "Best"}
_CELL, _TEXT, _LEFT, _TOP, _BOTTOM = 1.12, 0.46, 0.95, 0.86, 0.1  # inches


def retrieval_gallery(
    rows: Sequence[RetrievalRow],
    load_image: LoadImage,
    *,
    class_name: Callable[[int], str] = str,
    title: str = "Nearest neighbours of unseen classes",
    closeness: str = "cosine similarity",
) -> Figure:
    """One line per query: the query, then its nearest neighbours, each with class and closeness.

    Args:
        rows: queries with their neighbours, as from `gallery_rows`.
        load_image: gives the picture of a sample id.
        class_name: label -> what to write under a picture.
        title: heading.
        closeness: what the number under each neighbour is.

    Returns:
        A figure of 100 dots per inch, light, legible at its own size.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("a gallery needs at least one query")
    num_columns = 1 + max(len(row.neighbors) for row in rows)
    width = _LEFT + (num_columns + 0.3) * _CELL
    height = _TOP + len(rows) * (_CELL + _TEXT) + _BOTTOM
    figure = Figure(figsize=(width, height), dpi=100, facecolor="white")
    _heading(figure, rows, title, closeness)

    def cell(line: int, column: int) -> Axes:
        x = _LEFT + column * _CELL + (0.3 * _CELL if column else 0)
        y = height - _TOP - line * (_CELL + _TEXT) - _CELL
        side = _CELL - 0.16
        return figure.add_axes((x / width, (y + 0.08) / height, side / width, side / height))

    for line, row in enumerate(rows):
        query = cell(line, 0)
        _picture(query, load_image(row.id), _INK, "solid", 1.0)
        _caption(query, class_name(row.label), "", _INK)
        _side_text(query, row)
        for column, neighbor in enumerate(row.neighbors, start=1):
            right = neighbor.label == row.label
            colour = _RIGHT if right else _WRONG
            axes = cell(line, column)
            _picture(axes, load_image(neighbor.id), colour, "solid" if right else (0, (3, 1.5)), 2.2)
            _mark(axes, right)
            _caption(axes, class_name(neighbor.label), f"{neighbor.closeness:.2f}", colour)
    return figure


def _heading(figure: Figure, rows: Sequence[RetrievalRow], title: str, closeness: str) -> None:
    width, height = figure.get_size_inches()
    found = [neighbor.label == row.label for row in rows for neighbor in row.neighbors]
    note = (
        f"{sum(found)} of {len(found)} shown neighbours are right. Under each: class, {closeness}. "
        "Queries chosen by average precision (AP)."
    )
    margin = 0.16 / width
    figure.text(margin, 1 - 0.27 / height, title, size=13, weight="bold", color=_INK, va="center")
    figure.text(margin, 1 - 0.53 / height, note, size=8.5, color=_FAINT, va="center")
    for column, text in ((0.0, "Query"), (1.3, "Nearest first  \N{RIGHTWARDS ARROW}")):
        x = (_LEFT + column * _CELL) / width
        figure.text(x, 1 - 0.76 / height, text, size=9, weight="bold", color=_INK, va="center")
    for x_inches, right, text in ((width - 1.75, True, "right"), (width - 0.95, False, "wrong")):
        key = figure.add_axes((x_inches / width, 1 - 0.84 / height, 0.2 / width, 0.16 / height))
        _frame(key, _RIGHT if right else _WRONG, "solid" if right else (0, (3, 1.5)), 1.6)
        figure.text((x_inches + 0.27) / width, 1 - 0.76 / height, text, size=9, color=_INK, va="center")


def _side_text(axes: Axes, row: RetrievalRow) -> None:
    axes.text(
        -0.12,
        0.62,
        _KINDS[row.kind],
        ha="right",
        va="center",
        size=9.5,
        weight="bold",
        color=_INK,
        transform=axes.transAxes,
    )
    axes.text(
        -0.12,
        0.40,
        f"AP {row.score:.2f}",
        ha="right",
        va="center",
        size=8.5,
        color=_FAINT,
        transform=axes.transAxes,
    )


def _picture(
    axes: Axes, image: NDArray[np.uint8], colour: str, line: str | tuple[int, tuple[float, ...]], width: float
) -> None:
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[:, :, 0]
    grey = image.ndim == 2
    # Small pictures are enlarged without blur: what the network sees is what the reader sees.
    axes.imshow(
        image,
        cmap="gray" if grey else None,
        vmin=0,
        vmax=255,
        interpolation="nearest" if max(image.shape[:2]) < 100 else "antialiased",
    )
    _frame(axes, colour, line, width)


def _frame(axes: Axes, colour: str, line: str | tuple[int, tuple[float, ...]], width: float) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_visible(False)
    frame = Rectangle(
        (0, 0),
        1,
        1,
        transform=axes.transAxes,
        fill=False,
        edgecolor=colour,
        linewidth=width,
        linestyle=line,
        clip_on=False,
        zorder=5,
    )
    axes.add_patch(frame)


def _mark(axes: Axes, right: bool) -> None:
    """A badge in the corner: a tick or a cross."""
    axes.text(
        0.97,
        0.97,
        "\N{CHECK MARK}" if right else "\N{MULTIPLICATION X}",
        transform=axes.transAxes,
        ha="center",
        va="center",
        size=8,
        color="white",
        family="DejaVu Sans",
        zorder=7,
        bbox={
            "boxstyle": "circle,pad=0.18",
            "facecolor": _RIGHT if right else _WRONG,
            "edgecolor": "white",
            "linewidth": 1,
        },
    )


def _caption(axes: Axes, name: str, number: str, colour: str) -> None:
    if len(name) > 34:  # names of one data set often begin alike, so the end is kept as well
        name = f"{name[:14].rstrip()}\N{HORIZONTAL ELLIPSIS}{name[-18:].lstrip()}"
    lines = textwrap.wrap(name, 18, max_lines=2, placeholder="\N{HORIZONTAL ELLIPSIS}")
    if number:
        axes.text(
            0.5,
            -0.06,
            number,
            transform=axes.transAxes,
            ha="center",
            va="top",
            size=8.5,
            weight="bold",
            color=colour,
        )
    axes.text(
        0.5,
        -0.21 if number else -0.06,
        "\n".join(lines),
        transform=axes.transAxes,
        ha="center",
        va="top",
        size=7,
        color=_INK,
        linespacing=1.0,
        parse_math=False,
    )

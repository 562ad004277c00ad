"""Retrieval gallery: queries and what was found for them, right and wrong told apart without colour too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from dmlscale.evaluation.figures.picture import LoadImage, caption, draw_picture
from dmlscale.evaluation.figures.style import DPI, FAINT, INK, RIGHT, WRONG, heading, heading_height
from dmlscale.evaluation.gallery import Kind, RetrievalRow

HOW_TO_READ = (
    "Each line is a query and what was found for it, nearest first; solid green frames with a tick are of the query's "
    "class, dashed red ones with a cross are not."
)
_KINDS: dict[Kind, str] = {"worst": "Worst", "random": "Random", "best": "Best"}
_CELL, _TEXT, _LEFT, _COLUMN_NAMES, _BOTTOM, _NARROWEST = 1.12, 0.46, 0.95, 0.24, 0.1, 5.4  # inches


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
    width = max(_NARROWEST, _LEFT + (num_columns + 0.3) * _CELL)
    note = _note(rows, closeness)
    top = heading_height(note, width) + _COLUMN_NAMES
    height = top + len(rows) * (_CELL + _TEXT) + _BOTTOM
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    heading(figure, title, note)
    _column_names(figure, top - _COLUMN_NAMES / 2)

    def cell(line: int, column: int) -> Axes:
        x = _LEFT + column * _CELL + (0.3 * _CELL if column else 0)
        y = height - top - line * (_CELL + _TEXT) - _CELL
        side = _CELL - 0.16
        return figure.add_axes((x / width, (y + 0.08) / height, side / width, side / height))

    for line, row in enumerate(rows):
        query = cell(line, 0)
        _picture(query, load_image(row.id), INK, "solid", 1.0)
        caption(query, class_name(row.label), "", INK)
        _side_text(query, row)
        for column, neighbor in enumerate(row.neighbors, start=1):
            right = neighbor.label == row.label
            colour = RIGHT if right else WRONG
            axes = cell(line, column)
            _picture(axes, load_image(neighbor.id), colour, "solid" if right else (0, (3, 1.5)), 2.2)
            _mark(axes, right)
            caption(axes, class_name(neighbor.label), f"{neighbor.closeness:.2f}", colour)
    return figure


def _note(rows: Sequence[RetrievalRow], closeness: str) -> str:
    found = [neighbor.label == row.label for row in rows for neighbor in row.neighbors]
    return (
        f"{sum(found)} of {len(found)} shown neighbours are right. Under each: class, {closeness}. "
        "Queries chosen by average precision (AP)."
    )


def _column_names(figure: Figure, below_top: float) -> None:
    """Names of the columns and what the frames mean, so many inches below the top."""
    width, height = figure.get_size_inches()
    y = 1 - below_top / height
    for column, text in ((0.0, "Query"), (1.3, "Nearest first  \N{RIGHTWARDS ARROW}")):
        x = (_LEFT + column * _CELL) / width
        figure.text(x, y, text, size=9, weight="bold", color=INK, va="center")
    for x_inches, right, text in ((width - 1.75, True, "right"), (width - 0.95, False, "wrong")):
        key = figure.add_axes((x_inches / width, y - 0.08 / height, 0.2 / width, 0.16 / height))
        _frame(key, RIGHT if right else WRONG, "solid" if right else (0, (3, 1.5)), 1.6)
        figure.text((x_inches + 0.27) / width, y, text, size=9, color=INK, va="center")


def _side_text(axes: Axes, row: RetrievalRow) -> None:
    # In points, not in parts of the picture: that of an object's views is wide and low.
    for text, size, weight, ink, points_up in (
        (_KINDS[row.kind], 9.5, "bold", INK, 7),
        (f"AP {row.score:.2f}", 8.5, "normal", FAINT, -7),
    ):
        axes.annotate(
            text,
            (-0.12, 0.5),
            xycoords="axes fraction",
            xytext=(0, points_up),
            textcoords="offset points",
            ha="right",
            va="center",
            size=size,
            weight=weight,
            color=ink,
        )


def _picture(
    axes: Axes, image: NDArray[np.uint8] | None, colour: str, line: str | tuple[int, tuple[float, ...]], width: float
) -> None:
    draw_picture(axes, image)
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
            "facecolor": RIGHT if right else WRONG,
            "edgecolor": "white",
            "linewidth": 1,
        },
    )

"""A query and what was found for it, where nobody knows its class: what ``search --pictures`` draws."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dmlscale.evaluation.figures.picture import draw_picture
from dmlscale.evaluation.figures.style import DPI, FAINT, INK, PALE, families, heading, written

_COLUMNS, _FEWEST = 5, 3  # of neighbours; the heading needs some room
_CELL, _GAP, _TEXT, _LINE, _EDGE, _TOP = 1.3, 0.14, 0.56, 0.14, 0.16, 0.85  # inches
_LETTERS = 22  # of a name that have room below a picture


class Found(NamedTuple):
    """A neighbour."""

    id: str
    label: str | None  # name of its class
    split: str | None
    closeness: float


def search_result(
    query: NDArray[np.uint8],
    found: Sequence[Found],
    images: Sequence[NDArray[np.uint8] | None],
    *,
    title: str,
    closeness: str,
) -> Figure:
    """The query at the left, its neighbours beside it in lines of five, nearest first.

    Args:
        query: (height, width) or (height, width, 3).
        found: the neighbours; may be none.
        images: of each; None where it cannot be had, which is written in its place.
        title: heading.
        closeness: what the number under each neighbour is.

    Returns:
        A figure of 100 dots per inch.
    """
    num_lines = max(1, -(-len(found) // _COLUMNS))
    num_columns = 1 + max(_FEWEST, min(_COLUMNS, len(found)))
    width = 2 * _EDGE + num_columns * (_CELL + _GAP) + _GAP
    height = _TOP + num_lines * (_CELL + _TEXT) + _EDGE
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    heading(figure, title, f"Nearest first. Under each: rank and {closeness}, class if it is known, id.")

    def draw(line: int, column: int, image: NDArray[np.uint8] | None, texts: Sequence[str]) -> None:
        left = _EDGE + column * (_CELL + _GAP) + (2 * _GAP if column else 0)
        bottom = height - _TOP - line * (_CELL + _TEXT) - _CELL
        axes = figure.add_axes((left / width, bottom / height, _CELL / width, _CELL / height), anchor="S")
        draw_picture(axes, image)
        for spine in axes.spines.values():
            spine.set(color=PALE if column else INK, linewidth=0.8 if column else 1.6)
        for number, text in enumerate(texts):
            _write(figure, (left + _CELL / 2) / width, (bottom - 0.05 - _LINE * number) / height, text, number == 0)

    draw(0, 0, query, ["query"])
    for number, (neighbour, image) in enumerate(zip(found, images, strict=True)):
        label = [] if neighbour.label is None else [written(neighbour.label, _LETTERS)]
        texts = [f"{number + 1}   {neighbour.closeness:.3f}", *label, written(neighbour.id, _LETTERS)]
        draw(number // _COLUMNS, 1 + number % _COLUMNS, image, texts)
    return figure


def _write(figure: Figure, x: float, y: float, text: str, is_first: bool) -> None:
    figure.text(
        x,
        y,
        text,
        size=8.5 if is_first else 7.5,
        weight="bold" if is_first else "normal",
        color=INK if is_first else FAINT,
        ha="center",
        va="top",
        family=families(),
        parse_math=False,
    )

"""Neighbourhoods in a class bank: which classes the loss has placed close to each other, with a sample of each."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from dmlscale.evaluation.figures.crowded_classes import BankRow
from dmlscale.evaluation.figures.picture import LoadImage, caption, draw_picture
from dmlscale.evaluation.figures.style import DPI, EDGE, FAINT, INK, heading, heading_height

HOW_TO_READ = (
    "Each line is a class and those whose proxies or centers lie nearest to its own, with a sample of each: classes "
    "that look alike may be close, while others that are close (a cosine near 1) are not yet told apart."
)
_CELL, _GAP, _SPACE, _CAPTION = 0.98, 0.14, 0.3, 0.52  # inches


def bank_neighbours(
    rows: Sequence[BankRow],
    load_image: LoadImage,
    *,
    title: str = "Nearest classes in the class bank",
) -> Figure:
    """Draw a line for each class: a sample of it, then one of each of its neighbours with the cosine.

    Args:
        rows: as from `bank_rows`.
        load_image: gives the picture of a sample id.
        title: heading.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("neighbourhoods of a class bank need at least one class")
    num_columns = 1 + max(len(row.neighbours) for row in rows)
    width = max(5.6, 2 * EDGE + num_columns * (_CELL + _GAP) + _SPACE)
    note = "The most crowded classes first. Under each: class, cosine similarity of its proxy or nearest center."
    top = heading_height(note, width) + 0.28
    height = top + len(rows) * (_CELL + _CAPTION) + EDGE / 2
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    heading(figure, title, note)
    for column, text in ((0, "Class"), (1, "Nearest first  \N{RIGHTWARDS ARROW}")):
        x = EDGE + column * (_CELL + _GAP + _SPACE)
        figure.text(x / width, 1 - (top - 0.13) / height, text, size=9, weight="bold", color=INK, va="center")
    for line, row in enumerate(rows):
        shown = [(row.name, ""), *((name, f"{cosine:.2f}") for name, cosine in row.neighbours)]
        for column, ((name, cosine), sample) in enumerate(zip(shown, row.picture_ids, strict=True)):
            x = EDGE + column * (_CELL + _GAP) + (_SPACE if column else 0)
            y = height - top - line * (_CELL + _CAPTION) - _CELL
            axes = figure.add_axes((x / width, y / height, _CELL / width, _CELL / height))
            axes.set_anchor("S")
            draw_picture(axes, None if sample is None else load_image(sample))
            for spine in axes.spines.values():
                spine.set(color=FAINT if column else INK, linewidth=0.6 if column else 1.2)
            caption(axes, name, cosine, INK)
    return figure

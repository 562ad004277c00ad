"""Map of embeddings: all samples as points, some classes in colour with their names, some samples as pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from dmlscale.evaluation.figures.picture import LoadImage, draw_picture
from dmlscale.evaluation.figures.style import (
    CLASSES,
    DPI,
    EDGE,
    FAINT,
    INK,
    LINE,
    MARKERS,
    PALE,
    families,
    heading,
    heading_height,
    written,
)

HOW_TO_READ = (
    "Points that lie close together are close for the model: a good model draws each class together in a group of its "
    "own; distances between far groups, and the size of a group, mean nothing."
)
Box = tuple[float, float, float, float]  # left, bottom, right, top, in inches from the map's corner

_SIDE, _INNER = 7.4, 0.52  # of the map, and what is left free within it
_PICTURE, _BESIDE, _NUM_PICTURES = 0.42, 0.05, 40  # a picture begins at the upper right of its point
_LETTER, _LINE_HEIGHT = 0.073, 0.17  # of a class's name


def embedding_map(
    points: NDArray[Any],
    labels: NDArray[Any],
    *,
    class_name: Callable[[int], str] = str,
    highlight: Sequence[int] = (),
    images: LoadImage | None = None,
    ids: NDArray[Any] | None = None,
    title: str = "Map of the embeddings",
) -> Figure:
    """Draw every sample where `project` has put it.

    Args:
        points: (n, 2) finite.
        labels: (n,) class of each.
        class_name: label -> its name.
        highlight: at most ten labels to show in colour, with their names; all others are grey.
        images: gives the picture of a sample id; some 40 samples, spread over the map, are shown as such.
        ids: (n,) sample ids, as `images` takes them; None numbers the rows.
        title: heading.

    Raises:
        ValueError: no points, shapes that do not fit, or too many classes to tell apart.
    """
    if points.ndim != 2 or points.shape[1] != 2 or not len(points) or len(labels) != len(points):
        raise ValueError(f"points {points.shape} and labels {labels.shape} must be (n, 2) and (n,), n at least 1")
    if len(highlight) > len(CLASSES):
        raise ValueError(f"{len(highlight)} classes to highlight: at most {len(CLASSES)} can be told apart")
    num_classes = len(np.unique(labels))
    note = f"{len(points):,} samples of {num_classes:,} classes"
    note += f", {len(highlight)} of them in colour." if 0 < len(highlight) < num_classes else "."
    if images is not None:
        note += " Pictures stand at the upper right of their points."
    width = _SIDE + 2 * EDGE
    height = _SIDE + EDGE + heading_height(note, width)
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    heading(figure, title, note)
    axes = figure.add_axes((EDGE / width, EDGE / height, _SIDE / width, _SIDE / height))
    places = _in_inches(np.asarray(points, np.float64))
    _dots(axes, places, labels, highlight)
    pictures = _pictures(axes, places, np.arange(len(points)) if ids is None else ids, images)
    _names(axes, places, labels, [(label, written(class_name(label), 24)) for label in highlight], pictures)
    axes.set(xlim=(0, _SIDE), ylim=(0, _SIDE), xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=LINE)
    return figure


def _in_inches(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """The points within the map, their shape kept."""
    low, high = points.min(0), points.max(0)
    scale = (_SIDE - 2 * _INNER) / max(float((high - low).max()), 1e-12)
    return (points - (low + high) / 2) * scale + _SIDE / 2


def _dots(axes: Axes, places: NDArray[np.float64], labels: NDArray[Any], highlight: Sequence[int]) -> None:
    others = ~np.isin(labels, highlight)
    axes.scatter(places[others, 0], places[others, 1], s=9, color=PALE, linewidths=0, zorder=2)
    for label, colour, marker in zip(highlight, CLASSES, MARKERS, strict=False):
        own = labels == label
        axes.scatter(
            places[own, 0],
            places[own, 1],
            s=34,
            color=colour,
            marker=marker,
            edgecolors="white",
            linewidths=0.6,
            zorder=4,
        )


def _pictures(axes: Axes, places: NDArray[np.float64], ids: NDArray[Any], images: LoadImage | None) -> list[Box]:
    """Draw samples far from each other as pictures; returns what they cover."""
    if images is None:
        return []
    boxes = []
    for row in spread_rows(places, _NUM_PICTURES, closest=1.3 * _PICTURE):
        image = images(int(ids[row]))
        if image is None:
            continue
        size = _PICTURE * np.array([image.shape[1], image.shape[0]]) / max(image.shape[:2])
        left, bottom = places[row] + _BESIDE
        right, top = places[row] + _BESIDE + size
        draw_picture(axes, image, extent=(left, right, bottom, top), zorder=3)
        axes.add_patch(Rectangle((left, bottom), *size, fill=False, edgecolor=FAINT, linewidth=0.6, zorder=3))
        boxes.append((left, bottom, right, top))
    return boxes


def spread_rows(points: NDArray[Any], most: int, *, closest: float) -> list[int]:
    """Rows of points far from each other: each is the one farthest from those before it.

    Args:
        points: (n, 2).
        most: rows to return.
        closest: no two of them are nearer than this.
    """
    rows = [int(np.linalg.norm(points - points.mean(0), axis=1).argmin())]
    distances = np.linalg.norm(points - points[rows[0]], axis=1)
    while len(rows) < most and distances.max() > closest:
        rows.append(int(distances.argmax()))
        distances = np.minimum(distances, np.linalg.norm(points - points[rows[-1]], axis=1))
    return rows


def _names(
    axes: Axes,
    places: NDArray[np.float64],
    labels: NDArray[Any],
    names: Sequence[tuple[int, str]],
    pictures: Sequence[Box],
) -> None:
    """Write each class's name beside its middle, where it hides least."""
    coloured = places[np.isin(labels, [label for label, _ in names])]
    taken: list[Box] = []
    for (label, name), colour in zip(names, CLASSES, strict=False):
        own = places[labels == label]
        if not len(own):
            continue
        anchor = own[np.linalg.norm(own - np.median(own, axis=0), axis=1).argmin()]
        box = min(_candidates(anchor, name), key=lambda box: _cost(box, anchor, coloured, pictures, taken))
        taken.append(box)
        middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
        axes.annotate(
            name,
            xy=tuple(anchor),
            xytext=middle,
            size=8.5,
            weight="bold",
            color=INK,
            ha="center",
            va="center",
            family=families(),
            parse_math=False,
            zorder=6,
            bbox={"boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": colour, "linewidth": 1.2},
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 2},
        )


def _candidates(anchor: NDArray[np.float64], name: str) -> list[Box]:
    half = (0.05 + _LETTER * len(name) / 2, 0.04 + _LINE_HEIGHT / 2)
    boxes = []
    for distance in (0.12, 0.25, 0.45, 0.7, 1.0, 1.4):
        for angle in np.linspace(0, 2 * np.pi, 16, endpoint=False):
            x, y = anchor + np.array([np.cos(angle), np.sin(angle)]) * (np.array(half) + distance)
            boxes.append((x - half[0], y - half[1], x + half[0], y + half[1]))
    return boxes


def _cost(
    box: Box, anchor: NDArray[np.float64], coloured: NDArray[np.float64], pictures: Sequence[Box], taken: Sequence[Box]
) -> float:
    """How much a name in this box would hide, and how far it lies from its class."""
    outside = min(box[0], box[1], _SIDE - box[2], _SIDE - box[3]) < 0.03
    hidden = ((coloured > box[:2]) & (coloured < box[2:])).all(axis=1).sum()
    far = np.hypot((box[0] + box[2]) / 2 - anchor[0], (box[1] + box[3]) / 2 - anchor[1])
    return float(
        1000 * outside
        + 100 * sum(_overlap(box, other) for other in taken)
        + 0.5 * sum(_overlap(box, other) for other in pictures)
        + 0.3 * hidden
        + far
    )


def _overlap(first: Box, second: Box) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from numpy.typing import NDArray

from dmlscale.evaluation.figures.embedding_map import embedding_map, spread_rows
from dmlscale.evaluation.figures.style import CLASSES, MARKERS
from tests.evaluation.figures.drawn import pixels, require_legible, texts

NAMES = ["a", "x" * 60, "$\\broken", "<script>", "漢字", "é", "g", "h", "i", "j", "k"]


def clusters(num_classes: int, per_class: int = 12) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    rng = np.random.default_rng(0)
    labels = np.arange(num_classes).repeat(per_class)
    return rng.uniform(-9, 9, (num_classes, 2))[labels] + 0.3 * rng.normal(size=(len(labels), 2)), labels


def image(sample: int) -> NDArray[np.uint8] | None:
    shapes = [(20, 20), (20, 60, 3), (60, 20, 1), None]
    shape = shapes[sample % 4]
    return None if shape is None else np.full(shape, 128, np.uint8)


def test_names_of_highlighted_classes_and_pictures_by_sample_id() -> None:
    points, labels = clusters(11)
    asked: list[int] = []

    def remembered(sample: int) -> NDArray[np.uint8] | None:
        asked.append(sample)
        return image(sample)

    figure = embedding_map(
        points, labels, class_name=NAMES.__getitem__, highlight=range(10), images=remembered, ids=np.arange(132) + 1000
    )
    written = texts(figure)
    assert {"a", "$\\broken", "<script>", "é", "j"} <= set(written)
    assert "k" not in written
    assert any("132 samples of 11 classes, 10 of them in colour" in text for text in written)
    assert 0 < len(asked) == len(set(asked)) <= 40
    assert set(asked) <= set(range(1000, 1132))
    require_legible(figure)


def test_every_highlighted_class_has_its_colour_in_the_picture() -> None:
    points, labels = clusters(10)
    drawn = pixels(embedding_map(points, labels, highlight=range(10)))
    for colour in CLASSES:
        wanted = np.round(np.array(to_rgb(colour)) * 255)
        assert (np.abs(drawn - wanted).max(axis=2) <= 1).sum() > 50, colour
    assert len(set(CLASSES)) == len(set(MARKERS)) == 10


@pytest.mark.parametrize(
    ("points", "labels"),
    [([[0, 0]], [5]), ([[0, 0], [1, 1]], [5, 6]), ([[2, 2]] * 9, [5] * 9), ([[i, 0] for i in range(8)], range(8))],
    ids=["one", "two", "all in one place", "on a line, one sample per class"],
)
def test_few_points(points: list[list[float]], labels: list[int]) -> None:
    figure = embedding_map(np.array(points), np.array(labels), highlight=[5, 99], images=image)
    assert "5" in texts(figure)
    require_legible(figure)


def test_thousands_of_classes() -> None:
    points, labels = clusters(5000, 1)
    require_legible(embedding_map(points, labels, highlight=[0, 1]))


@settings(deadline=None)  # a busy machine
@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 9))
def test_spread_rows_are_far_from_each_other(num_points: int, most: int, seed: int) -> None:
    points = np.random.default_rng(seed).integers(0, 6, (num_points, 2)).astype(float)
    rows = spread_rows(points, most, closest=1.5)
    assert 1 <= len(rows) <= most
    gaps = np.linalg.norm(points[rows][:, None] - points[rows][None], axis=2)
    assert (gaps[~np.eye(len(rows), dtype=bool)] > 1.5).all()
    if len(rows) < most:  # no other point would have had room
        assert (np.linalg.norm(points[:, None] - points[rows][None], axis=2).min(1) <= 1.5).all()


def test_refuses_what_cannot_be_drawn() -> None:
    with pytest.raises(ValueError, match="n at least 1"):
        embedding_map(np.zeros((0, 2)), np.zeros(0))
    with pytest.raises(ValueError, match=r"\(3, 3\)"):
        embedding_map(np.zeros((3, 3)), np.zeros(3))
    with pytest.raises(ValueError, match="at most 10"):
        embedding_map(np.zeros((3, 2)), np.zeros(3), highlight=range(11))

import numpy as np
import pytest

from dmlscale.evaluation.figures.retrieval_gallery import retrieval_gallery
from dmlscale.evaluation.gallery import Neighbor, RetrievalRow
from tests.evaluation.figures.drawn import require_legible, texts


def _rows() -> list[RetrievalRow]:
    neighbors = (Neighbor(1, 0, 0.91), Neighbor(2, 1, 0.52), Neighbor(3, 1, 0.5))
    return [
        RetrievalRow(0, 0, "worst", 0.0, neighbors[1:]),
        RetrievalRow(4, 0, "random", 0.5, neighbors),
        RetrievalRow(5, 1, "best", 1.0, neighbors[:1]),
    ]


def _image(sample_id: int) -> np.ndarray:
    shapes = {0: (32, 32), 1: (32, 32, 1), 2: (20, 40, 3)}
    return np.full(shapes.get(sample_id, (200, 150, 3)), 40 * sample_id, np.uint8)


def test_marks_names_and_numbers_are_on_the_picture() -> None:
    figure = retrieval_gallery(_rows(), _image, class_name=lambda label: f"class $_{label}")
    written = texts(figure)
    assert written.count("\N{CHECK MARK}") == 1
    assert written.count("\N{MULTIPLICATION X}") == 5
    assert {"Worst", "Random", "Best", "AP 0.50", "0.91", "class $_1"} <= set(written)
    assert any("1 of 6 shown neighbours are right" in text for text in written)


def test_legible_at_its_own_size() -> None:
    require_legible(retrieval_gallery(_rows(), _image, class_name=lambda label: f"a very long name of class {label}"))


def test_says_which_picture_cannot_be_read() -> None:
    assert texts(retrieval_gallery(_rows(), lambda sample: None)).count("cannot\nbe read") == 9


def test_nothing_to_show_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one query"):
        retrieval_gallery([], _image)

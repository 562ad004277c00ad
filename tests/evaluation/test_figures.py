import io

import numpy as np
import pytest
from PIL import Image

from dmlscale.evaluation.figures import retrieval_gallery
from dmlscale.evaluation.gallery import Neighbor, RetrievalRow


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
    texts = [text.get_text() for text in figure.texts] + [
        text.get_text() for axes in figure.axes for text in axes.texts
    ]
    assert texts.count("\N{CHECK MARK}") == 1
    assert texts.count("\N{MULTIPLICATION X}") == 5
    assert {"Worst", "Random", "Best", "AP 0.50", "0.91", "class $_1"} <= set(texts)
    assert any("1 of 6 shown neighbours are right" in text for text in texts)


def test_renders_light_and_at_its_own_size() -> None:
    figure = retrieval_gallery(_rows(), _image)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    pixels = np.asarray(Image.open(buffer).convert("L"))
    assert pixels.shape == tuple(int(side * 100) for side in reversed(figure.get_size_inches()))
    assert pixels[0, 0] == 255
    assert pixels.mean() > 150


def test_nothing_to_show_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one query"):
        retrieval_gallery([], _image)

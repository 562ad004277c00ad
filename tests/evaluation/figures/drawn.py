"""What a figure shows, read back from its artists and its pixels."""

from __future__ import annotations

import io
import itertools

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray
from PIL import Image

from dmlscale.evaluation.figures.style import png


def texts(figure: Figure) -> list[str]:
    """Everything that is written, without the ticks' names."""
    return [text.get_text() for text in (*figure.texts, *(text for axes in figure.axes for text in axes.texts))]


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """(height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(png(figure))).convert("RGB"))


def require_legible(figure: Figure, overlap: float = 3.0) -> None:
    """Light, of 100 dots per inch, and no text is cut off or lies more than some pixels over another."""
    image = pixels(figure)
    assert image.shape[:2] == tuple(int(round(side * 100, 6)) for side in reversed(figure.get_size_inches()))
    assert (image[0, 0] == 255).all()
    assert image.mean() > 150
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    # A tick outside the limits is not drawn, but still has a text.
    ticks = {
        id(tick.label1): low - 1e-9 <= tick.get_loc() <= high + 1e-9
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for low, high in [sorted(axis.get_view_interval())]
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())
    }
    written = [
        text
        for text in figure.findobj(Text)
        if isinstance(text, Text) and text.get_visible() and text.get_text().strip() and ticks.get(id(text), True)
    ]
    boxes = [(text.get_text(), Text.get_window_extent(text, renderer)) for text in written]
    for text, box in boxes:
        assert min(box.x0, box.y0) > -1, text
        assert box.x1 < image.shape[1] + 1, text
        assert box.y1 < image.shape[0] + 1, text
    for (first, one), (second, other) in itertools.combinations(boxes, 2):
        across = min(one.x1, other.x1) - max(one.x0, other.x0)
        down = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert min(across, down) < overlap, f"{first!r} lies over {second!r}"

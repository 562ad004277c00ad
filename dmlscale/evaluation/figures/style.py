"""What all figures share: colours that colour-blind readers tell apart, sizes, headings, and how names are written."""

from __future__ import annotations

import io
import textwrap
from functools import lru_cache

from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

INK, FAINT, LINE, PALE = "#1b1f24", "#5b6470", "#dfe3e8", "#b9c1cb"
RIGHT, WRONG = "#0b7a3b", "#c8321e"  # green and red that differ in lightness too
MODEL, OTHER = "#0060a8", "#c05a00"  # blue and orange
CLASSES = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#000000",
    "#e69f00",
    "#56b4e9",
    "#882255",
    "#999933",
    "#332288",
)
"""Okabe and Ito's colours and three of Tol's; each goes with its own shape in `MARKERS`."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p")

DPI = 100
EDGE, LEFT, BOTTOM, HEADING, NOTE_LINE = 0.16, 0.82, 0.58, 0.5, 0.17  # inches
_LETTERS_PER_INCH = 15.5  # of the note's type

# Scripts that matplotlib's own font lacks are drawn with what the machine has of these.
_FAMILIES = (
    "DejaVu Sans",
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Noto Sans JP",
    "Noto Sans KR",
    "Source Han Sans SC",
    "WenQuanYi Zen Hei",
    "WenQuanYi Micro Hei",
    "IPAGothic",
    "Noto Sans Arabic",
    "Noto Sans Devanagari",
    "Arial Unicode MS",
)


@lru_cache(maxsize=1)
def families() -> list[str]:
    """Font families to write names of classes with, those that are installed, in the order they are tried."""
    installed = {font.name for font in font_manager.fontManager.ttflist}
    return [name for name in _FAMILIES if name in installed]


def written(name: str, most: int = 34) -> str:
    """A name as figures show it: cut in the middle, and letters that no font has by their code, as in ``U+4E00``.

    Args:
        name: of a class.
        most: letters that have room. Names of one data set often begin alike, so the end is kept as well.
    """
    name = _drawable(name)
    if len(name) <= most:
        return name
    head = (most - 1) * 4 // 9
    return f"{name[:head].rstrip()}\N{HORIZONTAL ELLIPSIS}{name[head + 1 - most :].lstrip()}"


def _drawable(text: str) -> str:
    known = _letters()
    letters = (letter if ord(letter) in known else f" U+{ord(letter):04X} " for letter in " ".join(text.split()))
    return " ".join("".join(letters).split())


@lru_cache(maxsize=1)
def _letters() -> frozenset[int]:
    codes: set[int] = set()
    for family in families():
        codes.update(font_manager.get_font(font_manager.findfont(family)).get_charmap())
    return frozenset(codes)


def heading(figure: Figure, title: str, note: str) -> float:
    """Write a title and a note below it; returns the inches that they take from the top."""
    width, height = figure.get_size_inches()
    lines = _note_lines(note, width)
    figure.text(
        EDGE / width,
        1 - 0.27 / height,
        written(title, int(10 * width)),
        size=13,
        weight="bold",
        color=INK,
        va="center",
        family=families(),
        parse_math=False,
    )
    for number, line in enumerate(lines):
        y = 1 - (HEADING + 0.03 + number * NOTE_LINE) / height
        figure.text(EDGE / width, y, line, size=8.5, color=FAINT, va="center", family=families(), parse_math=False)
    return heading_height(note, width)


def heading_height(note: str, width: float) -> float:
    """Inches that `heading` takes from the top of a figure of this width."""
    return HEADING + NOTE_LINE * len(_note_lines(note, width)) + 0.12


def _note_lines(note: str, width: float) -> list[str]:
    return textwrap.wrap(_drawable(note), max(20, int(_LETTERS_PER_INCH * (width - 2 * EDGE))))


def panel(title: str, note: str, *, width: float = 7.6, height: float = 4.4) -> tuple[Figure, Axes]:
    """A light figure with a heading and one pair of axes.

    Args:
        title: in bold.
        note: one or two sentences below it, wrapped.
        width: of the figure, in inches.
        height: of the figure, in inches.
    """
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    top = heading(figure, title, note)
    box = (LEFT / width, BOTTOM / height, 1 - (LEFT + 2 * EDGE) / width, 1 - (BOTTOM + top + EDGE) / height)
    axes = figure.add_axes(box)
    plain(axes)
    return figure, axes


def plain(axes: Axes) -> None:
    """Take away what is not data: a line at the left and below, faint rules across."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set(color=FAINT, linewidth=0.8)
    axes.tick_params(colors=FAINT, labelsize=8.5, length=3)
    axes.xaxis.label.set(size=9, color=INK)
    axes.yaxis.label.set(size=9, color=INK)
    axes.grid(axis="y", color=LINE, linewidth=0.7)
    axes.set_axisbelow(True)


def percent(share: float) -> str:
    """0.8125 -> ``81.2 %``; all and nothing without decimals, so that they are not taken for rounded."""
    return f"{share:.0%}".replace("%", " %") if share in (0, 1) else f"{100 * share:.1f} %"


def percent_ticks() -> FuncFormatter:
    """Ticks of shares as percent."""
    return FuncFormatter(lambda share, _: f"{100 * share:.4g} %")


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, at its own size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()

"""Fonts made for a test: every character is a few bars, whose places depend on the design and the character."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fontTools.ttLib import TTCollection, TTFont

REFERENCE = 0x570B  # as large in every design
_EM = 1000
_CELL = 125

Bars = tuple[tuple[int, int, int, int], ...]  # left, bottom, right, top
FRAME: Bars = ((0, 0, 1000, 100), (0, 900, 1000, 1000), (0, 0, 100, 1000), (900, 0, 1000, 1000))


def bars_of(seed: int) -> Bars:
    """Bars at random places of an 8 x 8 grid that touch its four corners, so that all are centred alike."""
    cells = np.random.default_rng(seed).random((8, 8)) < 0.4
    cells[[0, 0, -1, -1], [0, -1, 0, -1]] = True
    return tuple((x * _CELL, y * _CELL, (x + 1) * _CELL, (y + 1) * _CELL) for y, x in np.argwhere(cells).tolist())


def make_font(shapes: Mapping[int, Bars]) -> TTFont:
    """A font with the given bars per code point, the reference character, and a frame for missing ones."""
    drawn = {".notdef": FRAME, "reference": (*FRAME, (450, 0, 550, 1000))}
    drawn |= {f"u{code_point:X}": bars for code_point, bars in shapes.items()}
    builder = FontBuilder(_EM, isTTF=True)
    builder.setupGlyphOrder(list(drawn))
    builder.setupCharacterMap({REFERENCE: "reference"} | {code_point: f"u{code_point:X}" for code_point in shapes})
    builder.setupGlyf({name: _glyph(bars) for name, bars in drawn.items()})
    builder.setupHorizontalMetrics({name: (_EM, 0) for name in drawn})
    builder.setupHorizontalHeader(ascent=_EM, descent=0)
    builder.setupNameTable({"familyName": "Test", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    return builder.font


def save_design(path: Path, design: int, characters: Iterable[int]) -> Path:
    """A font file that draws ``characters`` in the manner of ``design``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    make_font({c: bars_of(c * 1000 + design) for c in characters}).save(path)
    return path


def save_collection(path: Path, fonts: Iterable[TTFont]) -> Path:
    """A .ttc of several fonts."""
    collection = TTCollection()
    collection.fonts = list(fonts)
    collection.save(path)
    return path


def _glyph(bars: Bars) -> object:
    pen = TTGlyphPen(None)
    for left, bottom, right, top in bars:
        pen.moveTo((left, bottom))
        for point in ((left, top), (right, top), (right, bottom)):
            pen.lineTo(point)
        pen.closePath()
    return pen.glyph()

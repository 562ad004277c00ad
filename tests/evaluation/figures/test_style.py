from __future__ import annotations

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from dmlscale.evaluation.figures.style import families, heading, panel, percent, png, written
from tests.evaluation.figures.drawn import require_legible

NOBODYS = "\U0010fffe"  # a code that never becomes a letter


def test_letters_that_no_font_has_are_written_as_their_code() -> None:
    assert written(f"a{NOBODYS}b") == "a U+10FFFE b"
    assert written("дятел $x^2$ <b>") == "дятел $x^2$ <b>"


@settings(deadline=None)  # the first name reads the fonts
@given(st.text(max_size=80), st.integers(8, 40))
def test_a_name_has_room_and_keeps_both_ends(name: str, most: int) -> None:
    short = written(name, most)
    assert len(short) <= most
    if len(name) > most and name.isascii() and name.isalnum():
        head, tail = short.split("\N{HORIZONTAL ELLIPSIS}")
        assert (name[: len(head)], name[-len(tail) :]) == (head, tail)
        assert len(short) == most


@pytest.mark.parametrize("name", ["漢字", "$unclosed", r"$\frac{1}{2}$", "<script>", "\x00\x01", NOBODYS, "%s {x}"])
def test_any_name_is_drawn_without_a_warning(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = Figure(figsize=(4, 1))
        heading(figure, name, name)
        figure.text(0.5, 0.2, written(name), family=families(), parse_math=False)
        png(figure)


def test_a_long_note_pushes_the_axes_down() -> None:
    short, long = panel("title", "A note."), panel("title", "A note of many words. " * 12)
    assert long[1].get_position().y1 < short[1].get_position().y1
    require_legible(long[0])


@pytest.mark.parametrize(("share", "text"), [(0, "0 %"), (1, "100 %"), (0.8125, "81.2 %"), (0.0004, "0.0 %")])
def test_percent(share: float, text: str) -> None:
    assert percent(share) == text

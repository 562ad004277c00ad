"""Whether pieces fill a tensor, compared with counting every place."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.training.checkpoint.coverage import why_not_whole
from dmlscale.training.checkpoint.piece_file import StoredPiece

Box = tuple[tuple[int, ...], tuple[int, ...]]


def pieces(shape: tuple[int, ...], boxes: list[Box]) -> list[StoredPiece]:
    return [StoredPiece("t", "float32", shape, offsets, sizes) for offsets, sizes in boxes]


def counted(shape: tuple[int, ...], boxes: list[Box]) -> bool:
    """The slow way."""
    times = np.zeros(shape, int)
    for offsets, sizes in boxes:
        times[tuple(slice(o, o + s) for o, s in zip(offsets, sizes, strict=True))] += 1
    return bool((times == 1).all())


@st.composite
def boxed(draw: st.DrawFn) -> tuple[tuple[int, ...], list[Box]]:
    """A shape and boxes in it that often fill it: one that is halved again and again, and perhaps changed a little."""
    shape = tuple(draw(st.lists(st.integers(0, 5), max_size=3)))
    boxes: list[Box] = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, 5)) if shape else 0):
        offsets, sizes = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        axis = draw(st.integers(0, len(shape) - 1))
        at = draw(st.integers(0, sizes[axis]))
        for start, size in ((0, at), (at, sizes[axis] - at)):
            boxes.append(
                (
                    (*offsets[:axis], offsets[axis] + start, *offsets[axis + 1 :]),
                    (*sizes[:axis], size, *sizes[axis + 1 :]),
                )
            )
    change = draw(st.sampled_from(["none", "none", "drop", "repeat", "move"]))
    number = draw(st.integers(0, len(boxes) - 1))
    if change == "drop" and len(boxes) > 1:
        boxes.pop(number)
    elif change == "repeat":
        boxes.append(boxes[number])
    elif change == "move" and shape:
        offsets, sizes = boxes[number]
        boxes[number] = (tuple(draw(st.integers(0, n - s)) for n, s in zip(shape, sizes, strict=True)), sizes)
    return shape, boxes


@settings(max_examples=200, deadline=None)
@given(boxed())
def test_it_says_what_counting_says(made: tuple[tuple[int, ...], list[Box]]) -> None:
    shape, boxes = made
    assert (why_not_whole(pieces(shape, boxes)) is None) == counted(shape, boxes)


@pytest.mark.parametrize(
    ("offsets", "sizes", "reason"),
    [
        ((-1, 0), (2, 2), "outside"),
        ((0, 0), (-2, 2), "outside"),
        ((1, 0), (2, 2), "outside"),
        ((10**30, 0), (2, 2), "outside"),
        ((0,), (2,), "offsets"),
        ((0, 0), (2,), "offsets"),
    ],
)
def test_a_box_that_does_not_lie_inside(offsets: tuple[int, ...], sizes: tuple[int, ...], reason: str) -> None:
    assert reason in (why_not_whole(pieces((2, 2), [(offsets, sizes)])) or "")


def test_pieces_of_two_tensors_are_none_of_one() -> None:
    first, second = pieces((4,), [((0,), (2,)), ((2,), (2,))])
    assert why_not_whole([first, second]) is None
    assert "float64" in (why_not_whole([first, replace(second, dtype="float64")]) or "")
    assert "(5,)" in (why_not_whole([first, replace(second, shape=(5,))]) or "")


def test_many_pieces_and_many_cuts_take_no_time() -> None:
    """Comparing each with each would take minutes."""
    many = pieces((100_000, 2), [((n, 0), (1, 2)) for n in range(100_000)])
    begin = time.process_time()
    assert why_not_whole(many) is None
    assert "hole" in (why_not_whole(many[:-1]) or "")
    assert "cut along" in (why_not_whole(pieces((2,) * 40, [((0,) * 40, (1,) * 40)] * 2)) or "")
    assert time.process_time() - begin < 5

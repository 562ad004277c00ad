from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.data.glyphs import lookalikes
from dmlscale.data.glyphs.faces import matplotlib_face
from dmlscale.data.glyphs.lookalikes import MIN_ALIKE_FRACTION, FaceReport, distinct_characters, inspect_face

SANS = matplotlib_face("DejaVuSans")


def test_face_shows_which_characters_are_alike() -> None:
    code_points = [ord(c) for c in "AB\u0391\u0412\u4e2d"]  # Latin, Greek, Cyrillic; the last is in no face
    report = inspect_face(SANS, code_points)
    assert report.is_drawn.tolist() == [True, True, True, True, False]
    assert report.alike.tolist() == [[0, 2], [1, 3]]


def test_what_stands_for_a_missing_character_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    # As with fonts whose table of characters promises more than they draw.
    monkeypatch.setattr(type(SANS), "characters", lambda face: frozenset({0x41, 0x4E2D}))
    assert inspect_face(SANS, [0x41, 0x4E2D]).is_drawn.tolist() == [True, False]


def test_blocks_do_not_change_the_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    code_points = [c for c in range(0x41, 0x450) if c in SANS.characters()]
    whole = inspect_face(SANS, code_points).alike
    assert len(whole) > 20
    monkeypatch.setattr(lookalikes, "_BLOCK", 7)
    np.testing.assert_array_equal(inspect_face(SANS, code_points).alike, whole)


def report(is_drawn: list[bool], alike: list[tuple[int, int]]) -> FaceReport:
    return FaceReport(np.array(is_drawn), np.array(alike, np.int64).reshape(-1, 2))


def test_the_first_of_lookalikes_is_kept() -> None:
    everything = [True, True, True]
    reports = [report(everything, [(0, 1)]), report(everything, [(0, 1)]), report(everything, [(1, 2)])]
    # 0 and 1 are alike in two of three faces, 1 and 2 in one; 2 is only like one that was dropped.
    assert distinct_characters(reports, min_faces=3).tolist() == [0, 2]


def test_only_faces_that_have_both_are_asked() -> None:
    reports = [report([True, True], [(0, 1)]), report([True, False], []), report([True, False], [])]
    assert distinct_characters(reports, min_faces=1).tolist() == [0]


def test_a_character_in_too_few_faces_is_left_out() -> None:
    reports = [report([True, True], []), report([True, False], [])]
    assert distinct_characters(reports, min_faces=2).tolist() == [0]


@settings(deadline=None)
@given(st.data())
def test_kept_are_those_that_a_slow_search_keeps(data: st.DataObject) -> None:
    n, num_faces, min_faces = (data.draw(st.integers(1, most)) for most in (6, 4, 3))
    reports = []
    for _ in range(num_faces):
        drawn = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
        pairs = [(i, j) for j in range(n) for i in range(j) if drawn[i] and drawn[j] and data.draw(st.booleans())]
        reports.append(report(drawn, pairs))
    kept: list[int] = []
    for j in range(n):
        looks_like_a_kept_one = False
        for i in kept:
            both = [r for r in reports if r.is_drawn[i] and r.is_drawn[j]]
            num_alike = sum([i, j] in r.alike.tolist() for r in both)
            looks_like_a_kept_one |= num_alike >= max(1, MIN_ALIKE_FRACTION * len(both))
        if sum(r.is_drawn[j] for r in reports) >= min_faces and not looks_like_a_kept_one:
            kept.append(j)
    assert distinct_characters(reports, min_faces).tolist() == kept

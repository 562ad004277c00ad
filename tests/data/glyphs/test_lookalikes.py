from __future__ import annotations

import numpy as np

from dmlscale.data.glyphs.lookalikes import FaceReport, distinct_characters, inspect_face


def test_face_shows_which_characters_are_alike() -> None:
    code_points = [ord(c) for c in "AB\u0391\u0412\u4e2d"]  # Latin, Greek, Cyrillic; the last is in no face
    report = inspect_face("DejaVuSans", code_points)
    assert report.is_drawn.tolist() == [True, True, True, True, False]
    assert report.alike.tolist() == [[0, 2], [1, 3]]


def report(is_drawn: list[bool], alike: list[tuple[int, int]]) -> FaceReport:
    return FaceReport(np.array(is_drawn), np.array(alike, np.int64).reshape(-1, 2))


def test_the_first_of_lookalikes_is_kept() -> None:
    everything = [True, True, True]
    reports = [report(everything, [(0, 1)]), report(everything, [(0, 1)]), report(everything, [(1, 2)])]
    # 0 and 1 are alike in two of three faces, 1 and 2 in one; 2 is only like one that was dropped.
    assert distinct_characters([1, 2, 3], reports, min_faces=3).tolist() == [0, 2]


def test_only_faces_that_have_both_are_asked() -> None:
    reports = [report([True, True], [(0, 1)]), report([True, False], []), report([True, False], [])]
    assert distinct_characters([1, 2], reports, min_faces=1).tolist() == [0]


def test_a_character_in_too_few_faces_is_left_out() -> None:
    reports = [report([True, True], []), report([True, False], [])]
    assert distinct_characters([1, 2], reports, min_faces=2).tolist() == [0]

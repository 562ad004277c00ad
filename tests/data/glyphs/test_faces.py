from __future__ import annotations

import pytest

from dmlscale.data.glyphs.faces import FACES, characters_of_face, font_file, is_drawable, shared_characters


def test_sixteen_faces_are_installed() -> None:
    assert len(FACES) == len(set(FACES)) == 16
    assert all(font_file(face).is_file() for face in FACES)


@pytest.mark.parametrize("character", ["A", "7", "+", "\u0416", "\u05d0", "\u221e", "\u2654"])
def test_letters_numbers_and_symbols_are_drawable(character: str) -> None:
    assert is_drawable(ord(character))


@pytest.mark.parametrize(
    "character", [" ", ".", "\u0301", "\u02c7", "\u02b0", "\u2502", "\u2588", "\u2801", "\u4e2d", "\uff21"]
)
def test_marks_frames_and_cjk_are_not(character: str) -> None:
    assert not is_drawable(ord(character))


def test_shared_characters_are_in_enough_faces() -> None:
    characters = shared_characters(FACES, 8)
    assert characters == sorted(set(characters))
    assert len(characters) > 2000
    for code_point in characters[::100]:
        assert sum(code_point in characters_of_face(face) for face in FACES) >= 8

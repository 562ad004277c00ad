from __future__ import annotations

from pathlib import Path

import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.glyphs.face import FontFile, characters_of_file
from dmlscale.data.glyphs.faces import FACES, is_drawable, matplotlib_face, shared_characters


def test_sixteen_faces_are_installed() -> None:
    assert len(FACES) == len(set(FACES)) == 16
    assert all(matplotlib_face(name).files[0].path.is_file() for name in FACES)


@pytest.mark.parametrize("character", ["A", "7", "+", "\u0416", "\u05d0", "\u221e", "\u2654"])
def test_letters_numbers_and_symbols_are_drawable(character: str) -> None:
    assert is_drawable(ord(character))


@pytest.mark.parametrize(
    "character", [" ", ".", "\u0301", "\u02c7", "\u02b0", "\u2502", "\u2588", "\u2801", "\u4e2d", "\uff21"]
)
def test_marks_frames_and_cjk_are_not(character: str) -> None:
    assert not is_drawable(ord(character))


def test_shared_characters_are_in_enough_faces() -> None:
    faces = [matplotlib_face(name) for name in FACES]
    characters = shared_characters(faces, 8)
    assert characters == sorted(set(characters))
    assert len(characters) > 2000
    for code_point in characters[::100]:
        assert sum(code_point in face.characters() for face in faces) >= 8


def test_the_first_file_that_has_a_character_draws_it() -> None:
    stix, dejavu = (matplotlib_face(name).files[0] for name in ("STIXGeneral", "DejaVuSans"))
    chain = matplotlib_face("STIXGeneral")._replace(files=(stix, dejavu))
    only_in_dejavu = min(characters_of_file(dejavu) - characters_of_file(stix))
    assert chain.file_of(ord("A")) == stix
    assert chain.file_of(only_in_dejavu) == dejavu
    assert chain.characters() == characters_of_file(stix) | characters_of_file(dejavu)


def test_a_file_that_is_no_font_is_named(tmp_path: Path) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"broken\.ttf \(face 0\) cannot be read"):
        characters_of_file(FontFile(tmp_path / "broken.ttf"))

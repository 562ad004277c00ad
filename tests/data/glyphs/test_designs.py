from __future__ import annotations

from pathlib import Path

import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.glyphs.designs import find_faces, known_designs
from tests.data.glyphs.fonts import save_design


def test_table_lists_every_design_once() -> None:
    designs = known_designs()
    assert len(designs) == 53
    assert {design.style for design in designs.values()} == {"ming", "hei", "kai", "hand", "brush", "display"}
    assert sum(design.is_default for design in designs.values()) == 28
    files = [file for design in designs.values() for file in design.files]
    assert len(set(files)) == len(files)
    assert all(file.package and Path(file.name).suffix in (".ttf", ".ttc", ".otf") for file in files)


def test_only_designs_that_are_there_are_taken(tmp_path: Path) -> None:
    save_design(tmp_path / "one" / "ukai.ttc", 0, [0x4E00])
    save_design(tmp_path / "HanaMinB.ttf", 0, [0x4E00])
    (tmp_path / "HanaMinA.ttf").symlink_to("nowhere")  # as packages have them
    faces = {face.name: face for face in find_faces(tmp_path, None)}
    assert set(faces) == {"AR-UKai", "HanaMin"}
    assert [file.path.name for file in faces["HanaMin"].files] == ["HanaMinB.ttf"]


def test_of_two_files_with_one_name_the_first_path_is_taken(tmp_path: Path) -> None:
    for folder in ("b", "a"):
        save_design(tmp_path / folder / "mine.ttf", 0, [0x4E00])
    (face,) = find_faces(tmp_path, ["mine.ttf"])
    assert face.files[0].path == tmp_path / "a" / "mine.ttf"
    assert face.name == "mine_ttf"


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"no folder {tmp_path}/x: fetch fonts with"):
        find_faces(tmp_path / "x", None)

"""The designs of Han characters: which font files of which Debian packages hold them."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from dmlscale.data.errors import DataError
from dmlscale.data.glyphs.face import Face, FontFile

FETCH_COMMAND = "python -m dmlscale.data.glyphs.fetch"

# Square characters that fill their field, one of them in every font of Han characters.
_REFERENCE = "\u570b\u56fd\u6771\U0002000b"
_REFERENCE_HEIGHT = 23  # pixels


class PackagedFile(NamedTuple):
    """A font file and the Debian package that holds it."""

    package: str
    name: str


class Design(NamedTuple):
    """One way of drawing Han characters."""

    name: str
    style: str  # ming, hei, kai, hand, brush, display
    files: tuple[PackagedFile, ...]  # the first one that has a character draws it
    is_default: bool  # in the smaller set that is fetched if nothing else is said


def known_designs() -> dict[str, Design]:
    """The designs of the table, by name."""
    with files("dmlscale.data.glyphs").joinpath("han_designs.tsv").open(encoding="utf-8") as table:
        rows = csv.DictReader(table, delimiter="\t")
        return {row["design"]: _design(row) for row in rows}


def _design(row: Mapping[str, str]) -> Design:
    packaged = tuple(PackagedFile(*file.split(":")) for file in row["files"].split())
    return Design(row["design"], row["style"], packaged, row["fetched"] == "default")


def find_faces(folder: Path, names: Sequence[str] | None) -> list[Face]:
    """The faces of designs whose font files are somewhere under ``folder``.

    Args:
        folder: searched with everything in it.
        names: designs of the table, or names of other font files ("Mine.otf", or "Mine.ttc:2" for a face of a
            collection); None takes every design of the table that is there.

    Raises:
        DataError: no such folder, or a design that was named is not in it.
    """
    if not folder.is_dir():
        raise DataError(f"no folder {folder}: fetch fonts with `{FETCH_COMMAND} {folder}`, or name a folder with fonts")
    paths = dict(_font_paths(folder))
    designs = known_designs()
    faces = []
    for name in designs if names is None else names:
        wanted = [file.name for file in designs[name].files] if name in designs else [name]
        found = [FontFile(paths[file], number) for file, number in map(_split_number, wanted) if file in paths]
        if found:
            faces.append(Face(_face_name(name), tuple(found), _REFERENCE, _REFERENCE_HEIGHT))
        elif names is not None:
            raise DataError(_not_found(folder, name, designs))
    return faces


def _font_paths(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of every file; of files with the same name, the first path comes last and so wins in a dict."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_file():
            yield path.name, path


def _split_number(file: str) -> tuple[str, int]:
    name, _, number = file.partition(":")
    if number and not number.isdecimal():
        raise DataError(f"han: design {file!r} must be a file name, or a file name, a colon and the number of a face")
    return name, int(number or 0)


def _face_name(name: str) -> str:
    return name.replace(".", "_").replace(":", "_")


def _not_found(folder: Path, name: str, designs: Mapping[str, Design]) -> str:
    if name in designs:
        needed = " or ".join(f"{file.name} (Debian package {file.package})" for file in designs[name].files)
        return f"han: design {name!r} needs {needed}, not in {folder}: fetch it with `{FETCH_COMMAND} {folder} --all`"
    near = difflib.get_close_matches(name, designs, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"han: {name!r} is neither a known design nor a font file in {folder}{hint}"

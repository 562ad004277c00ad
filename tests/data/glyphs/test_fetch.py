"""Fetching from a small archive: apt-get is a script that hands out packages built here."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.glyphs import fetch
from dmlscale.data.glyphs.designs import find_faces
from dmlscale.data.glyphs.fetch import main, packages_to_fetch
from tests.data.glyphs.fonts import save_design

needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="builds packages with dpkg-deb")

APT = """#!/bin/sh
for package; do :; done
echo "$package" >> "{archive}/asked"
cp "{archive}/$package.deb" . || {{ echo "E: Unable to locate package $package" >&2; exit 100; }}
"""


def build_package(archive: Path, package: str, names: list[str]) -> None:
    root = archive / f"{package}-root"
    for name in names:
        save_design(root / "usr" / "share" / "fonts" / name, 0, [0x4E00])
    documents = root / "usr" / "share" / "doc" / package
    documents.mkdir(parents=True)
    (documents / "copyright").write_text("a licence")
    (documents / "changelog").write_text("not wanted")
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN" / "control").write_text(
        f"Package: {package}\nVersion: 1\nArchitecture: all\nMaintainer: Test <test@example.org>\nDescription: test\n"
    )
    command = ["dpkg-deb", "--root-owner-group", "--build", str(root), str(archive / f"{package}.deb")]
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive of three packages: the first two are as the table has them, the last lacks its font."""
    folder = tmp_path / "archive"
    folder.mkdir()
    build_package(folder, "fonts-hanazono", ["HanaMinA.ttf", "HanaMinB.ttf", "other.ttf"])
    build_package(folder, "fonts-arphic-ukai", ["ukai.ttc"])
    build_package(folder, "fonts-konatu", ["renamed.ttf"])
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "apt-get").write_text(APT.format(archive=folder))
    (tools / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    return folder


def test_default_set_is_a_part_of_all() -> None:
    default, everything = packages_to_fetch(False), packages_to_fetch(True)
    assert (len(default), len(everything)) == (27, 45)
    assert default.items() < everything.items()
    assert everything["fonts-noto-cjk"] == {"NotoSansCJK-Regular.ttc", "NotoSerifCJK-Regular.ttc"}


@needs_dpkg
def test_fonts_and_licences_are_taken_and_what_failed_is_told(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "fonts"
    assert main([str(folder)]) == 1
    output = capsys.readouterr()
    assert f"{folder} holds the fonts of 2 of 27 packages" in output.out
    assert "fonts-konatu: holds no Konatu.ttf any more" in output.err
    assert "fonts-seto: " in output.err
    assert "Unable to locate package fonts-seto" in output.err
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {
        *(f"fonts-hanazono/{name}" for name in ("HanaMinA.ttf", "HanaMinB.ttf", "copyright")),
        *(f"fonts-arphic-ukai/{name}" for name in ("ukai.ttc", "copyright")),
    }
    assert {face.name for face in find_faces(folder, None)} == {"HanaMin", "AR-UKai"}


@needs_dpkg
def test_what_is_there_is_not_fetched_again(archive: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fonts"
    fetch.fetch(folder)
    (archive / "asked").unlink()
    assert len(fetch.fetch(folder)) == 25
    asked = (archive / "asked").read_text().split()
    assert len(asked) == 25
    assert not {"fonts-hanazono", "fonts-arphic-ukai"} & set(asked)


def test_a_machine_without_apt_gets_the_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([str(tmp_path / "fonts")]) == 1
    assert "apt-get is not on this machine" in (message := capsys.readouterr().err)
    assert "fonts-hanazono" in message


@needs_dpkg
def test_a_folder_that_cannot_be_written_is_named(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=f"cannot write to {tmp_path}/file/fonts"):
        fetch.fetch(tmp_path / "file" / "fonts")

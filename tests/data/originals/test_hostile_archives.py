"""Archives with members that would land, or lead, outside of the folder that they are unpacked into."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.originals.archives import open_files
from tests.data.hostile import add_file, add_special, everything_below

SPECIAL = {
    "link out of it": (tarfile.SYMTYPE, "../../outside"),
    "link to an absolute path": (tarfile.SYMTYPE, "/etc"),
    "hard link out of it": (tarfile.LNKTYPE, "../../outside/secret"),
    "character device": (tarfile.CHRTYPE, ""),
    "block device": (tarfile.BLKTYPE, ""),
    "pipe": (tarfile.FIFOTYPE, ""),
}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret").write_text("secret")
    return tmp_path / "outside"


@pytest.mark.parametrize("kind", SPECIAL)
def test_links_and_devices_of_a_compressed_tar_are_refused(tmp_path: Path, outside: Path, kind: str) -> None:
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as archive:
        add_file(archive, "a/1.jpg", b"1")
        add_special(archive, "a/evil", *SPECIAL[kind])
        add_file(archive, "a/evil/planted", b"planted")  # through the link, if it were there
    before = everything_below(tmp_path)
    with pytest.raises(DataError, match=r"x\.tgz is not unpacked: .*a/evil.* trust"):
        open_files(tmp_path / "x.tgz", tmp_path / "scratch")
    assert everything_below(tmp_path, [tmp_path / "scratch"]) == before
    assert (outside / "secret").read_text() == "secret"


@pytest.mark.parametrize("kind", SPECIAL)
def test_links_and_devices_of_a_plain_tar_are_no_files(tmp_path: Path, outside: Path, kind: str) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        add_special(archive, "a/evil", *SPECIAL[kind])
        add_file(archive, "../../a/2.jpg", b"2")
        add_file(archive, "/etc/passwd", b"3")
    before = everything_below(tmp_path)
    files = open_files(tmp_path / "x.tar", tmp_path / "scratch")
    assert {files.read(name) for name in files.names()} == {b"2", b"3"}  # bytes of the tar file itself
    for name in ("a/evil", "a/evil/secret", "../../outside/secret"):
        with pytest.raises(FileNotFoundError):
            files.read(name)
    assert everything_below(tmp_path, [tmp_path / "scratch"]) == before


def test_names_and_links_of_a_zip_lead_nowhere(tmp_path: Path, outside: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("../../outside/planted", b"1")
        archive.writestr("/etc/planted", b"2")
        link = zipfile.ZipInfo("a/link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "../../outside/secret")
    before = everything_below(tmp_path)
    files = open_files(tmp_path / "x.zip", tmp_path / "scratch")
    # A link's content is where it leads to, and that is all that is read.
    assert {files.read(name) for name in files.names()} == {b"1", b"2", b"../../outside/secret"}
    assert everything_below(tmp_path, [tmp_path / "scratch"]) == before

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.data.errors import DataError
from dmlscale.data.originals.archives import open_files
from dmlscale.data.originals.files import Files, FolderFiles
from dmlscale.data.originals.scratch_names import scratch_name
from tests.data.sources.official import write_folder, write_tar, write_zip

TREE = {
    "set/b/2.jpg": b"two" * 500,
    "set/b/10.jpg": b"ten",
    "set/a-b/1.jpg": b"one",
    "set/a/with space é.JPG": b"e",
    "set/a.txt": b"text",
    "set/a/deep/er/x.png": b"x",
    "notes.txt": b"",
}
SORTED = [
    "notes.txt",
    "set/a/deep/er/x.png",
    "set/a/with space é.JPG",
    "set/a-b/1.jpg",
    "set/a.txt",
    "set/b/10.jpg",
    "set/b/2.jpg",
]
FORMS = ["folder", "set.zip", "set.tar", "set.tgz", "set.tar.bz2", "set.tar.xz"]


def write(form: str, folder: Path) -> Path:
    if form == "folder":
        return write_folder({**TREE, ".hidden/a.jpg": b"h", "set/._x": b"h", "__MACOSX/y": b"h"}, folder / "folder")
    return (write_zip if form.endswith("zip") else write_tar)(TREE, folder / form)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_same_files(form: str, tmp_path: Path) -> None:
    files = open_files(write(form, tmp_path), tmp_path / "scratch")
    assert list(files.names()) == SORTED
    assert {name: files.read(name) for name in files.names()} == TREE
    with pytest.raises(FileNotFoundError, match=r"No such file.*missing\.jpg"):
        files.read("set/missing.jpg")
    assert "set/b/2.jpg" in files.location("set/b/2.jpg")


@pytest.mark.parametrize("form", FORMS)
def test_find_sees_the_files_from_the_marker(form: str, tmp_path: Path) -> None:
    files = open_files(write(form, tmp_path), tmp_path / "scratch")
    for marker, first in (("a.txt", "a/deep/er/x.png"), ("b/", "a/deep/er/x.png"), ("notes.txt", "notes.txt")):
        found = files.find(marker)
        assert found is not None
        assert next(iter(found.names())) == first
    found = files.find("a/")
    assert found is not None
    assert found.read("b/10.jpg") == b"ten"
    inner = found.find("er/")
    assert inner is not None
    assert list(inner.names()) == ["er/x.png"]
    for absent in ("a.tx", "2.jpg/", "er/x", "otes.txt"):
        assert files.find(absent) is None
    assert files.find("er/", depth=1) is None
    assert files.find("x.png") is None  # three folders lie around it


@given(names=st.sets(st.text("ab./- ", min_size=1, max_size=7), max_size=12))
@settings(max_examples=60, deadline=None)
def test_folder_and_archives_agree_on_order(names: set[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("agree")
    tree: dict[str, bytes] = {}
    for name in sorted(names, key=len, reverse=True):
        parts = [part for part in name.split("/") if part.strip(". ")]
        path = "/".join(parts)
        if parts and not any(f"{other}/".startswith(f"{path}/") or path.startswith(f"{other}/") for other in tree):
            tree[path] = path.encode()
    tree["z"] = b"z"
    forms = [write_folder(tree, folder / "f"), write_zip(tree, folder / "x.zip"), write_tar(tree, folder / "x.tar")]
    listed = [list(open_files(form, folder / "scratch").names()) for form in forms]
    assert listed[0] == listed[1] == listed[2]


def test_unpacking_happens_once_and_leaves_nothing_half(tmp_path: Path) -> None:
    path, scratch = write("set.tgz", tmp_path), tmp_path / "scratch"
    (scratch / f"{scratch_name(path)}.partial" / "set").mkdir(parents=True)
    open_files(path, scratch)
    assert len(list(scratch.iterdir())) == 1
    unpacked = next(scratch.rglob("a.txt"))
    before = unpacked.stat().st_mtime_ns, unpacked.stat().st_ino
    status = path.stat()
    path.write_bytes(path.read_bytes()[:2] + bytes(status.st_size - 2))  # it is not read again
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    open_files(path, scratch)
    assert (unpacked.stat().st_mtime_ns, unpacked.stat().st_ino) == before


@pytest.mark.parametrize("form", ["set.tar", "set.tgz"])
@pytest.mark.parametrize("change", ["rewritten", "elsewhere"])
def test_another_archive_of_the_same_name_and_size_is_not_taken_for_it(form: str, change: str, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    for number, data in enumerate((b"one", b"two")):
        folder = tmp_path / (str(number) if change == "elsewhere" else "0")
        folder.mkdir(exist_ok=True)
        with tarfile.open(folder / form, "w:gz" if form == "set.tgz" else "w") as archive:
            names = ["a", "b"] if number else ["b", "a"]  # the places differ too
            for name in names:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(name.encode() + data[1:]))
        size = 2**14  # gzip passes over zeros at the end
        (folder / form).write_bytes((folder / form).read_bytes().ljust(size, b"\0"))
        files = open_files(folder / form, scratch)
        assert {name: files.read(name)[:1] for name in files.names()} == {"a": b"a", "b": b"b"}
        assert files.read("a")[1:] == data[1:]


def test_the_places_of_a_tar_are_kept(tmp_path: Path) -> None:
    path, scratch = write("set.tar", tmp_path), tmp_path / "scratch"
    open_files(path, scratch)
    (kept,) = scratch.iterdir()
    kept.write_text(kept.read_text().replace("set/b/10.jpg", "set/b/11.jpg"))
    assert open_files(path, scratch).read("set/b/11.jpg") == b"ten"
    path.write_bytes(path.read_bytes() + bytes(512))  # another file under the same name
    assert open_files(path, scratch).read("set/b/10.jpg") == b"ten"


DIES_AT_A_FILE = """
import os, signal, sys, tarfile
from pathlib import Path
from dmlscale.data.originals.archives import open_files

extract = tarfile.TarFile.extract

def extract_or_die(archive, member, *rest, **options):
    if member.name.endswith("/20.bin"):
        os.kill(os.getpid(), signal.SIGKILL)
    extract(archive, member, *rest, **options)

tarfile.TarFile.extract = extract_or_die
open_files(*map(Path, sys.argv[1:]))
"""


def test_a_killed_unpacking_starts_anew(tmp_path: Path) -> None:
    tree = {f"folder/{number}.bin": os.urandom(2_000) for number in range(40)}
    path, scratch = write_tar(tree, tmp_path / "x.tgz"), tmp_path / "scratch"
    done = subprocess.run([sys.executable, "-c", DIES_AT_A_FILE, str(path), str(scratch)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert 0 < len(list(scratch.glob("*.partial/folder/*.bin"))) < 40
    assert [each.suffix for each in scratch.iterdir()] == [".partial"]
    files = open_files(path, scratch)
    assert {name: files.read(name) for name in files.names()} == tree
    assert [each.suffix for each in scratch.iterdir()] != [".partial"]


@pytest.mark.parametrize("form", FORMS[1:])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7])
def test_a_cut_off_archive_is_damaged(form: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / form
    tree = {f"set/{number}": os.urandom(700) for number in range(20)}
    (write_zip if form.endswith("zip") else write_tar)(tree, path)
    os.truncate(path, int(path.stat().st_size * kept))
    with pytest.raises(DataError, match=f"{form} is damaged"):
        open_files(path, tmp_path / "scratch")
    assert not [each for each in (tmp_path / "scratch").glob("*") if each.suffix != ".partial"]


@pytest.mark.parametrize("form", ["set.tgz", "set.tar.bz2", "set.tar.xz"])
def test_a_changed_byte_of_a_compressed_tar_is_found(form: str, tmp_path: Path) -> None:
    path = write_tar({f"set/{number}": os.urandom(700) for number in range(20)}, tmp_path / form)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(DataError, match="is damaged"):
        open_files(path, tmp_path / "scratch")


def test_a_tar_cut_off_between_two_files_is_damaged(tmp_path: Path) -> None:
    path = write_tar(TREE, tmp_path / "set.tar")
    os.truncate(path, path.read_bytes().index(b"./set/a.txt"))
    with pytest.raises(DataError, match=r"set\.tar is damaged"):
        open_files(path, tmp_path)


def test_a_damaged_header_of_a_tar_is_found(tmp_path: Path) -> None:
    path = write_tar(TREE, tmp_path / "set.tar")
    data = bytearray(path.read_bytes())
    data[data.index(b"./set/a.txt")] ^= 255
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"set\.tar is damaged.*neither a header nor the end at byte"):
        open_files(path, tmp_path)


def test_a_damaged_file_in_a_zip_fails_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"good")
        archive.writestr("b", b"unique bytes")
    path.write_bytes(path.read_bytes().replace(b"unique", b"nnique"))
    files = open_files(path, tmp_path)
    assert files.read("a") == b"good"
    with pytest.raises(ValueError, match=r"^is damaged in the zip file$"):
        files.read("b")


def test_what_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "set.zip"
    path.write_text("<html>Google Drive cannot scan this file for viruses</html>" * 20)
    with pytest.raises(DataError, match="web page"):
        open_files(path, tmp_path)
    with pytest.raises(DataError, match="cannot read"):
        open_files(tmp_path / "absent.zip", tmp_path)


@pytest.mark.parametrize("name", ["../outside.txt", "/abs/outside.txt", "a/../../outside.txt"])
def test_nothing_is_written_outside_of_the_scratch_folder(name: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    if name.startswith("/"):
        assert list(open_files(tmp_path / "x.tgz", tmp_path / "scratch").names()) == ["abs/outside.txt"]
    else:
        with pytest.raises(DataError, match="outside"):
            open_files(tmp_path / "x.tgz", tmp_path / "scratch")
    assert not list(tmp_path.glob("outside.txt"))


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    root = write_folder({"a/1.jpg": b"1"}, tmp_path / "root")
    write_folder({"2.jpg": b"2"}, tmp_path / "elsewhere")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "gone.jpg").symlink_to(tmp_path / "nothing.jpg")
    files = FolderFiles(root)
    assert list(files.names()) == ["a/1.jpg", "a/gone.jpg", "b/2.jpg"]
    assert files.read("b/2.jpg") == b"2"
    with pytest.raises(FileNotFoundError):
        files.read("a/gone.jpg")


def _read_all(files: Files) -> bool:
    names = list(files.names())
    return all(files.read(name) == name.encode() * 50 for _ in range(20) for name in names)


@pytest.mark.parametrize("form", ["x.zip", "x.tar"])
def test_threads_and_forked_processes_read_at_the_same_time(form: str, tmp_path: Path) -> None:
    tree = {f"a/{number}": f"a/{number}".encode() * 50 for number in range(40)}
    files = open_files((write_zip if form == "x.zip" else write_tar)(tree, tmp_path / form), tmp_path)
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: _read_all(files), range(4)))
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_exit_with, args=(files,)) for _ in range(3)]
    for child in children:
        child.start()
    assert _read_all(files)
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0, 0]


def _exit_with(files: Files) -> None:
    sys.exit(0 if _read_all(files) else 1)

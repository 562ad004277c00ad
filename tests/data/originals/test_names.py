from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlscale.data.originals.names import SampleKeys, key_of, readable

parts = st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=8)
paths = st.lists(parts, min_size=1, max_size=4).map("/".join)


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("001.Black_footed_Albatross/a_1.jpg", "001_Black_footed_Albatross/a_1"),
        ("bicycle_final/111_0.JPG", "bicycle_final/111_0"),
        ("a/b.c.jpg", "a/b_c"),
        ("a/noextension", "a/noextension"),
        ("a/.jpg", "a/_jpg"),
        ("../../etc/x.jpg", "etc/x"),
        ("/a//b.jpg", "a/b"),
        ("Ram C V/1.jpg", "Ram C V/1"),
        ("..", "_"),
    ],
)
def test_key_of_a_path(path: str, key: str) -> None:
    assert key_of(path) == key


@given(paths)
def test_a_key_is_what_webdataset_and_an_index_take(path: str) -> None:
    key = key_of(path)
    assert key
    assert "." not in key
    assert not key.startswith("/")
    key.encode()


@given(st.lists(paths, unique=True, max_size=30))
def test_different_paths_have_different_keys(listed: list[str]) -> None:
    keys = SampleKeys()
    assert len({keys.add(path) for path in listed}) == len(listed)


def test_a_number_only_where_the_replacement_made_a_clash() -> None:
    keys = SampleKeys()
    listed = ["a.b.jpg", "a_b.jpg", "a_b-2.jpg", "a_b.png", "c.jpg"]
    assert [keys.add(path) for path in listed] == ["a_b", "a_b-2", "a_b-2-2", "a_b-3", "c"]


def test_the_same_path_again_has_the_same_key() -> None:
    keys = SampleKeys()
    assert [keys.add(path) for path in ("a/x.jpg", "b/x.jpg", "a/x.jpg")] == ["a/x", "b/x", "a/x"]


def test_a_name_that_is_no_utf8_can_be_stored() -> None:
    name = b"\xe9t\xe9.jpg".decode("utf-8", "surrogateescape")
    assert readable(name) == "?t?.jpg"
    with tarfile.open(fileobj=io.BytesIO(), mode="w") as archive:
        archive.addfile(tarfile.TarInfo(key_of(name)))

"""Keys of samples, made of the paths of their files."""

from __future__ import annotations

from itertools import count

from dmlscale.data.fingerprint import content_hash


def readable(name: str) -> str:
    """The name with "?" for bytes that are no UTF-8, which an index cannot hold."""
    return name.encode("utf-8", "replace").decode("utf-8")


def key_of(path: str) -> str:
    """The key of a file: its path without the extension.

    "/" is kept, so unpacking a shard gives back the folders. Dots become "_", because WebDataset takes what follows the
    first one for the extension.

    Args:
        path: names joined by "/".
    """
    *folders, name = [part for part in readable(path).split("/") if part not in ("", ".", "..")] or ["_"]
    stem = name.rpartition(".")[0] or name
    return "/".join([*folders, stem]).replace(".", "_")


class SampleKeys:
    """Keys that stay unique: "-2", "-3", ... follow where two paths become the same key ("a.b.jpg", "a_b.jpg").

    The same path twice gives the same key twice: then the list itself is wrong, which is not to be hidden. Keys and
    paths are kept as hashes of 64 bits, about 110 bytes a sample.
    """

    def __init__(self) -> None:
        self._path_of_key: dict[int, int] = {}

    def add(self, path: str) -> str:
        """The key of the next path of a list; it depends on the paths before."""
        plain, number_of_path = key_of(path), _hash(path)
        for number in count(1):
            key = plain if number == 1 else f"{plain}-{number}"
            if self._path_of_key.setdefault(_hash(key), number_of_path) == number_of_path:
                return key
        raise AssertionError("count does not end")


def _hash(text: str) -> int:
    return content_hash([text.encode("utf-8", "surrogatepass")])

"""Errors that may pass are no rejects: they end the packing, and a repeat goes on."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dmlscale.data.errors import DataError
from dmlscale.data.packing.pack import pack
from dmlscale.data.packing.writing import PackOptions
from tests.data.listed import Listed, item


@dataclass(frozen=True)
class Failing(Listed):
    """A source of which one file cannot be read, as long as a file says so."""

    error: int = field(default=0, compare=False)
    flag: str = field(default="", compare=False)

    def load(self, ref: str) -> list[bytes]:
        if ref == self.listed[-1].ref and Path(self.flag).exists():
            raise OSError(self.error, os.strerror(self.error))
        return super().load(ref)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.ELOOP])
def test_a_file_that_is_not_there_is_a_reject(tmp_path: Path, number: int) -> None:
    (tmp_path / "flag").touch()
    source = Failing((item("a"), item("b")), error=number, flag=str(tmp_path / "flag"))
    assert pack(source, tmp_path / "out", PackOptions(num_processes=1)).rejects == {os.strerror(number): 1}


@pytest.mark.parametrize(
    ("num_processes", "number"),
    [(1, errno.EIO), (2, errno.EIO), (1, errno.EMFILE), (1, errno.ENOMEM), (1, errno.ESTALE)],
)
def test_what_may_pass_ends_the_packing_and_a_repeat_goes_on(tmp_path: Path, num_processes: int, number: int) -> None:
    (tmp_path / "flag").touch()
    listed = (*(item(str(n)) for n in range(64)), item("last", split="z_last"))
    source = Failing(listed, error=number, flag=str(tmp_path / "flag"))
    options = PackOptions(shard_size_bytes=1, num_processes=num_processes)
    with pytest.raises(
        DataError, match=rf"sample 'last' \(.*\) cannot be read: {os.strerror(number)}; finished shards"
    ):
        pack(source, tmp_path / "out", options)
    before = [path.stat().st_ino for path in sorted((tmp_path / "out" / ".packing").glob("train-*.tar"))]
    assert len(before) == 2
    (tmp_path / "flag").unlink()
    assert not pack(source, tmp_path / "out", options).rejects
    assert [path.stat().st_ino for path in sorted((tmp_path / "out").glob("train-*.tar"))] == before

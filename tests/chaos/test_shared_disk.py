from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from tests.chaos.shared_disk import SharedDisk
from tests.hosts.network import why_no_hosts

pytestmark = pytest.mark.skipif(why_no_hosts() is not None, reason=str(why_no_hosts()))


def test_a_full_disk_takes_no_byte_until_it_is_emptied(tmp_path: Path) -> None:
    with SharedDisk(tmp_path / "disk", megabytes=4) as disk:
        disk.fill()
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (disk.path / "file").write_bytes(bytes(4096))
        disk.empty()
        (disk.path / "file").write_bytes(bytes(4096))
    assert list((tmp_path / "disk").iterdir()) == []


def test_damage_is_one_byte_of_the_newest_whole_checkpoint(tmp_path: Path) -> None:
    with SharedDisk(tmp_path / "disk", megabytes=4) as disk:
        for step, files in ((10, ("a.safetensors", "record.json")), (20, ("b.safetensors", "record.json"))):
            (folder := disk.path / f"run/step_{step:08d}").mkdir(parents=True)
            for name in files:
                (folder / name).write_bytes(bytes(100))
        (unfinished := disk.path / "run/step_00000030").mkdir()
        (unfinished / "c.safetensors").write_bytes(bytes(100))
        damaged = disk.damage_newest_checkpoint()
        assert damaged.name == "step_00000020"
        changed = [file.name for file in disk.path.rglob("*") if file.is_file() and file.read_bytes() != bytes(100)]
        assert changed == ["b.safetensors"]

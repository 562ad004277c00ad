"""A source that lists what it is given: samples whose bytes are in their refs, for tests of packing."""

from __future__ import annotations

import errno
import io
import itertools
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from dmlscale.data.inputs import InputKind
from dmlscale.data.sources import Item

MISSING = "missing"  # ref of a file that is not there

_loads_of_this_process = itertools.count()


@lru_cache(maxsize=4096)
def picture(name: str, size: int = 8) -> bytes:
    """A grey PNG (size, size) whose pixels depend on the name."""
    rng = np.random.default_rng(list(name.encode()))
    file = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (size, size), np.uint8)).save(file, "png")
    return file.getvalue()


def item(
    key: str,
    class_name: str = "a",
    split: str = "train",
    *,
    parts: Sequence[bytes] | None = None,
    extension: str = "png",
    super_class: str = "",
) -> Item:
    """A sample of the given files; of one picture if there are none."""
    ref = " ".join(f"={part.hex()}" for part in parts or [picture(key)])
    return Item(key, class_name, split, ref, extension, super_class)


@dataclass(frozen=True)
class Listed:
    """A source of the given items.

    Args:
        listed: the items.
        input: what their files are.
        seconds: that loading one of them takes.
        num_quick: of the files that a process loads, the first so many take no time.
    """

    listed: tuple[Item, ...] = field(compare=False)
    input: InputKind = "image"
    seconds: float = field(default=0.0, compare=False)
    num_quick: int = field(default=0, compare=False)

    def open(self, scratch: Path) -> Listed:
        assert scratch.is_dir()
        return self

    def items(self) -> Iterator[Item]:
        yield from self.listed

    def load(self, ref: str) -> list[bytes]:
        if self.seconds and next(_loads_of_this_process) >= self.num_quick:
            time.sleep(self.seconds)
        if ref == MISSING:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), ref)
        return [bytes.fromhex(part[1:]) for part in ref.split()]


def mixed_items() -> tuple[Item, ...]:
    """240 samples of 12 classes of 2 to 60 under three super-classes, and 60 to test of which some classes are new."""
    rng = np.random.default_rng(0)
    sizes = [60, 45, 33, 25, 19, 15, 12, 10, 8, 6, 5, 2]
    of_split = {
        "train": np.repeat(np.arange(12), sizes),
        "test": np.repeat(np.arange(8, 14), 10),
    }
    listed = [
        item(f"{split}{number:04d}", f"c{label:02d}", split, super_class=f"s{label % 3}")
        for split, labels in of_split.items()
        for number, label in enumerate(rng.permutation(labels).tolist())
    ]
    return tuple(listed[n] for n in rng.permutation(len(listed)))

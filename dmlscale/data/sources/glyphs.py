"""Characters rendered in the fonts that matplotlib ships: a real zero-shot task without a download."""

from __future__ import annotations

import itertools
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from typing import NamedTuple, TypeVar

from dmlscale.data.errors import DataError
from dmlscale.data.glyphs.drawing import render
from dmlscale.data.glyphs.faces import FACES, characters_of_face, font_file, shared_characters
from dmlscale.data.glyphs.lookalikes import distinct_characters, inspect_face
from dmlscale.data.sources import SOURCES, TRAIN_SPLIT, SourceItem

TEST_SPLIT = "test"
_CHUNK = 64  # characters that one process renders before it answers

T = TypeVar("T")
R = TypeVar("R")


class GlyphClass(NamedTuple):
    """One class: a character and the faces that show it."""

    code_point: int
    split: str
    faces: tuple[str, ...]

    @property
    def name(self) -> str:
        """Class name, as Unicode writes it: "U+0041"."""
        return f"U+{self.code_point:04X}"


@SOURCES.register("glyphs")
@dataclass(frozen=True)
class Glyphs:
    """Grey 32 x 32 pictures of characters; class = character, one sample per font face.

    Letters, numbers and symbols that at least ``min_faces`` faces draw, without those that look like another
    one; a hash of the character decides whether it is seen in training, so the classes of "train" and "test"
    are disjoint. Each picture is rotated, scaled, sheared, shifted, blurred and noisy, once: a class never
    holds two versions of the same drawing.

    Args:
        faces: names of font files without their ending.
        min_faces: a character in fewer faces is no class.
        seed: of the augmentations; the classes and splits do not depend on it.
        limit_classes: keep the first so many classes of each split; None keeps all.
        num_processes: that render; None takes one per available core.
    """

    faces: tuple[str, ...] = FACES
    min_faces: int = 8
    seed: int = 0
    limit_classes: int | None = None
    num_processes: int | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        # A config file gives a list; equal options must be equal sources.
        object.__setattr__(self, "faces", tuple(self.faces))
        if not 1 <= self.min_faces <= len(self.faces):
            raise DataError(f"glyphs: min_faces={self.min_faces}, must be 1 to {len(self.faces)} (number of 'faces')")
        if self.limit_classes is not None and self.limit_classes < 1:
            raise DataError(f"glyphs: limit_classes={self.limit_classes}, must be at least 1 (or null for all)")
        if self.num_processes is not None and self.num_processes < 1:
            raise DataError(f"glyphs: num_processes={self.num_processes}, must be at least 1 (or null for all cores)")
        for face in self.faces:
            font_file(face)

    @property
    def num_items(self) -> int | None:
        """About how many pictures there will be: look-alikes are only known once drawn."""
        if self.limit_classes is not None:
            return self.limit_classes * 2 * (self.min_faces + len(self.faces)) // 2
        characters = shared_characters(self.faces, self.min_faces)
        in_faces = sum(len(characters_of_face(face).intersection(characters)) for face in self.faces)
        return round(in_faces * 0.83)  # 17 % of the pictures belong to look-alikes

    def items(self) -> Iterator[SourceItem]:
        """Every picture once, by class in code point order, then by face."""
        with ExitStack() as stack:
            ordered_map = _ordered_map(self.num_processes or len(os.sched_getaffinity(0)), stack)
            classes = self._classes(ordered_map)
            chunks = [classes[start : start + _CHUNK] for start in range(0, len(classes), _CHUNK)]
            for items in ordered_map(partial(_render_classes, seed=self.seed), chunks):
                yield from items

    def classes(self) -> list[GlyphClass]:
        """The classes of both splits, in code point order."""
        with ExitStack() as stack:
            return self._classes(_ordered_map(self.num_processes or len(os.sched_getaffinity(0)), stack))

    def _classes(self, ordered_map: OrderedMap) -> list[GlyphClass]:
        characters = shared_characters(self.faces, self.min_faces)
        if self.limit_classes is None:
            return self._distinct_classes(characters, ordered_map)
        # Keeping a character depends on those before it alone, so a prefix that is long enough is exact.
        for num_candidates in itertools.count(3 * self.limit_classes, 2 * self.limit_classes):
            classes = self._distinct_classes(characters[:num_candidates], ordered_map)
            limited = [
                [c for c in classes if c.split == split][: self.limit_classes] for split in (TRAIN_SPLIT, TEST_SPLIT)
            ]
            if all(len(part) == self.limit_classes for part in limited) or num_candidates >= len(characters):
                break
        return sorted(itertools.chain(*limited))

    def _distinct_classes(self, characters: list[int], ordered_map: OrderedMap) -> list[GlyphClass]:
        reports = list(ordered_map(partial(inspect_face, code_points=characters), self.faces))
        classes = []
        for position in distinct_characters(characters, reports, self.min_faces):
            faces = (face for face, report in zip(self.faces, reports, strict=True) if report.is_drawn[position])
            code_point = characters[position]
            classes.append(GlyphClass(code_point, _split_of(code_point), tuple(faces)))
        return classes


def _split_of(code_point: int) -> str:
    """Half of the characters each; a character's side depends on nothing but itself."""
    digest = blake2b(f"split/{code_point}".encode(), digest_size=1).digest()
    return TRAIN_SPLIT if digest[0] % 2 == 0 else TEST_SPLIT


def _render_classes(classes: list[GlyphClass], seed: int) -> list[SourceItem]:
    return [
        SourceItem(
            key=f"{face}_{glyph.code_point:05x}",
            data=render(face, glyph.code_point, seed),
            extension="png",
            class_name=glyph.name,
            split=glyph.split,
        )
        for glyph in classes
        for face in glyph.faces
    ]


class OrderedMap:
    """``map`` over processes, results in the order of the arguments; in this process if there is only one."""

    def __init__(self, pool: ProcessPoolExecutor | None) -> None:
        self._pool = pool

    def __call__(self, function: Callable[[T], R], arguments: Iterator[T] | list[T] | tuple[T, ...]) -> Iterator[R]:
        """Apply ``function`` to every argument."""
        if self._pool is None:
            yield from map(function, arguments)
            return
        try:
            yield from self._pool.map(function, arguments)
        except BrokenProcessPool:
            raise DataError(
                "glyphs: a rendering process died (out of memory, or started from a script without "
                "`if __name__ == '__main__':`): set num_processes=1"
            ) from None


def _ordered_map(num_processes: int, stack: ExitStack) -> OrderedMap:
    if num_processes == 1:
        return OrderedMap(None)
    # Not forked: this process may hold threads (torch, Ray) whose locks a fork would copy in any state.
    pool = ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn"))
    stack.callback(pool.shutdown, wait=True, cancel_futures=True)
    return OrderedMap(pool)

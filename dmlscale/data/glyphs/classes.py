"""Which characters are the classes of a dataset, and in which faces."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from dmlscale.data.glyphs.face import Face
from dmlscale.data.glyphs.lookalikes import FaceReport, distinct_characters
from dmlscale.data.sources import Item


class GlyphClass(NamedTuple):
    """One class: a character and the faces that show it."""

    code_point: int
    split: str
    faces: tuple[str, ...]

    @property
    def name(self) -> str:
        """Class name, as Unicode writes it: "U+0041"."""
        return f"U+{self.code_point:04X}"

    def items(self) -> Iterator[Item]:
        """One sample per face; its key is "DejaVuSans_00041", its ref "DejaVuSans/65"."""
        for face in self.faces:
            yield Item(
                key=f"{face}_{self.code_point:05x}",
                class_name=self.name,
                split=self.split,
                ref=f"{face}/{self.code_point}",
                extension="png",
            )


def find_classes(
    faces: Sequence[Face],
    candidates: Sequence[int],
    *,
    min_faces: int,
    split_of: Callable[[int], str],
    limits: Mapping[str, int] | None,
    ask: Callable[[Sequence[int]], list[FaceReport]],
) -> list[GlyphClass]:
    """The characters that enough faces draw and that look like none before them.

    Args:
        faces: that show the characters.
        candidates: code points; of characters that look alike, the first one is kept.
        min_faces: a character in fewer faces is no class.
        split_of: the split of a code point.
        limits: by split, how many classes to keep, the first ones; None keeps all.
        ask: reports of all faces on some of the candidates.

    Returns:
        Classes in code point order.
    """
    splits = [split_of(code_point) for code_point in candidates]
    # Keeping a character depends on those before it alone, so a prefix that is long enough is exact.
    for num_candidates in _prefixes(splits, limits):
        reports = ask(candidates[:num_candidates])
        by_split: dict[str, list[GlyphClass]] = {split: [] for split in dict.fromkeys(splits)}
        for position in distinct_characters(reports, min_faces).tolist():
            names = (face.name for face, report in zip(faces, reports, strict=True) if report.is_drawn[position])
            by_split[splits[position]].append(GlyphClass(candidates[position], splits[position], tuple(names)))
        if limits is None:
            break
        by_split = {split: classes[: limits[split]] for split, classes in by_split.items()}
        if all(len(by_split.get(split, ())) == limit for split, limit in limits.items()):
            break
    return sorted(itertools.chain(*by_split.values()))


def _prefixes(splits: Sequence[str], limits: Mapping[str, int] | None) -> Iterator[int]:
    """Numbers of candidates to look at until ``limits`` are reached; at last all of them."""
    places: dict[str, list[int]] = {}
    for position, split in enumerate(splits):
        places.setdefault(split, []).append(position)
    slack = 1.5  # some candidates look like others, or are not really drawn
    while limits is not None:
        needed = {split: round(slack * limit) for split, limit in limits.items() if limit}
        if any(number > len(places.get(split, ())) for split, number in needed.items()):
            break
        yield 1 + max(places[split][number - 1] for split, number in needed.items())
        slack *= 2
    yield len(splits)

"""Objects seen from several sides: the pictures of one object are one sample."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dmlscale.data.errors import DataError
from dmlscale.data.inputs import InputKind
from dmlscale.data.originals.archives import open_files
from dmlscale.data.originals.class_split import check_fraction, split_of_class
from dmlscale.data.originals.extensions import IMAGE_EXTENSIONS, extension_of
from dmlscale.data.originals.files import Files
from dmlscale.data.originals.names import SampleKeys, readable
from dmlscale.data.sources import SOURCES, Item, OpenSource

_logger = logging.getLogger(__name__)

_NEEDED, _OPTIONAL = ("class", "object", "view"), ("split",)


@SOURCES.register("views")
@dataclass(frozen=True)
class Views:
    """Pictures grouped by the object they show. The key of an object is <split>/<class>/<object>.

    The views of an object are in the order of their names. ModelNet40 as rendered for MVCNN (Su et al. 2015) has the
    pattern "<class>/<split>/<object>_<view>" (modelnet40v1) or "<class>/<split>/<object>.obj.shaded_v<view>"
    (modelnet40_images_new_12x, shaded_images).

    Args:
        path: a folder or an archive.
        pattern: how paths are made, without the extension; folders around it do not matter. Without "<split>" classes
            are dealt by a hash of their names.
        num_views: an object with another number is rejected; None takes what there is.
        train_fraction: share of the classes to train on, where the pattern has no split.
        seed: of the deal.
    """

    path: str
    pattern: str = "<split>/<class>/<object>/<view>"
    num_views: int | None = None
    train_fraction: float = 0.5
    seed: int = 0

    input: ClassVar[InputKind] = "views"

    def __post_init__(self) -> None:
        check_fraction("views", self.train_fraction)
        if self.num_views is not None and self.num_views < 1:
            raise DataError(f"views: num_views={self.num_views}, must be at least 1 (or null for any)")
        _expression(self.pattern)

    def open(self, scratch: Path) -> OpenSource:
        """See ``Source``."""
        place = Path(self.path).expanduser()
        if not place.exists():
            raise DataError(f"views: there is no {place}: set path to a folder or archive of pictures")
        return OpenViews(self, open_files(place, scratch))


@dataclass(frozen=True)
class OpenViews:
    """The objects in some files, see ``OpenSource``."""

    source: Views
    files: Files

    def items(self) -> Iterator[Item]:
        """See ``OpenSource``."""
        keys = SampleKeys()
        for (split, class_name, name), views in self._objects().items():
            # What follows the last dot would be taken for an extension.
            key = keys.add("/".join(part for part in (split, class_name, f"{name}.views") if part))
            if not split:
                split = split_of_class(class_name, self.source.train_fraction, self.source.seed)
            yield Item(key, class_name, split, "\n".join(views), extension_of(views[0]))

    def load(self, ref: str) -> Sequence[bytes]:
        """See ``OpenSource``; a file per view."""
        names = ref.split("\n")
        if self.source.num_views not in (None, len(names)):
            raise ValueError(f"has {len(names)} views, num_views={self.source.num_views}")
        return [self.files.read(name) for name in names]

    def _objects(self) -> dict[tuple[str, str, str], list[str]]:
        """Pictures by split ("" for none), class and object."""
        expression = _expression(self.source.pattern)
        objects: dict[tuple[str, str, str], list[str]] = {}
        unmatched = []
        for name in map(readable, self.files.names()):
            if extension_of(name) not in IMAGE_EXTENSIONS:
                continue
            match = expression.fullmatch(name)
            if match is None:
                unmatched.append(name)
                continue
            found = match.groupdict()
            objects.setdefault((found.get("split", ""), found["class"], found["object"]), []).append(name)
        if not objects:
            example = f", e.g. {unmatched[0]}" if unmatched else ""
            raise DataError(
                f"views: {self.source.path} has no picture that fits pattern={self.source.pattern!r}, but "
                f"{len(unmatched)} others{example}"
            )
        if unmatched:
            _logger.warning(
                "%s: passed over %d pictures that do not fit pattern=%r, e.g. %s",
                self.source.path,
                len(unmatched),
                self.source.pattern,
                unmatched[0],
            )
        return objects


def _expression(pattern: str) -> re.Pattern[str]:
    """What paths must match.

    Raises:
        DataError: the pattern has an unknown field, or one twice, or lacks one.
    """
    literals, fields = re.split(r"<[^<>]*>", pattern), re.findall(r"<([^<>]*)>", pattern)
    if len(fields) != len(set(fields)) or not set(_NEEDED) <= set(fields) <= {*_NEEDED, *_OPTIONAL}:
        raise DataError(
            f"views: pattern={pattern!r}, must have <class>, <object> and <view> once each (and <split>, if it tells)"
        )
    groups = [f"(?P<{field}>[^/]+)" for field in fields]
    path = "".join(re.escape(literal) + group for literal, group in zip(literals, [*groups, ""], strict=True))
    return re.compile(rf"(?:.*/)?{path}\.[^./]+")

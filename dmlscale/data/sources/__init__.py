"""Datasets to pack, one module each: a frozen dataclass of options that lists labelled samples and loads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol, runtime_checkable

from dmlscale.data.inputs import InputKind
from dmlscale.registry import Registry

if TYPE_CHECKING:
    from dmlscale.data.packing.foreign_shards import Scan

TRAIN_SPLIT = "train"
TEST_SPLIT = "test"


class Item(NamedTuple):
    """One sample as a source lists it: everything but its bytes."""

    key: str  # unique in the dataset; no dot, which WebDataset takes for the start of the extension
    class_name: str
    split: str  # "train", "test", ...
    ref: str  # where its bytes are: what `load` takes
    extension: str  # of its file, without the dot: "png", "jpg"
    super_class: str = ""  # where the dataset has a level above its classes
    defect: str = ""  # why it cannot be packed, if the list alone tells: then class and extension do not matter


class OpenSource(Protocol):
    """A source whose files are at hand. Packing opens one in each of its processes.

    Keys that repeat are rejects. Where an open source has ``makes_keys = True`` they are numbered instead ("x", "x-2"),
    unless the refs are the same too: then one file is listed twice.
    """

    def items(self) -> Iterator[Item]:
        """Every sample once, in an order that depends on the source's options and files alone.

        Raises:
            DataError: the list itself is unreadable; one bad sample is no error but fails in `load`.
        """

    def load(self, ref: str) -> Sequence[bytes]:
        """The file of one sample; several where it is made of several (views of an object).

        Raises:
            ValueError: it is damaged; the packer lists it among the rejects with this message, which should not name
                the file, so that equal reasons can be counted.
            OSError: it cannot be read. The packer rejects what is not there, is a folder or may not be read; another
                error (a disk that fails, a server that does not answer) ends the packing, and a repeat goes on.
        """


@runtime_checkable
class Source(Protocol):
    """A dataset that can be packed.

    A source is a frozen dataclass. Its fields are its options; a field that does not change the samples (a number of
    processes) is declared with ``field(compare=False)``, so two equal sources list the same samples.
    """

    __dataclass_fields__: ClassVar[dict]

    @property
    def input(self) -> InputKind:
        """What its files are; mostly a ClassVar."""

    def open(self, scratch: Path) -> OpenSource:
        """Make the files readable.

        Args:
            scratch: folder for what has to be unpacked first; the same for all processes of a packing, kept when it is
                cut off and deleted when it is complete. The packer opens the source once alone before its processes do.

        Raises:
            DataError: the files are not there, or not in the official layout; names what is missing and where to get
                it.
        """


@runtime_checkable
class ShardSource(Protocol):
    """Shards that are there already: only an index over them is made."""

    __dataclass_fields__: ClassVar[dict]

    @property
    def input(self) -> InputKind:
        """What the samples are."""

    def locations(self) -> list[tuple[str, str]]:
        """(path or URL, split) of each shard.

        Raises:
            DataError: there are none, or one is missing.
        """

    def scan(self, check: Callable[[Sequence[bytes]], str | None] | None) -> Scan:
        """What to look for in each shard.

        Args:
            check: tells why the files of a sample cannot be decoded; None looks into none.
        """


SOURCES: Registry[Source | ShardSource] = Registry("source", "dmlscale.data.sources")

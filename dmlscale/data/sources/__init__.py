"""Datasets to pack, one module each: a frozen dataclass of options that yields labelled files."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from dmlscale.registry import Registry

TRAIN_SPLIT = "train"


class SourceItem(NamedTuple):
    """One labelled file, as it goes into a shard."""

    key: str  # unique in the dataset; no dot, which WebDataset takes for the start of the extension
    data: bytes
    extension: str  # "png", "jpg"
    class_name: str
    split: str  # "train", "test", ...


@runtime_checkable
class Source(Protocol):
    """A dataset that can be packed.

    A source is a frozen dataclass. Its fields are its options; a field that does not change the items (a
    number of processes) is declared with ``field(compare=False)``, so two equal sources yield the same items,
    always in the same order.
    """

    __dataclass_fields__: ClassVar[dict]

    @property
    def num_items(self) -> int | None:
        """How many items to expect, for a progress bar; None where only reading them all would tell."""

    def items(self) -> Iterator[SourceItem]:
        """Every item once, in an order that depends on the options alone."""


SOURCES: Registry[Source] = Registry("source", "dmlscale.data.sources")

"""What a check of a dataset finds."""

from __future__ import annotations

from typing import NamedTuple


class Problem(NamedTuple):
    """Something that is wrong with a dataset."""

    where: str  # a shard or a table
    key: str  # of the sample; "" where it is the file itself
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {f'{self.key!r}: ' if self.key else ''}{self.what}"

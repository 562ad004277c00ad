"""What is wrong with the data, in words a person can act on."""

from __future__ import annotations


class DataError(ValueError):
    """A dataset, shard, sample or option is unusable; the message says which and what to do."""

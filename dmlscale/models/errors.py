"""What is wrong with a network, in words a person can act on."""

from __future__ import annotations


class ModelError(ValueError):
    """A network cannot be built as asked; the message names the config's key."""

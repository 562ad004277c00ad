"""Names that others chose, for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with "?" for what is no visible character: control characters of a name would steer the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)

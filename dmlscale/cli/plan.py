"""The command plan."""

from __future__ import annotations

from dmlscale.cli.commands import Commands


def add_plan(commands: Commands) -> None:
    """Adds plan."""

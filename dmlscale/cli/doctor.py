"""The command doctor."""

from __future__ import annotations

from dmlscale.cli.commands import Commands


def add_doctor(commands: Commands) -> None:
    """Adds doctor."""

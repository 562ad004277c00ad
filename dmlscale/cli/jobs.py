"""The commands on jobs of a Ray cluster: submit, jobs."""

from __future__ import annotations

from dmlscale.cli.commands import Commands


def add_job_commands(commands: Commands) -> None:
    """Adds submit and jobs."""

"""The command sync."""

from __future__ import annotations

import argparse

from dmlscale.cli.commands import Commands


def add_sync(commands: Commands) -> None:
    """Adds sync."""
    sync = commands.add_parser("sync", help="what runs recorded while MLflow was away -> MLflow")
    sync.add_argument("folders", nargs="+", metavar="FOLDER", help="of a run, of a sweep, or of many")
    sync.add_argument("--uri", metavar="STORE", help="another MLflow store, which gets the runs from their beginning")
    sync.set_defaults(run=_sync)


def _sync(options: argparse.Namespace) -> int:
    from dmlscale.launch.sync import sync

    return sync(options.folders, uri=options.uri)

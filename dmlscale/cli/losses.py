"""The command losses."""

from __future__ import annotations

import argparse

from dmlscale.cli.commands import Commands


def add_losses(commands: Commands) -> None:
    """Adds losses."""
    losses = commands.add_parser("losses", help="the catalogue: name, family, paper, hyper-parameters, what is sharded")
    losses.add_argument("name", nargs="?", help="of one loss, to read all about it")
    losses.add_argument(
        "--renew", metavar="FILE", help="write the tables into a document that has them: docs/losses.md"
    )
    losses.set_defaults(run=_losses)


def _losses(options: argparse.Namespace) -> int:
    from dmlscale.launch.loss_table import renew_document, show_loss, show_losses

    if options.renew:
        renew_document(options.renew)
    elif options.name:
        show_loss(options.name)
    else:
        show_losses()
    return 0

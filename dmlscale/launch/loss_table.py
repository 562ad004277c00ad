"""The catalogue of losses for a terminal."""

from __future__ import annotations

import inspect
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dmlscale.launch.errors import LaunchError
from dmlscale.losses import LOSSES
from dmlscale.losses.catalogue import DIVISORS, HEADINGS, SPACES, cells, entries, renewed, space_lines


def show_losses() -> None:
    """Prints a table of all losses."""
    table = Table(show_lines=True)
    for heading in HEADINGS:
        table.add_column(heading, no_wrap=heading == HEADINGS[0], overflow="fold")
    for entry in entries():
        table.add_row(*cells(entry))
    console = Console()
    console.print(table)
    console.print("dmlscale losses NAME tells formula, options and known differences of one of them.", highlight=False)


def show_loss(name: str) -> None:
    """Prints all that is known of one loss.

    Raises:
        UnknownNameError: there is none of that name.
    """
    cls = LOSSES[name]
    table = Table(show_header=False)
    entry = next(entry for entry in entries() if entry.name == name)
    for heading, text in zip(HEADINGS, cells(entry), strict=True):
        table.add_row(heading, text)
    table.add_row(DIVISORS[1], entry.divided_by)
    table.add_row(SPACES[1], escape("\n".join(space_lines(entry))) or "none")
    console = Console()
    console.print(table)
    console.print(inspect.cleandoc(cls.__doc__ or ""), markup=False, highlight=False)


def renew_document(file: str) -> None:
    """Writes the tables into a document that has them.

    Raises:
        LaunchError: there is no such document, or it has no such tables.
    """
    path = Path(file)
    try:
        path.write_text(renewed(path.read_text()))
    except (OSError, ValueError) as error:
        raise LaunchError(f"{file}: {error}") from None

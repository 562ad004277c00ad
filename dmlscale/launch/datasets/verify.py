"""The command ``verify``."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from dmlscale.data.index import Index
from dmlscale.data.inspection.verify import verify as find_problems

MOST_SHOWN = 100


def verify(path: str, *, num_processes: int | None = None, quick: bool = False) -> int:
    """Prints what is wrong with a packed dataset, one line each.

    Args:
        path: of its folder, or a URL.
        num_processes: that read shards; None takes one per available core.
        quick: compares tables and the sizes of shards, and opens none.

    Returns:
        0 if all is well, 1 if not.

    Raises:
        DataError: there is no dataset, or its tables cannot be opened.
    """
    index = Index.load(path)
    columns = (
        TextColumn("verifying"),
        BarColumn(),
        TextColumn("{task.completed:,} of {task.total:,} samples"),
        TimeRemainingColumn(),
    )
    count = 0
    # Lines go above the bar where both are on a terminal, and into a file where the output is one.
    bar = Progress(*columns, console=Console(stderr=True), redirect_stdout=sys.stdout.isatty(), transient=True)
    with bar:
        task = bar.add_task("verifying", total=len(index))
        for problem in find_problems(
            index,
            num_processes=num_processes,
            quick=quick,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        ):
            count += 1
            if count <= MOST_SHOWN:
                print(problem, flush=True)
    if count > MOST_SHOWN:
        print(f"and {count - MOST_SHOWN:,} other problems")
    seen = f"{len(index.shards.names):,} shards, {len(index):,} samples, {int(index.shards.sizes.sum()):,} bytes"
    well = "ok (tables and sizes only)" if quick else "ok"
    print(f"{seen}: {well if not count else '1 problem' if count == 1 else f'{count:,} problems'}")
    return 1 if count else 0

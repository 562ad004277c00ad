"""The newest checkpoint that is whole, wherever it is kept, as files of this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from dmlscale.distributed.world import World
from dmlscale.training.checkpoint.agreement import gather_texts, together
from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.integrity import Say, newest_for_all, verify
from dmlscale.training.checkpoint.store import LocalStore, Store, step_of_name


@contextmanager
def newest_here(store: Store, world: World, say: Say) -> Iterator[Path | None]:
    """As `newest_for_all`, for any store; copies of what is far are there for as long as the block lasts.

    Every rank has a copy of its own, as ranks may be on different machines.
    """
    if isinstance(store, LocalStore):
        yield newest_for_all(store.folder, world, say)
        return
    with TemporaryDirectory(prefix="checkpoint-") as folder:
        yield _newest_fetched(store, Path(folder), world, say)


def forget_others(store: Store, resumed: str | None) -> None:
    """Removes what an earlier start left beside the checkpoint that a run goes on from: partial ones and damaged ones.

    Those after ``resumed`` have been found damaged. They would count among the newest, and so drive out good ones.
    """
    for name in store.partial():
        store.remove(name)
    for name in store.complete():
        if resumed is not None and step_of_name(name) > step_of_name(resumed):
            store.remove(name)


def _newest_fetched(store: Store, folder: Path, world: World, say: Say) -> Path | None:
    found = together(lambda: store.complete() if world.rank == 0 else [], world)
    names = gather_texts("\n".join(reversed(found)), world)[0].split()
    problems = []
    for name, before in zip(names, [*names[1:], None], strict=False):
        damage = _fetch(store, name, folder, world)
        if not damage:
            return folder / name
        shutil.rmtree(folder / name, ignore_errors=True)
        problems.append(f"checkpoint {name} is damaged ({damage})")
        if before is not None:
            say(fault=f"{problems[-1]}: going back to {before}")
    if problems:
        raise CheckpointError(f"no checkpoint in {store.place} is whole: {', '.join(problems)}")
    return None


def _fetch(store: Store, name: str, folder: Path, world: World) -> str:
    """Copies a checkpoint to each rank; returns what is damaged, the same on all of them."""

    def fetch() -> str:
        return "; ".join(verify(store.fetch(name, folder)))

    # A server that does not answer is no damage: that ends the run here, to be started again.
    return next(filter(None, gather_texts(together(fetch, world), world)), "")

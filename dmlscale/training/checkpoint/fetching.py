"""The newest checkpoint that is whole, wherever it is kept, as files of this machine."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from dmlscale.distributed.world import World
from dmlscale.training.checkpoint.agreement import gather_texts, text_of_rank_0, together
from dmlscale.training.checkpoint.integrity import Say, first_whole, newest_for_all, verify
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
    names = text_of_rank_0("\n".join(reversed(found)), world).split()
    newest = first_whole(store.place, names, lambda name: _fetch(store, name, folder, world), say)
    return None if newest is None else folder / newest


def _fetch(store: Store, name: str, folder: Path, world: World) -> list[str]:
    """Copies a checkpoint to each rank, unless it is damaged; returns what is, the same on all of them."""

    def fetch() -> str:
        return "\n".join(verify(store.fetch(name, folder)))

    # A server that does not answer is no damage: that ends the run here, to be started again.
    damage = next(filter(None, gather_texts(together(fetch, world), world)), "").splitlines()
    if damage:
        shutil.rmtree(folder / name, ignore_errors=True)
    return damage

"""Going on from the newest checkpoint that is whole, wherever it is kept."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from dmlscale.distributed.world import World
from dmlscale.training.checkpoint.agreement import gather_texts, text_of_rank_0, together
from dmlscale.training.checkpoint.folder import read_record
from dmlscale.training.checkpoint.integrity import Say, first_whole, newest_for_all, verify
from dmlscale.training.checkpoint.loading import damage_met, load
from dmlscale.training.checkpoint.scratch import Scratch
from dmlscale.training.checkpoint.store import LocalStore, Store, step_of_name
from dmlscale.training.state import Record


def load_newest(store: Store, tensors: Mapping[str, Tensor], world: World, say: Say) -> tuple[str, Record] | None:
    """Fills ``tensors`` in place from the newest checkpoint that is whole.

    What is far is copied to a temporary folder first, once for all ranks of a machine, and removed when it is read.
    In a folder that all see, one that is damaged between being found whole and being read is passed over like others;
    one that is still whole then is not, as those passed over may be removed.

    Args:
        store: of the checkpoints.
        tensors: from `state.tensors`. After an error they hold anything.
        world: the ranks; all of them call this.
        say: called as ``say(fault=text)`` of each damaged checkpoint that is passed over.

    Returns:
        Its name, and where the run stood; None where there are no checkpoints. The same on every rank.

    Raises:
        CheckpointError: there are checkpoints, but none is whole; a whole one cannot be read by some rank; a tensor is
            missing, or has another shape or type; or the storage does not answer. On all ranks alike.
    """
    if isinstance(store, LocalStore):
        newest = newest_for_all(store.folder, world, say, lambda path: damage_met(path, tensors, world))
        return None if newest is None else (newest.name, together(partial(read_record, newest), world))
    token = text_of_rank_0(uuid.uuid4().hex, world)
    with together(lambda: Scratch(token), world) as scratch:
        newest = _newest_fetched(store, scratch.path, world, say)
        if newest is None:
            return None
        load(newest, tensors, world, is_verified=True)  # damage would be the copy's, and no reason to go back
        return newest.name, together(partial(read_record, newest), world)


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
    """Copies a checkpoint to each machine, unless it is damaged; returns what is, the same on all of them."""

    def fetch() -> str:
        return "\n".join(verify(store.fetch(name, folder)))

    # A server that does not answer is no damage: that ends the run here, to be started again.
    damage = next(filter(None, gather_texts(together(fetch, world), world)), "").splitlines()
    if damage:
        shutil.rmtree(folder / name, ignore_errors=True)
    return damage

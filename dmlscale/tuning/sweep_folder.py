"""The folder of a sweep: new, or one to continue, and for one process at a time."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dmlscale.launch.errors import LaunchError
from dmlscale.tuning.config import Sweep
from dmlscale.tuning.trial import read_json

SWEEP_FILE = "sweep.json"
DONE_FILE = "done.json"


@contextmanager
def sweep_folder(folder: Path, sweep: Sweep, *, resume: bool) -> Iterator[None]:
    """Makes or opens the folder, and holds it for the block's time.

    Raises:
        LaunchError: it is taken, cannot be written, was begun with other settings, or another process is at work in it.
    """
    before = read_json(folder / SWEEP_FILE)
    if before and not resume:
        raise LaunchError(f"{folder} holds a sweep already: add --resume to continue it, or choose another sweep.name")
    now = json.loads(json.dumps(sweep.as_values()))  # as the file would give it back
    if before and before != now:
        changed = [key for key in now if before.get(key) != now[key]]
        raise LaunchError(
            f"{folder} was begun with another {' and another '.join(changed)} ({folder / SWEEP_FILE}): set it back, or "
            "choose another sweep.name"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise LaunchError(f"run.folder: cannot write {folder}: {error}; choose another run.folder") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise LaunchError(f"another `dmlscale tune` is at work in {folder}: wait for it, or stop it") from None
        yield

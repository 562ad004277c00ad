"""Asking a run to stop, by SIGTERM or Ctrl-C, while Ray is in the same process."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], None]


@contextmanager
def stop_on_signal(stop_file: Path, asked: Callable[[], None] = lambda: None) -> Iterator[Mapping[int, Handler]]:
    """SIGTERM and Ctrl-C ask the workers to save and stop; a second one ends at once.

    Args:
        stop_file: whose presence asks them.
        asked: called at the first signal.
    """

    def ask(number: int, frame: FrameType | None) -> None:
        if stop_file.exists():
            raise KeyboardInterrupt
        stop_file.touch()
        print("\nstopping: saving a checkpoint first (once more to end at once)", flush=True)
        asked()

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield dict.fromkeys(before, ask)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop_file.unlink(missing_ok=True)


def beside(
    job: Callable[[], dict[str, Any]], handlers: Mapping[int, Handler], look: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Runs a job in a thread and waits for it here, where signals arrive.

    Ray puts handlers of its own in place, from Python if it is started in the main thread and from C++ in any: a
    stop would then end the run without a checkpoint. So it is started in another thread, and ours are kept.

    Args:
        job: to run.
        handlers: by signal.
        look: called again and again while it runs; an error that it raises ends the waiting.
    """
    done: Future[dict[str, Any]] = Future()

    def run() -> None:
        try:
            done.set_result(job())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="job", daemon=True).start()
    while not done.done():
        for number, handler in handlers.items():
            signal.signal(number, handler)
        look()
        wait([done], timeout=0.2)
    return done.result()

"""Looks after the nodes under a training: whom it can take in, and who is about to leave.

For both the workers start anew, and what they did since the last checkpoint would be lost. So they are asked to save
and end first, as on SIGTERM, but the run goes on by itself.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from types import TracebackType

from dmlscale.config.schema import ResourcesConfig
from dmlscale.launch.recovery.attempt import last_attempt
from dmlscale.launch.recovery.elastic import Node, nodes, of_one_worker, room
from dmlscale.launch.task import Task

_ENDS_WITHIN_S = 10.0  # unless the cluster does not answer


class Membership:
    """Watches in a thread while workers are at work: ``with membership:`` around each of their starts.

    Args:
        task: the training.
        resources: for it.
        use_gpu: whether each worker has a GPU.
        say: takes one line for the user.
        nodes: tells those that are up.
        every_s: seconds between two looks at them.
    """

    def __init__(
        self,
        task: Task,
        resources: ResourcesConfig,
        *,
        use_gpu: bool,
        say: Callable[[str], None] = print,
        nodes: Callable[[], Sequence[Node]] = nodes,
        every_s: float = 2.0,
    ) -> None:
        self._task, self._resources, self._say = task, resources, say
        self._nodes, self._every_s = nodes, every_s
        self._worker = of_one_worker(resources, use_gpu=use_gpu)
        self._number, self._hosts = last_attempt(task.attempts)
        self._is_first = True  # until workers of this command have begun
        self._told: set[str] = set()  # nodes that are about to leave, of which the workers know
        self._last_room = 0
        self._asked_with: frozenset[str] = frozenset()  # nodes that were there when the workers were asked to be more

    def __enter__(self) -> Membership:
        self._task.hand_over_file.unlink(missing_ok=True)
        self._is_at_work, self._last_room = False, 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(self._done,), name="membership", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(_ENDS_WITHIN_S)
        self._task.hand_over_file.unlink(missing_ok=True)

    def _watch(self, done: threading.Event) -> None:
        while not done.wait(self._every_s):
            try:
                there = self._nodes()
            except Exception:  # of a cluster that does not answer now: no reason to end the training
                continue
            if not done.is_set():
                with suppress(OSError):  # of storage that does not answer now: the same
                    self._look(there)

    def _look(self, there: Sequence[Node]) -> None:
        number, hosts = last_attempt(self._task.attempts)
        if number != self._number:
            up = {node.host for node in there if node.leaves_at is None}
            line = number_line(hosts, self._hosts, up, self._resources.workers, is_first=self._is_first)
            if line is not None:
                self._say(line)
            self._number, self._hosts = number, hosts
            self._is_at_work, self._is_first = True, False
        if not self._is_at_work or self._task.hand_over_file.exists():
            return
        why = self._leaving(there) or self._joined(there)
        if why is not None:
            self._task.hand_over_file.touch()
            self._say(why)

    def _leaving(self, there: Sequence[Node]) -> str | None:
        """Why to start elsewhere; once for each node, whatever came of it."""
        notices = [node for node in there if node.leaves_at is not None and node.key not in self._told]
        self._told.update(node.key for node in notices)
        return leaving_line([node for node in notices if node.host in self._hosts], time.time())

    def _joined(self, there: Sequence[Node]) -> str | None:
        """Why to start with more workers; once for the same nodes, whatever came of it."""
        if self._resources.min_workers is None:
            return None
        at_work = len(self._hosts)
        more = min(self._resources.workers - at_work, room(there, self._worker, only_free=True))
        # Seen twice: workers that have just failed also leave room, before this start is over.
        lasts, self._last_room = min(more, self._last_room), more
        keys = frozenset(node.key for node in there)
        if lasts <= 0 or keys == self._asked_with:
            return None
        self._asked_with = keys
        return f"there is room for {at_work + more} workers: saving a checkpoint, to go on with them"


def leaving_line(notices: Sequence[Node], now: float) -> str | None:
    """What to say of nodes with workers that are about to be taken away; None if there are none.

    Args:
        notices: these nodes.
        now: in seconds since 1970.
    """
    if not notices:
        return None
    names = ", ".join(sorted({node.host for node in notices}))
    deadline = min((node.leaves_at for node in notices if node.leaves_at), default=0.0)
    when = f"in {max(0.0, deadline - now):.0f} s" if deadline else "soon"
    return f"notice: {names} will be taken away {when}: saving a checkpoint, to go on elsewhere"


def number_line(
    hosts: Sequence[str], before: Sequence[str], there: Collection[str], wanted: int, *, is_first: bool
) -> str | None:
    """What to say of the number of workers that have started; None for as many as ever.

    Args:
        hosts: of these workers.
        before: of those that they follow.
        there: hosts that are up, and stay.
        wanted: ``resources.workers``.
        is_first: whether this command has not yet started any.
    """
    if len(hosts) == wanted:
        return None if is_first or len(before) == wanted else f"{wanted} workers again"
    gone = sorted(set(before) - set(there))
    why = f", without {', '.join(gone)}" if gone and not is_first else ": there is no room for more"
    return f"going on with {len(hosts)} of {wanted} workers{why}"

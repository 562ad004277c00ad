"""Ends a worker that waits for a partner that is gone or hangs, and says for whom: Ray then starts all of them again.

Ray notices a worker that dies, and nothing else; gloo and NCCL notice a connection that is closed. A cut network, a
machine that is off, a process that is stopped and a collective that not all ranks call are noticed here, within
`resources.heartbeat_timeout_s` or `resources.stall_timeout_s` (`resources.first_step_timeout_s` until the first step is
done). The time limit of the process group stays as the second
line of defence, and for GPUs so does TORCH_NCCL_ASYNC_ERROR_HANDLING, which Ray sets: it ends a process whose
collective has taken longer than that limit.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch

from dmlscale.config.schema import ResourcesConfig
from dmlscale.distributed.beats import FIRST_PHASES, PHASES, TIMED_PHASES, Beat, Limits, Peer
from dmlscale.distributed.heartbeats import Hub, Spoke
from dmlscale.distributed.verdicts import Verdict, named
from dmlscale.distributed.world import World
from dmlscale.launch.ranks import OverRanks
from dmlscale.launch.recovery.attempt import Attempt
from dmlscale.launch.recovery.failures import first_line
from dmlscale.launch.recovery.watch_notes import WatchNotes

# Of a worker that a watchdog has ended; no other part of the package, and nothing in sysexits.h, has it.
EXIT_BY_WATCHDOG = 79


class Watch:
    """One rank's watchdog; all ranks make it at the same time.

    Args:
        attempt: this start of the workers; None where they are not numbered: nothing is then written down.
        world: the ranks.
        device: of this rank.
        limits: when to take a rank for lost or hung.
        restartable: whether somebody starts the workers again when this process ends. If not, it goes on whatever
            happens, and what was found is only told.
        tell: takes the line for the user where the process goes on.
    """

    def __init__(
        self,
        attempt: Attempt | None,
        world: World,
        device: torch.device,
        limits: Limits,
        *,
        restartable: bool,
        tell: Callable[[str], None],
    ) -> None:
        self._rank, self._limits = world.rank, limits
        self._restartable, self._tell = restartable, tell
        self._place = (0, "start", time.monotonic())
        self._first_step = -1
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        listening = _listen() if world.rank == 0 and world.num_ranks > 1 else None
        cards = _exchange_cards(listening, world, device)
        self._peers = [Peer(card["host"], card["pid"]) for card in cards]
        self._notes = WatchNotes(attempt, world.rank, self._peers[world.rank].host)
        key = cards[0]["key"]
        self._side: Hub | Spoke
        if world.rank == 0:
            self._side = Hub(self._peers, limits, key, self._beat)
            watch: Any = self._side.watch(listening, self._judged, self._leave)
        else:
            self._side = Spoke(world.rank, self._peers, limits, key, self._beat)
            hub = cards[0]
            watch = self._side.watch(hub["address"], hub["port"], self._judged, self._leave)
        threading.Thread(target=asyncio.run, args=(watch,), name="heartbeats", daemon=True).start()
        if restartable and attempt is not None:
            threading.Thread(target=self._fence, args=(attempt,), name="fence", daemon=True).start()

    def at(self, step: int, phase: str) -> None:
        """Where this rank is now.

        Args:
            step: steps done.
            phase: see `dmlscale.distributed.beats.PHASES`.

        Raises:
            ValueError: it is none of them.
        """
        if phase not in PHASES:
            raise ValueError(f"{phase!r} is no phase of a run: {', '.join(PHASES)}")
        self._place = (step, phase, time.monotonic())
        if self._first_step < 0 and phase == "data":
            self._first_step = step

    @contextmanager
    def during(self, phase: str) -> Iterator[None]:
        """Is in another phase for a while, and then where it was."""
        step, before, _ = self._place
        self.at(step, phase)
        yield
        self.at(step, before)

    def end(self, error: BaseException | None = None) -> None:
        """That this rank has ended, in order or with an error; others are not ended for its silence.

        After an error they are, with its first line, if it is still waited for when the heartbeat timeout is over.
        """
        self._failure = error
        self.at(self._place[0], "end" if error is None else "failed")
        self._ended.set()
        self._side.end()

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end(error)

    def _beat(self) -> Beat:
        step, phase, since = self._place
        # Whatever is fetched, compiled, tuned, opened or started is before the first step's end.
        is_first = self._first_step < 0 or step == self._first_step
        error = "" if self._failure is None else first_line(self._failure)
        return Beat(
            step,
            phase,
            time.monotonic() - since,
            timed=phase in TIMED_PHASES and not is_first,
            error=error,
            is_first=phase in FIRST_PHASES and is_first,
        )

    def _fence(self, attempt: Attempt) -> None:
        """Apart from the beats, since storage that hangs would hold them up."""
        while not self._ended.wait(self._limits.heartbeat_timeout_s / 2):
            try:
                is_current = attempt.is_current()
            except OSError:
                continue  # whether storage is there is not this thread's business
            if not is_current and not self._ended.is_set():
                beat = self._beat()
                who = f"{named([self._rank], self._peers)}, at {beat}, is of an earlier start of the workers"
                self._judged(Verdict("superseded", f"{who}: a later one has begun", beat.step, (self._rank,)))
                self._leave()

    def _judged(self, verdict: Verdict) -> None:
        """Writes down what was found, for whoever starts the workers again, or tells it."""
        stacks = self._notes.write(verdict)
        if self._restartable:
            print(verdict.message, file=sys.stderr, flush=True)
        else:
            self._tell(verdict.message + (f" (stacks: {stacks})" if stacks else ""))

    def _leave(self) -> None:
        """Ends this process at once, whose main thread may wait in a collective for ever."""
        if self._restartable:
            os._exit(EXIT_BY_WATCHDOG)


def watch_limits(resources: ResourcesConfig) -> Limits:
    """When a run's ranks are taken for lost or hung."""
    first = max(resources.first_step_timeout_s, resources.stall_timeout_s)
    return Limits(resources.heartbeat_timeout_s, resources.stall_timeout_s, first)


def _listen() -> socket.socket:
    """A port at the address at which the others found rank 0 for the process group, or at this host's own."""
    for host in (os.environ.get("MASTER_ADDR"), socket.gethostname()):
        try:
            if host:
                return socket.create_server((host, 0), backlog=1024, family=_family(host))
        except OSError:  # a name that leads to another interface, or nowhere
            continue
    return socket.create_server(("127.0.0.1", 0), backlog=1024)


def _family(host: str) -> socket.AddressFamily:
    return socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][0]


def _exchange_cards(listening: socket.socket | None, world: World, device: torch.device) -> list[dict[str, Any]]:
    """Each rank's host and process, and where rank 0 listens; all ranks get all of them."""
    card: dict[str, Any] = {"host": socket.gethostname(), "pid": os.getpid(), "key": secrets.token_hex(16)}
    if listening is not None:
        address, port = listening.getsockname()[:2]
        card |= {"address": address, "port": port}
    return [json.loads(text) for text in OverRanks(world, device).texts(json.dumps(card))]

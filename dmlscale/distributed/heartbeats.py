"""Each rank tells rank 0 where it is, every few seconds, and hears from it: so none waits for a partner that is gone.

Gloo and NCCL wait for half an hour in a collective whose partner is cut off or hangs. The beats go over connections of
their own, in a thread of their own that never holds up the training. They are plain sockets and not a `TCPStore`,
whose ``get`` was seen to wait without end for a server that is stopped or cut off, whatever its timeout, and which
writes a page of C++ frames for each connection that breaks.

Rank 0 is the hub: it judges all ranks and tells each of them its verdict, so that all end with the same words. The
others judge rank 0 alone. A connection that breaks is made again; what counts is silence.

The beats need Python's lock: a call that keeps it for longer than the timeout looks like a lost rank.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from dmlscale.distributed.beats import Beat, Limits, Patience, Peer
from dmlscale.distributed.verdicts import Judge, Verdict, lost_hub

_LONGEST_LINE = 8192
# What ends a conversation and nothing else: a broken connection, a stranger, a rank that dies within a line.
_TALK_ERRORS = (OSError, ValueError, TypeError, KeyError, RecursionError)
# From a verdict to the end of rank 0, which closes the connections.
_LINGER_S = 0.3
_LONGEST_LAST_S = 2.0

OnVerdict = Callable[[Verdict], None]


class _Side:
    """What both sides have: a loop that is woken once a period, or by another thread when this rank has ended."""

    def __init__(self, peers: Sequence[Peer], limits: Limits, key: str, beat: Callable[[], Beat]) -> None:
        self._peers, self._limits, self._key, self._beat = peers, limits, key, beat
        self._has_ended, self._said_last = False, threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()

    def end(self) -> None:
        """That this rank has ended, as its last beat says; called in another thread, which waits until that is said."""
        self._has_ended = True
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(self._woken.set)
        self._said_last.wait(_LONGEST_LAST_S)

    async def _pause(self) -> None:
        self._loop = asyncio.get_running_loop()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._woken.wait(), self._limits.period_s)
        self._woken.clear()

    @property
    def _patience_s(self) -> float:
        """For a connection, and its first line."""
        return self._limits.period_s + 1.0


class Hub(_Side):
    """Rank 0's side.

    Args:
        peers: all ranks' processes.
        limits: when to judge.
        key: secret of this start of the workers: nobody else is listened to.
        beat: tells where rank 0 is.
    """

    def __init__(self, peers: Sequence[Peer], limits: Limits, key: str, beat: Callable[[], Beat]) -> None:
        super().__init__(peers, limits, key, beat)
        self._beats: dict[int, Beat] = {}
        self._counts: Counter[int] = Counter()
        self._writers: dict[int, asyncio.StreamWriter] = {}
        self._server: asyncio.Server | None = None

    async def watch(self, listening: socket.socket | None, on_verdict: OnVerdict, leave: Callable[[], None]) -> None:
        """Until all ranks have ended, or for as long as this process goes on after a verdict.

        Args:
            listening: where the others come to; None if there are none.
            on_verdict: takes it. It is not called once rank 0 has ended; the hub goes on for the others.
            leave: called when the others know of it; may end this process.
        """
        if listening is not None:
            self._server = await asyncio.start_server(self._hear, sock=listening, limit=_LONGEST_LINE)
        judge = Judge(self._peers, self._limits, time.monotonic())
        while not self._all_have_ended():
            await self._pause()
            if not (0 in self._beats and self._beats[0].is_last):
                self._take(0, self._beat())
            verdict = judge.look(self._beats, self._counts, time.monotonic())
            is_here = not self._has_ended
            if verdict is not None and is_here:
                on_verdict(verdict)  # first: when the others end, this rank's collective may raise, which ends it too
            self._tell(verdict)
            if not is_here:
                self._said_last.set()
            if verdict is not None:
                await asyncio.sleep(_LINGER_S)
                if is_here:
                    leave()
                if verdict.kind != "stalled":
                    break
        if self._server is not None:
            self._server.close()

    def _all_have_ended(self) -> bool:
        return len(self._beats) == len(self._peers) and all(beat.is_last for beat in self._beats.values())

    def _take(self, rank: int, beat: Beat) -> None:
        self._beats[rank] = beat
        self._counts[rank] += 1

    def _tell(self, verdict: Verdict | None) -> None:
        # One that has ended in order may be gone before the others; one that has failed is still waited for.
        line = _line({"verdict": verdict and asdict(verdict), "is_over": self._beats[0].phase == "end"})
        for writer in self._writers.values():
            writer.write(line)  # does not wait for one that is cut off

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rank = 0
        # Cancelled when the hub's loop ends; the server would write a page of frames for each connection.
        with suppress(*_TALK_ERRORS, asyncio.CancelledError):
            hello = json.loads(await asyncio.wait_for(reader.readline(), self._patience_s))
            if hmac.compare_digest(str(hello["key"]), self._key) and 0 < int(hello["rank"]) < len(self._peers):
                rank = int(hello["rank"])
                self._writers[rank] = writer
                while line := await reader.readline():
                    self._take(rank, Beat(**json.loads(line)))
        if self._writers.get(rank) is writer:
            del self._writers[rank]
        writer.close()


class Spoke(_Side):
    """The side of every other rank.

    Args:
        rank: of this process.
        peers: all ranks' processes.
        limits: when to judge rank 0.
        key: the hub's.
        beat: tells where this rank is.
    """

    def __init__(self, rank: int, peers: Sequence[Peer], limits: Limits, key: str, beat: Callable[[], Beat]) -> None:
        super().__init__(peers, limits, key, beat)
        self._rank = rank
        self._writer: asyncio.StreamWriter | None = None
        self._is_connected = asyncio.Event()
        self._verdict: Verdict | None = None
        self._heard_at, self._hub_is_over = 0.0, False

    async def watch(self, host: str, port: int, on_verdict: OnVerdict, leave: Callable[[], None]) -> None:
        """Until this rank has ended, or for as long as this process goes on after a verdict.

        Args:
            host: of the hub.
            port: of the hub.
            on_verdict: takes it.
            leave: called then; may end this process.
        """
        silence = Patience(self._limits.heartbeat_timeout_s - self._limits.period_s, self._limits.period_s)
        conversation = asyncio.create_task(self._converse(host, port))
        self._heard_at = last_look = time.monotonic()
        while not self._has_ended:
            await self._pause()
            now = time.monotonic()
            verdict, self._verdict = self._verdict, None
            in_vain = self._heard_at < last_look and not self._hub_is_over
            if silence.is_over(now - last_look, in_vain=in_vain) and verdict is None:
                verdict = lost_hub(self._peers, self._rank, self._beat(), now - self._heard_at)
            last_look = now
            if conversation.done() and not self._hub_is_over:
                conversation = asyncio.create_task(self._converse(host, port))
            self._say()
            if verdict is not None and not self._has_ended:
                on_verdict(verdict)
                leave()
                if verdict.kind != "stalled":
                    break
        await self._leave(conversation)

    def _say(self) -> None:
        if self._writer is not None:
            self._writer.write(_line(self._beat()._asdict()))

    async def _converse(self, host: str, port: int) -> None:
        with suppress(*_TALK_ERRORS):
            reader, writer = await asyncio.wait_for(
                asyncio.open_connection(host, port, limit=_LONGEST_LINE), self._patience_s
            )
            try:
                writer.write(_line({"key": self._key, "rank": self._rank}))
                self._writer = writer
                self._is_connected.set()
                self._say()
                while line := await reader.readline():
                    self._heard_at = time.monotonic()
                    said = json.loads(line)
                    self._hub_is_over = said["is_over"]
                    if found := said["verdict"]:
                        self._verdict = Verdict(**found | {"suspects": tuple(found["suspects"])})
                        self._woken.set()
            finally:
                self._writer = None
                self._is_connected.clear()
                writer.close()

    async def _leave(self, conversation: asyncio.Task[None]) -> None:
        """Says the last beat, and closes the connection when that is on its way."""
        with suppress(OSError):
            await asyncio.wait_for(self._is_connected.wait(), _LONGEST_LAST_S / 2)
            if (writer := self._writer) is not None:
                self._say()
                writer.close()
                await asyncio.wait_for(writer.wait_closed(), _LONGEST_LAST_S / 2)
        conversation.cancel()
        self._said_last.set()


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"

"""Waiting, and measuring time, in an event loop on a machine that may have much else to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from dmlscale.distributed.heartbeats import Hub, Spoke


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not holds():
            await asyncio.sleep(0.01)


async def until_both_hear(hub: Hub, spoke: Spoke, broken: asyncio.StreamWriter | None) -> None:
    """Over another connection than one that was broken."""
    heard_at, count = spoke._heard_at, hub._counts[1]
    await until(lambda: spoke._writer not in (None, broken) and spoke._heard_at > heard_at and hub._counts[1] > count)


class Watch:
    """Seconds since it was made, but for those in which the machine did other work: a loop that is late by them."""

    def __init__(self) -> None:
        self._started, self._late_s = asyncio.get_running_loop().time(), 0.0
        self._task = asyncio.create_task(self._count())

    async def _count(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            due = clock() + 0.02
            await asyncio.sleep(0.02)
            self._late_s += max(0.0, clock() - due)

    async def stop(self) -> float:
        seconds = asyncio.get_running_loop().time() - self._started
        await asyncio.sleep(0.02)  # the last of what is late is counted too
        self._task.cancel()
        return seconds - self._late_s

"""Machines for tests: each may have its own storage behind a common path, and its own clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from dmlscale.launch.doctor.machines import Answers, Machine, in_short


@dataclass
class RoomsOfOne:
    """`Machines` of this process, all asked at once.

    Args:
        names: of the machines, the head first.
        mounts: by name, what stands on that machine for a path that is the same on all.
        ahead: by name, seconds that a number it answers with is changed by.
        silent: machines that never answer.
    """

    names: Sequence[str]
    mounts: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    ahead: Mapping[str, float] = field(default_factory=dict)
    silent: Sequence[str] = ()
    lost: Mapping[str, str] = field(default_factory=dict)

    @property
    def all(self) -> Sequence[Machine]:
        return [Machine(name, is_head=name == self.names[0]) for name in self.names]

    def ask(
        self, look: Callable[..., Any], arguments: Mapping[str, Sequence[Any]] | None = None, *, seconds: float = 15
    ) -> Answers:
        asked = {m: () for m in self.names} if arguments is None else arguments
        answers = Answers(silent={name: f"no answer within {seconds:g} s" for name in self.silent if name in asked})
        with ThreadPoolExecutor() as threads:
            done = {
                name: threads.submit(look, *self._seen_there(name, asked[name]))
                for name in self.names
                if name in asked and name not in self.silent
            }
        for name, future in done.items():
            try:
                value = future.result()
                answers.values[name] = value + self.ahead[name] if name in self.ahead else value
            except Exception as error:
                answers.silent[name] = in_short(error)
        return answers

    def _seen_there(self, name: str, given: Sequence[Any]) -> list[Any]:
        mounted = self.mounts.get(name, {})
        return [mounted.get(part, part) if isinstance(part, str) else part for part in given]

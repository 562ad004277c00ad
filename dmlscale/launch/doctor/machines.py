"""The machines that are looked at, and how each is asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from dmlscale.launch.doctor.finding import Finding


@dataclass(frozen=True)
class Machine:
    """A node of the cluster, or this machine.

    Args:
        name: its host name, made unique by its address where two have the same.
        address: IP address by which the other nodes know it.
        resources: that Ray announces for it, e.g. {"CPU": 8.0, "GPU": 2.0}; None without Ray.
        is_head: whether the cluster's head runs there.
    """

    name: str
    address: str = "127.0.0.1"
    resources: Mapping[str, float] | None = None
    is_head: bool = False


@dataclass(frozen=True)
class Answers:
    """What machines said to one question.

    Args:
        values: by machine's name; those that did not answer are missing.
        silent: why not, by machine's name.
    """

    values: dict[str, Any] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)

    def findings(self, check: str, advice: str = "") -> list[Finding]:
        """A failure for each machine that did not answer."""
        told = advice or "see whether the node is alive and busy (`ray status`), and what its Ray logs say"
        return [Finding(name, check, "fail", reason, told) for name, reason in self.silent.items()]


class Machines(Protocol):
    """All machines of a check-up, the head first."""

    @property
    def all(self) -> Sequence[Machine]:
        """They themselves."""

    @property
    def lost(self) -> Mapping[str, str]:
        """Why there is no asking a machine, by the name of those that are not among them for it."""

    def ask(
        self, look: Callable[..., Any], arguments: Mapping[str, Sequence[Any]] | None = None, *, seconds: float = 15
    ) -> Answers:
        """Runs ``look`` on each machine at the same time.

        Args:
            look: a function of a module; returns plain values.
            arguments: by machine's name; None calls it without any, and a machine that is missing is not asked.
            seconds: after which a machine counts as silent. A call may go on; it holds up no later question.
        """


class ThisMachine:
    """The machine of this process, asked without Ray.

    Args:
        name: its host name.
    """

    def __init__(self, name: str) -> None:
        self._machine = Machine(name, is_head=True)

    @property
    def all(self) -> Sequence[Machine]:
        """The one."""
        return [self._machine]

    @property
    def lost(self) -> Mapping[str, str]:
        """None: it is this one."""
        return {}

    def ask(
        self, look: Callable[..., Any], arguments: Mapping[str, Sequence[Any]] | None = None, *, seconds: float = 15
    ) -> Answers:
        """See `Machines.ask`."""
        name = self._machine.name
        given = () if arguments is None else arguments.get(name)
        if given is None:
            return Answers()
        done: Future[Any] = Future()

        def run() -> None:
            try:
                done.set_result(look(*given))
            except BaseException as error:
                done.set_exception(error)

        # A daemon, and no pool: a mount that hangs must not keep the process from ending.
        threading.Thread(target=run, name=look.__name__, daemon=True).start()
        try:
            return Answers({name: done.result(seconds)})
        except TimeoutError:
            return Answers(silent={name: f"no answer within {seconds:g} s"})
        except Exception as error:
            return Answers(silent={name: in_short(error)})


def in_short(error: BaseException) -> str:
    """The first line of an error with its kind; of one that Ray brought from a node, that of its cause."""
    cause = getattr(error, "cause", None) or error
    text = str(cause).strip().splitlines()
    return f"{type(cause).__name__}: {text[0]}" if text else type(cause).__name__

"""What stops a command before or while it works, in words a person can act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class LaunchError(RuntimeError):
    """The run cannot start as asked; the message says what to change."""


class WorkersFailedError(RuntimeError):
    """Workers ended with an error, and are not started again.

    Args:
        failures: first line of each rank's error; -1 for one that is no rank's.
        folder: where their logs are.
        advice: what to do, in whole lines.
    """

    def __init__(self, failures: Mapping[int, str], folder: str, advice: Sequence[str] = ()) -> None:
        self.failures = dict(failures)
        ranks: dict[str, list[int]] = {}
        for rank, text in failures.items():
            ranks.setdefault(text, []).append(rank)
        lines = [f"{_who(of)}: {text}" for text, of in ranks.items()]
        super().__init__("\n".join([*lines, *advice, f"(logs: {folder})"]))


class GaveUpError(WorkersFailedError):
    """Workers were lost again and again, with no checkpoint between.

    Args:
        failures: first line of each rank's error, the last time.
        folder: where their logs are.
        history: what went wrong each time, oldest first.
        advice: what to do, in whole lines.
    """

    def __init__(
        self, failures: Mapping[int, str], folder: str, history: Sequence[str], advice: Sequence[str] = ()
    ) -> None:
        times = f"{len(history)} times in a row" if len(history) > 1 else "once"
        head = [
            f"the workers were lost {times} without a checkpoint between, which is more than resources.max_failures:"
        ]
        super().__init__(failures, folder, [*head, *(f"  {n}. {what}" for n, what in enumerate(history, 1)), *advice])


def _who(ranks: Sequence[int]) -> str:
    return "workers" if min(ranks) < 0 else f"rank {', '.join(map(str, ranks))}"

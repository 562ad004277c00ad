"""What stops a command before or while it works, in words a person can act on."""

from __future__ import annotations


class LaunchError(RuntimeError):
    """The run cannot start as asked; the message says what to change."""


class WorkersFailedError(RuntimeError):
    """Workers ended with an error.

    Args:
        failures: first line of each rank's error.
        folder: where their logs are.
    """

    def __init__(self, failures: dict[int, str], folder: str) -> None:
        self.failures = failures
        distinct = dict.fromkeys(failures.values())
        ranks = {text: [r for r, t in failures.items() if t == text] for text in distinct}
        lines = [f"rank {', '.join(map(str, ranks[text]))}: {text}" for text in distinct]
        super().__init__("\n".join([*lines, f"(logs: {folder})"]))

"""Which checkpoints stay: the newest, and the best by a metric of their evaluation."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dmlscale.training.checkpoint.errors import CheckpointError
from dmlscale.training.checkpoint.store import Store, step_of_name

METRICS_FILE = "metrics.json"


@dataclass(frozen=True)
class Retention:
    """How many checkpoints to keep.

    Args:
        newest: of them.
        best: of them, by ``metric``.
        metric: of an evaluation; more is better.
    """

    newest: int
    best: int = 0
    metric: str = ""

    def check(self, metrics: Iterable[str]) -> None:
        """Whether the metric that counts is there.

        Raises:
            CheckpointError: it is not; names those that are.
        """
        if self.best and self.metric not in metrics:
            names = ", ".join(sorted(name for name in metrics if not name.startswith("num_")))
            raise CheckpointError(
                f"train.best_metric={self.metric} is no metric of an evaluation during training: there are {names}"
            )

    def to_remove(self, names: Sequence[str], scores: Mapping[str, float]) -> list[str]:
        """Those to remove of ``names``, which are in the order of their steps; ``scores`` of those that have one."""
        kept = {*names[-self.newest :], *self.best_of(names, scores)}
        return [name for name in names if name not in kept]

    def best_of(self, names: Sequence[str], scores: Mapping[str, float]) -> list[str]:
        """The best ones of ``names``, best first; of equal ones the older first."""
        ranked = sorted((name for name in names if name in scores), key=lambda name: -scores[name])  # stable
        return ranked[: self.best]


class Scores:
    """The metrics of evaluations, kept beside the checkpoints that were evaluated, so that they outlive the process.

    Args:
        store: of the checkpoints.
        retention: what counts.
    """

    def __init__(self, store: Store, retention: Retention) -> None:
        self._store, self._retention = store, retention
        self._known: dict[str, float] = {}

    def note(self, name: str, metrics: Mapping[str, float]) -> None:
        """Keeps the metrics of a checkpoint, the one that counts among them.

        Raises:
            CheckpointError, OSError: they cannot be written.
        """
        self._store.put(name, METRICS_FILE, json.dumps(dict(metrics), indent=1) + "\n")
        self._learn(name, metrics[self._retention.metric])

    def apply(self, *, newest: str | None = None) -> None:
        """Removes what is not to be kept.

        Args:
            newest: this run's. Later ones are left by workers that were cut off, or damaged ones that could not be
                removed: among the newest they would drive out good ones.
        """
        names = self._store.complete()
        if newest is not None:
            names = [name for name in names if step_of_name(name) <= step_of_name(newest)]
        for name in self._retention.to_remove(names, self._of(names)):
            self._store.remove(name)
            self._known.pop(name, None)

    def best(self) -> tuple[str, float] | None:
        """The best checkpoint there is, and its value."""
        names = self._store.complete()
        scores = self._of(names)
        best = self._retention.best_of(names, scores)
        return (best[0], scores[best[0]]) if best else None

    def _of(self, names: Sequence[str]) -> dict[str, float]:
        if not self._retention.best:
            return {}
        for name in names:
            if name not in self._known:
                self._learn(name, self._read(name))
        return {name: self._known[name] for name in names if name in self._known}

    def _learn(self, name: str, value: float) -> None:
        if math.isfinite(value):
            self._known[name] = value

    def _read(self, name: str) -> float:
        try:
            return float(json.loads(self._store.get(name, METRICS_FILE) or "{}")[self._retention.metric])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):  # never evaluated, or damaged
            return math.nan

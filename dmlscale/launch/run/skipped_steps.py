"""What becomes of steps whose loss or gradient is not finite: told, written down with their samples, and counted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dmlscale.data.index import Index
from dmlscale.training.loop import DivergedError
from dmlscale.training.nonfinite import SkippedStep

_MOST_NAMES = 20  # of parameters


class SkippedSteps:
    """The `Hooks.skip` of a run; every rank has one.

    Args:
        allowed: steps that may be skipped in the whole run; one more ends it.
        folder: for one JSON file a step.
        index: of the samples.
        fault: takes one line.
        writes: whether this rank writes the files.

    Attributes:
        count: steps skipped so far; those before a resume are to be set.
    """

    def __init__(self, allowed: int, folder: Path, index: Index, *, fault: Callable[[str], None], writes: bool) -> None:
        self._allowed, self._folder, self._index, self._fault, self._writes = allowed, folder, index, fault, writes
        self.count = 0

    def __call__(self, skipped: SkippedStep) -> None:
        """Counts a step; tells and writes what is known of it.

        Raises:
            DivergedError: it is one more than may be, or parameters are not finite, so that no later step can be.
        """
        self.count += 1
        path = self._folder / f"step_{skipped.step:08d}.json"
        what = f"{_what(skipped)}{self._suspects(skipped)}; {self._written(skipped, path)}"
        if skipped.parameters:
            raise DivergedError(
                f"step {skipped.step}: {what}. Parameters are no longer finite numbers, first {skipped.parameters[0]}: "
                f"lower the learning rates (optim.backbone_lr, head_lr, bank_lr), or set optim.clip_norm"
            )
        if self.count > self._allowed:
            raise DivergedError(
                f"step {skipped.step}: {what}. {self.count} steps were skipped for this, train.max_skipped_steps="
                f"{self._allowed} may be: look at the samples, lower the learning rates, set optim.clip_norm or "
                f"train.precision=fp32; or allow more"
            )
        self._fault(f"step {skipped.step} is skipped: {what} ({self.count} of {self._allowed} that may be)")

    def _suspects(self, skipped: SkippedStep) -> str:
        broken = skipped.broken_inputs if skipped.broken_inputs.any() else skipped.broken_embeddings
        if not broken.any() or broken.all():
            return ""
        first, what = int(broken.nonzero()[0, 0]), "input" if broken is skipped.broken_inputs else "embedding"
        others = "" if broken.sum() == 1 else f" and {int(broken.sum()) - 1:,} others"
        row, rank = int(skipped.ids[first]), int(skipped.ranks[first])
        return f", the {what} of {self._index.where(row)} on rank {rank}{others} too"

    def _written(self, skipped: SkippedStep, path: Path) -> str:
        if self._writes:
            try:
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(self._content(skipped), indent=1, allow_nan=False) + "\n")
            except OSError as error:  # a full disk must not end a run that can go on
                return f"its samples could not be written to {path}: {error.strerror}"
        return f"its samples are in {path}"

    def _content(self, skipped: SkippedStep) -> dict[str, Any]:
        columns = zip(
            skipped.ids.tolist(),
            skipped.ranks.tolist(),
            skipped.broken_inputs.tolist(),
            skipped.broken_embeddings.tolist(),
            strict=True,
        )
        return {
            "step": skipped.step,
            "epoch": skipped.epoch,
            "step_of_epoch": skipped.step_of_epoch,
            "loss": str(skipped.loss),  # JSON knows no nan
            "terms": {name: str(value) for name, value in skipped.terms.items()},
            "gradients_not_finite": skipped.gradients[:_MOST_NAMES],
            "num_gradients_not_finite": len(skipped.gradients),
            "parameters_not_finite": skipped.parameters[:_MOST_NAMES],
            "samples": [self._sample(*columns_of_one) for columns_of_one in columns],
        }

    def _sample(self, row: int, rank: int, broken_input: bool, broken_embedding: bool) -> dict[str, Any]:
        return {
            "row": row,
            "key": self._index.key(row),
            "where": self._index.where(row),
            "label": int(self._index.columns.labels[row]),
            "class": self._index.class_names[int(self._index.columns.labels[row])],
            "rank": rank,
            "input_is_finite": not broken_input,
            "embedding_is_finite": not broken_embedding,
        }


def _what(skipped: SkippedStep) -> str:
    if math.isfinite(skipped.loss):
        others = f" and {len(skipped.gradients) - 1} others" if len(skipped.gradients) > 1 else ""
        return f"the gradient of {skipped.gradients[0]}{others} is not finite"
    terms = [f"{name} {value}" for name, value in skipped.terms.items() if not math.isfinite(value)]
    return f"the loss is {skipped.loss}" + (f" ({', '.join(terms)})" if terms else "")

"""Which split decides: one whose classes are neither trained on nor reported."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from dmlscale.config.load import set_value
from dmlscale.config.schema import Config
from dmlscale.data.hold_out import VALIDATION_SPLIT
from dmlscale.data.index import Index
from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.evaluate import evaluate
from dmlscale.launch.errors import LaunchError
from dmlscale.tuning.config import Sweep, SweepConfig

SELECTED_ON_TEST = {"selected_on_test": "true"}
"""Tag of runs whose reported split has also decided."""


def trial_values(values: Mapping[str, Any], settings: SweepConfig) -> dict[str, Any]:
    """Config values of a trial: those drawn, evaluated on the split that decides and on nothing else."""
    changed = copy.deepcopy(dict(values))
    if settings.select_on == VALIDATION_SPLIT:
        set_value(changed, "data.validation_classes", settings.validation_classes)
    if not settings.allow_selection_on_test:
        # The gallery of another split has none of these classes: each sample is looked up among the others.
        set_value(changed, "data.gallery_split", None)
    set_value(changed, "data.eval_split", settings.select_on)
    set_value(changed, "evaluation.raw_pixels", False)
    set_value(changed, "evaluation.gallery_queries", 0)
    set_value(changed, "evaluation.report", False)
    set_value(changed, "tracking.registered_model", None)
    return changed


def final_values(values: Mapping[str, Any], seed: int, *, with_report: bool) -> dict[str, Any]:
    """Config values of a final run: all training classes, the test split evaluated once, after the last step."""
    changed = copy.deepcopy(dict(values))
    set_value(changed, "data.validation_classes", 0)
    set_value(changed, "train.eval_every", 0)
    set_value(changed, "run.seed", seed)
    if not with_report:
        set_value(changed, "evaluation.raw_pixels", False)
        set_value(changed, "evaluation.report", False)
    return changed


# What trials must have in common to be compared, and what the sweep itself sets.
_NOT_SEARCHED = {"data.path", "data.train_split", "data.eval_split", "data.gallery_split", "data.validation_classes"}
_NOT_SEARCHED |= {"train.steps", "train.eval_every"}
_GROUPS_NOT_SEARCHED = ("run.", "evaluation.", "tracking.", "resources.")


def selects_on_reported(sweep: Sweep) -> bool:
    """Whether the split that decides is one that is reported in the end."""
    data = sweep.base_config.data
    return sweep.settings.select_on in (data.eval_split, data.gallery_split)


def check_selection(sweep: Sweep) -> None:
    """Refuses to choose on what is reported, unless asked to.

    Raises:
        LaunchError: says how to choose on classes of their own.
    """
    settings, data = sweep.settings, sweep.base_config.data
    if data.validation_classes:
        raise LaunchError("base: data.validation_classes is set by the sweep: use sweep.validation_classes")
    for parameter in sweep.space.parameters:
        if parameter.key in _NOT_SEARCHED or parameter.key.startswith(_GROUPS_NOT_SEARCHED):
            raise LaunchError(
                f"space: {parameter.key} is the same for all trials of a sweep, or set by it: it cannot be searched"
            )
    if selects_on_reported(sweep) and not settings.allow_selection_on_test:
        raise LaunchError(
            f"sweep.select_on={settings.select_on!r} is what the base config reports (data.eval_split): figures of "
            f"settings that were chosen by it are too good, as in much of the literature. Leave "
            f"sweep.select_on={VALIDATION_SPLIT!r}, which takes classes out of {data.train_split!r}, or set "
            "sweep.allow_selection_on_test=true, which marks the runs"
        )


def check_metric(sweep: Sweep) -> None:
    """Whether evaluations measure what is to decide.

    Raises:
        LaunchError: they do not; names what they measure.
    """
    labels = torch.tensor([0, 0, 1, 1])
    toy = Embedded(torch.eye(4), labels, torch.arange(4))
    measured = evaluate(toy, ks=sweep.base_config.evaluation.ks).metrics
    names = [name for name in measured if not name.startswith("num_")]
    if sweep.settings.metric not in names:
        near = difflib.get_close_matches(sweep.settings.metric, names, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise LaunchError(
            f"sweep.metric={sweep.settings.metric!r} is not measured{hint} (there are: {', '.join(names)}; which "
            "Recall@K is up to evaluation.ks)"
        )


def check_disjoint(config: Config, index: Index, base: Config, settings: SweepConfig) -> None:
    """Whether the classes that decide are in neither of the other splits.

    Args:
        config: of a trial.
        index: its dataset.
        base: says what is reported in the end.
        settings: of the sweep.

    Raises:
        LaunchError: they are not, and nobody has asked for that.
    """
    if settings.allow_selection_on_test:
        return
    deciding = np.unique(index.split(config.data.eval_split).labels)
    for other in (config.data.train_split, base.data.eval_split, base.data.gallery_split):
        if other is None:
            continue
        shared = np.intersect1d(deciding, index.split(other).labels)
        if len(shared):
            raise LaunchError(
                f"sweep.select_on={settings.select_on!r} shares {len(shared):,} classes with {other!r} (as "
                f"{index.class_names[int(shared[0])]!r}): classes that decide must be in no other split; use "
                f"sweep.select_on={VALIDATION_SPLIT!r}, or set sweep.allow_selection_on_test=true to do so all the same"
            )

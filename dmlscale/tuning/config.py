"""The file of a sweep: what is searched, from which config, how, and what decides."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from dmlscale.config.load import ConfigError, check_config, override_values, read_values, set_value
from dmlscale.config.schema import Config
from dmlscale.config.section import Section
from dmlscale.data.hold_out import VALIDATION_SPLIT
from dmlscale.data.storage.storage import Storage
from dmlscale.tuning.space import Space


class SweepConfig(Section):
    """How a sweep searches and chooses."""

    name: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Of the sweep and of its folder in run.folder; None makes one of the file's name and the time."""
    searcher: Literal["random", "grid", "optuna"] = "optuna"
    """optuna is its TPE sampler; grid takes every combination, whatever `trials` says."""
    trials: int = Field(default=12, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Of the searcher; the trainings have run.seed."""
    metric: str = "recall_at_1"
    """Of the evaluation, that decides."""
    mode: Literal["max", "min"] = "max"
    second_objective: Literal["cost"] | None = None
    """cost: also search for trials that take few seconds of workers; needs searcher=optuna and scheduler=none."""
    scheduler: Literal["asha", "none"] = "asha"
    """asha stops trials that are behind the others at the same step."""
    grace_steps: int | None = Field(default=None, ge=1)
    """Steps that asha leaves each trial; None is train.eval_every."""
    reduction_factor: float = Field(default=3.0, gt=1)
    """asha lets the best 1 in so many go on at each rung; rungs are so many times apart."""
    plateau_evaluations: int | None = Field(default=None, ge=2)
    """Stop a trial whose metric has not moved for so many evaluations; None: never."""
    plateau_deviation: float = Field(default=0.002, gt=0)
    """Standard deviation of the metric below which it has not moved."""
    time_budget_minutes: float | None = Field(default=None, gt=0)
    """Stop all trials after so long; the final runs come after it."""
    concurrent: int | None = Field(default=None, ge=1)
    """Trials at a time; None: as many as the cluster holds."""
    select_on: str = VALIDATION_SPLIT
    """The split that decides. What is reported in the end may not, unless allow_selection_on_test is set."""
    validation_classes: float = Field(default=0.2, gt=0, lt=1)
    """Share of the training classes that trials do not see, for select_on=validation."""
    allow_selection_on_test: bool = False
    """Choose on the very split that is reported in the end, as much of the literature did; such runs are marked."""
    repeats: int = Field(default=3, ge=0)
    """Seeds with which the best settings, and those of the base, are trained in the end on all training classes and
    evaluated, once, on the test split; 0 leaves that out."""

    @field_validator("scheduler", mode="before")
    @classmethod
    def _only_what_works(cls, value: Any) -> Any:
        if str(value).lower() in ("pbt", "pb2"):
            raise ValueError(
                "population based training copies checkpoints between trials through Tune, which trainings on Ray "
                "Train's workers do not hand to it: it would silently change nothing; use asha"
            )
        return value

    @model_validator(mode="after")
    def _objectives_fit(self) -> SweepConfig:
        if self.second_objective and (self.searcher != "optuna" or self.scheduler != "none"):
            raise ValueError(
                "second_objective needs searcher=optuna and scheduler=none: a trial that is stopped early is cheap, "
                "which says nothing of its settings"
            )
        return self


@dataclass(frozen=True)
class Sweep:
    """A sweep's file, checked.

    Args:
        settings: how to search and choose.
        base: complete config values that trials start from, as from YAML.
        space: what is searched.
        space_values: the same as the file says it.
        file: where it came from.
    """

    settings: SweepConfig
    base: dict[str, Any]
    space: Space
    space_values: dict[str, Any]
    file: str

    @property
    def base_config(self) -> Config:
        """The base, checked."""
        return check_config(self.base, f"{self.file}: base")

    def as_values(self) -> dict[str, Any]:
        """What a resumed sweep must have in common with its beginning."""
        settings = self.settings.model_dump(mode="json", exclude={"name"})
        return {"sweep": settings, "base": self.base, "space": self.space_values}


def load_sweep(path: str, overrides: list[str]) -> Sweep:
    """Reads a sweep's file.

    It holds ``base`` (a config file, relative to this one, or a config itself), ``set`` (keys of the base with other
    values), ``sweep`` (see `SweepConfig`) and ``space`` (see `Space`).

    Args:
        path: of the file.
        overrides: ``sweep.trials=8`` or, for a key of the base, ``base.train.steps=200``.

    Raises:
        ConfigError: with everything that is wrong.
    """
    values = read_values(path)
    unknown = [key for key in values if key not in ("base", "set", "sweep", "space")]
    if unknown or "base" not in values or not values.get("space"):
        what = f"unknown key {unknown[0]!r}" if unknown else "needs base and space"
        raise ConfigError(f"{path}: {what} (a sweep has: base, set, sweep, space)")
    base = values["base"]
    if isinstance(base, str):
        base = read_values(Path(path).parent / base)
    for key, value in _changes(values, path):
        set_value(base, key, value)
    base = override_values(base, [text.removeprefix("base.") for text in overrides if text.startswith("base.")])
    checked = check_config(base, f"{path}: base")
    rest = [text for text in overrides if not text.startswith("base.")]
    for text in rest:
        if not text.startswith("sweep."):
            raise ConfigError(f"{text!r}: begin with sweep., as sweep.trials=8, or with base., as base.train.steps=200")
    values = override_values({"sweep": values.get("sweep") or {}, "space": values["space"]}, rest)
    base["data"]["path"] = Storage.open(checked.data.path).root  # drivers of trials run in another folder
    losses = [term.name for term in checked.losses]
    try:
        settings = SweepConfig.model_validate(values["sweep"])
    except ValidationError as error:
        raise ConfigError(f"{path}:\n" + "\n".join(map(_line, error.errors()))) from None
    return Sweep(settings, base, Space.parse(values["space"], losses), values["space"], path)


def _changes(values: dict[str, Any], path: str) -> list[tuple[str, Any]]:
    changes = values.get("set") or {}
    if not isinstance(changes, dict) or not all(isinstance(key, str) for key in changes):
        raise ConfigError(f"{path}: set must hold dotted keys, e.g. {{train.steps: 300}}")
    return list(changes.items())


def _line(error: Any) -> str:
    key = ".".join(["sweep", *map(str, error["loc"])])
    shown = "" if isinstance(error["input"], dict) else f", got {error['input']!r}"
    return f"  {key}: {error['msg'].removeprefix('Value error, ')}{shown}"

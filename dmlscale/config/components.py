"""Registered dataclasses as parts of the config: their fields are the schema, their names the choice."""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Annotated, Any, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from dmlscale.data.sources import SOURCES, ShardSource, Source
from dmlscale.data.transforms import TRANSFORMS, Transform
from dmlscale.losses import LOSSES
from dmlscale.registry import Registry


class Component(BaseModel):
    """The name of a registered class, and its options."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class LossChoice(Component):
    """A loss, its weight in the sum, its hyper-parameters, and how its bank or memory is kept."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    weight: float = Field(default=1.0, gt=0)
    bank_lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of this loss's bank; None takes optim.bank_lr."""
    bank_weight_decay: float | None = Field(default=None, ge=0)
    """Of this loss's bank; None takes optim.bank_weight_decay."""
    memory_size: int = Field(default=0, ge=0)
    """Samples of past batches that a pair loss compares with, over all workers (cross-batch memory); 0: none."""
    memory_start: int = Field(default=0, ge=0)
    """Steps before the memory is used; it is filled from the beginning."""
    class_sampling: float | None = Field(default=None, gt=0, le=1)
    """Part of the absent classes that a class loss looks at in a step; None: all classes."""
    class_sampling_unbiased: bool = True
    """Weigh sampled classes by 1 / class_sampling."""


class SourceSetting(Component):
    """A source and its options."""

    def build(self) -> Source | ShardSource:
        """The source itself."""
        return SOURCES[self.name](**self.options)


class TransformSetting(Component):
    """A recipe and its options."""

    def build(self) -> Transform:
        """The recipe itself."""
        return TRANSFORMS[self.name](**self.options)


def _flat(value: Any, registry: Registry[Any], own: tuple[str, ...]) -> Any:
    """``{"name": ..., option: ...}`` -> ``{"name": ..., "options": {all options, resolved}}``.

    The options are checked by the dataclass's own annotations and its ``__post_init__``, so errors name the key.
    """
    if not isinstance(value, dict):
        return value
    if "name" not in value:
        raise ValueError(f"needs a name, one of: {', '.join(registry)}")
    value = dict(value)
    nested = value.pop("options", {}) or {}
    kept = {key: value.pop(key) for key in own if key in value}
    cls = registry[str(kept["name"])]
    return {**kept, "options": checked_options(cls, {**nested, **value}, name=str(kept["name"]), others=own)}


def checked_options(cls: type, options: dict[str, Any], *, name: str, others: tuple[str, ...] = ()) -> dict[str, Any]:
    """All options of a dataclass, those not given at their defaults.

    Args:
        cls: the dataclass; its annotations are the types, its ``__post_init__`` checks the ranges.
        options: those given.
        name: of the class, for messages.
        others: further keys that may be meant where one is misspelled.

    Raises:
        ValueError: an unknown key, or a wrong value; names the key.
    """
    fields = [field.name for field in dataclasses.fields(cls) if field.init]
    for key in options:
        if key not in fields:
            near = difflib.get_close_matches(key, [*fields, *others], n=1, cutoff=0.4)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            has = f"it has: {', '.join(fields)}" if fields else "it has none"
            raise ValueError(f"{name} has no key {key!r}{hint} ({has})")
    hints = get_type_hints(cls)
    checked = {}
    for key, raw in options.items():
        try:
            checked[key] = TypeAdapter(hints[key]).validate_python(raw)
        except ValidationError as error:
            raise ValueError(f"{key}: {error.errors()[0]['msg']}, got {raw!r}") from None
        if isinstance(checked[key], float) and not math.isfinite(checked[key]):
            raise ValueError(f"{key}: must be a finite number, got {raw!r}")
    built = cls(**checked)  # checks the ranges
    return {field: getattr(built, field) for field in fields}


def transform_setting(value: Any) -> Any:
    """A recipe by its name alone, or ``{"name": ..., option: ...}``, with all options."""
    return _flat({"name": value} if isinstance(value, str) else value, TRANSFORMS, ("name",))


LossTerm = Annotated[LossChoice, BeforeValidator(lambda v: _flat(v, LOSSES, tuple(LossChoice.model_fields)))]
SourceChoice = Annotated[SourceSetting, BeforeValidator(lambda v: _flat(v, SOURCES, ("name",)))]
TransformChoice = Annotated[TransformSetting, BeforeValidator(transform_setting)]

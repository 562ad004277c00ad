"""A search space: from what a sweep's YAML says to the config values of one trial."""

from __future__ import annotations

import copy
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dmlscale.launch.errors import LaunchError
from dmlscale.losses.search_space import Choice, Integer, LogUniform, Range
from dmlscale.tuning.loss_keys import NAME, kept_keys, options_of
from dmlscale.tuning.outcomes import Scalar
from dmlscale.tuning.parameter import Parameter, with_numbers
from dmlscale.tuning.read_space import read_parameters

_ABSENT = object()


class Chooser(Protocol):
    """Who says which value a parameter gets; a name stands for one range in the whole sweep."""

    def choice(self, name: str, values: Sequence[Any]) -> Any:
        """One of the values, which may be of any kind."""

    def uniform(self, name: str, low: float, high: float, log: bool) -> float:
        """A number of [low, high]; with log, each ratio is equally likely."""

    def integer(self, name: str, low: int, high: int, log: bool) -> int:
        """A whole number of [low, high], both included."""


@dataclass(frozen=True)
class Space:
    """What a sweep searches.

    Args:
        parameters: in the order in which they are drawn; each is drawn where its conditions hold.
    """

    parameters: tuple[Parameter, ...]

    @classmethod
    def parse(cls, values: Mapping[str, Any], base_losses: Sequence[str]) -> Space:
        """A space from YAML.

        Args:
            values: dotted config key -> `{uniform: [low, high]}`, `{log_uniform: [low, high]}`,
                `{int: [low, high], log: true}` or `{choice: [...]}`, each also with `when: {key: value or values}`;
                and `losses: default` for the ranges that the loss itself names.
            base_losses: names of the losses in the config that is searched around.

        Raises:
            LaunchError: with every error in it, one a line.
        """
        return cls(read_parameters(values, base_losses))

    def settings(self, chooser: Chooser, base_values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Scalar]]:
        """The config of one trial.

        A loss that is not the base config's comes without that one's hyper-parameters, memory and class sampling; its
        weight stays, and so do the rates of a bank, if it has one.

        Args:
            chooser: draws the values.
            base_values: nested config values; they are not changed.

        Returns:
            The complete config values, and what was drawn: dotted key -> value; a list or mapping as JSON.

        Raises:
            LaunchError: a condition on a key that is neither searched nor in the base config, or a key that leads
                through a value.
        """
        self.check(base_values)
        values = copy.deepcopy(dict(base_values))
        values["losses"] = _flat_losses(values["losses"])
        drawn: dict[str, Scalar] = {}
        for parameter in self.parameters:
            holds = all(with_numbers(_value_at(values, key)) in accepted for key, accepted in parameter.when.items())
            if holds and parameter.key not in drawn:
                value = copy.deepcopy(_draw(chooser, self._name(parameter, values), parameter.range))
                _put(values, parameter.key, value)
                drawn[parameter.key] = value if isinstance(value, Scalar) else json.dumps(value)
        return values, drawn

    def check(self, base_values: Mapping[str, Any]) -> None:
        """Refuses a base config without the keys that conditions compare with.

        Raises:
            LaunchError: with every such key in it, one a line.
        """
        searched = {parameter.key for parameter in self.parameters}
        errors = []
        for parameter in self.parameters:
            for key in parameter.when:
                if key in searched or key.startswith("losses.") or _value_at(base_values, key) is not _ABSENT:
                    continue
                near = difflib.get_close_matches(key, [*searched, *_keys(base_values)], n=1, cutoff=0.6)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                errors.append(
                    f"{parameter.key}: when: {key} is neither searched nor in the base config{hint} (a default has to "
                    "be written there to be compared with)"
                )
        if errors:
            raise LaunchError("space:\n" + "\n".join(f"  {error}" for error in errors))

    def _name(self, parameter: Parameter, values: Mapping[str, Any]) -> str:
        """What the chooser knows the parameter by: `triplet.margin` where losses are drawn, for each has its own."""
        key = parameter.key
        if not key.startswith("losses.") or key == NAME or self.parameters[0].key != NAME:
            return f"{key}.default" if parameter.is_default and self._has_own(key) else key
        loss = _value_at(values, NAME)
        name = f"{loss}.{key.removeprefix('losses.')}"
        return f"{name}.default" if parameter.is_default and self._has_own(key, loss) else name

    def _has_own(self, key: str, loss: str | None = None) -> bool:
        """Whether the user's range holds under some condition, the loss's own elsewhere: two ranges for one key."""
        return any(p.key == key and not p.is_default and loss in p.when.get(NAME, (loss,)) for p in self.parameters)


def _draw(chooser: Chooser, name: str, searched: Range) -> Any:
    if isinstance(searched, Choice):
        return chooser.choice(name, searched.values)
    if isinstance(searched, Integer):
        return chooser.integer(name, searched.low, searched.high, searched.log)
    return chooser.uniform(name, searched.low, searched.high, isinstance(searched, LogUniform))


def _flat_losses(losses: Any) -> Any:
    """Hyper-parameters beside the name, not in a mapping `options` of their own, so that each has one place."""
    if isinstance(losses, list | tuple):
        return [_flat_losses(loss) for loss in losses]
    return {**(losses.get("options") or {}), **{key: value for key, value in losses.items() if key != "options"}}


def _group_of(values: Mapping[str, Any], key: str, *, make: bool) -> tuple[Any, str]:
    """The mapping that a dotted key is in, and its last part; None where there is no such mapping."""
    *parents, last = key.split(".")
    group: Any = values
    if parents[0] == "losses":
        losses = values["losses"]
        group = losses if isinstance(losses, Mapping) else losses[int(parents[1]) if len(parents) > 1 else 0]
        return group, last
    for parent in parents:
        if not isinstance(group, Mapping):
            return None, last
        if make and isinstance(group, dict) and group.get(parent) is None:
            group[parent] = {}
        group = group.get(parent)
    return (group if isinstance(group, Mapping) else None), last


def _value_at(values: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; of a loss's key that is not given, its default."""
    group, last = _group_of(values, key, make=False)
    if group is None:
        return _ABSENT
    if last not in group and key.startswith("losses."):
        return options_of(group["name"]).get(last, _ABSENT)
    return group.get(last, _ABSENT)


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    group, last = _group_of(values, key, make=True)
    if group is None:
        parents = key.rpartition(".")[0]
        raise LaunchError(f"space: {key}: {parents} of the base config is a value, not a group of settings")
    if key == NAME and group["name"] != value:
        kept = {option: own for option, own in group.items() if option in kept_keys(value)}
        group.clear()
        group.update({"name": value, **kept})
    group[last] = value


def _keys(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """All dotted keys."""
    found = []
    for key, value in values.items():
        found += _keys(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}"]
    return found

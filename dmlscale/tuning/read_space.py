"""The `space:` of a sweep's YAML -> its parameters in the order of drawing, or all that is wrong with it at once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from dmlscale.launch.errors import LaunchError
from dmlscale.losses import LOSSES
from dmlscale.losses.search_space import Choice
from dmlscale.tuning.loss_keys import NAME, plain_key, require_option
from dmlscale.tuning.parameter import Parameter, countable_values, read_parameter

EXAMPLE = "space: {losses.margin: {uniform: [0.05, 0.5]}}"


def read_parameters(values: Mapping[str, Any], base_losses: Sequence[str]) -> tuple[Parameter, ...]:
    """The parameters of a space; see `Space.parse`.

    Raises:
        LaunchError: with every error in it, one a line.
    """
    if not isinstance(values, Mapping) or not values:
        raise LaunchError(f"space: must be a mapping of keys to ranges, as {EXAMPLE}, got {values!r}")
    errors: list[str] = []
    written = _written(values, len(base_losses), errors)
    losses = _losses(written, base_losses, errors)
    defaults = _defaults(values, written, losses, len(base_losses), errors)
    ordered = _in_order([*written.values(), *defaults], errors)
    for parameter in written.values():
        _check(parameter, [*written.values(), *defaults], losses, base_losses, errors)
    if not errors and not ordered:
        errors.append(f"losses: {', '.join(losses)} has nothing to search; name another key")
    if errors:
        raise LaunchError("space:\n" + "\n".join(f"  {error}" for error in errors))
    return ordered


def _written(values: Mapping[str, Any], num_losses: int, errors: list[str]) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    for raw_key, entry in values.items():
        key = plain_key(str(raw_key), num_losses)
        if key == "losses":
            continue
        if key in found:
            errors.append(f"{raw_key}: is {key}, which stands there already")
        elif "." not in key.strip("."):
            errors.append(f"{raw_key}: write the whole key, as optim.backbone_lr")
        else:
            try:
                parameter = read_parameter(key, entry)
            except ValueError as error:
                errors.append(f"{raw_key}: {error}")
                continue
            when = {plain_key(other, num_losses): accepted for other, accepted in parameter.when.items()}
            found[key] = replace(parameter, when=when)
    for key in found:
        inner = [other for other in found if other.startswith(f"{key}.")]
        errors.extend(f"{other}: is inside of {key}, which is drawn as a whole" for other in inner)
    return found


def _losses(written: Mapping[str, Parameter], base_losses: Sequence[str], errors: list[str]) -> Sequence[str]:
    """Names of the losses that may be drawn, or those of the base config."""
    names = written.get(NAME)
    if names is None:
        return base_losses
    if len(base_losses) > 1:
        errors.append(f"{NAME}: only a single loss is searched; the base config has {', '.join(base_losses)}")
        return base_losses
    if not isinstance(names.range, Choice) or names.when:
        errors.append(f"{NAME}: is drawn first, from a choice without when, as {NAME}: {{choice: [triplet, circle]}}")
        return base_losses
    known = [name for name in names.range.values if name in list(LOSSES)]
    for name in names.range.values:
        if name not in known:
            errors.append(f"{NAME}: {_unknown('loss', name, list(LOSSES))}")
    return known


def _defaults(
    values: Mapping[str, Any],
    written: Mapping[str, Parameter],
    losses: Sequence[str],
    num_losses: int,
    errors: list[str],
) -> list[Parameter]:
    """The losses' own ranges for what the user has not given a range for."""
    if "losses" not in values:
        return []
    if values["losses"] != "default":
        errors.append(f"losses: must be `default`, got {values['losses']!r}; name keys for others, as losses.margin")
        return []
    if num_losses > 1:
        errors.append("losses: the default space is for a single loss; name the keys of several, as losses.0.margin")
        return []
    found = []
    for loss in losses:
        when = {NAME: (loss,)} if NAME in written else {}
        for option, searched in LOSSES[loss].search_space.items():
            own = written.get(f"losses.{option}")
            # Drawn whenever the loss is: the default would have no turn.
            if own is None or not (set(own.when) <= {NAME} and loss in own.when.get(NAME, (loss,))):
                found.append(Parameter(f"losses.{option}", searched, when, is_default=True))
    return found


def _in_order(parameters: Sequence[Parameter], errors: list[str]) -> tuple[Parameter, ...]:
    """The loss's name, keys without a condition, then each key after those that it depends on."""
    keys = dict.fromkeys(p.key for p in sorted(parameters, key=lambda p: (p.key != NAME, bool(p.when))))
    sorter: TopologicalSorter[str] = TopologicalSorter({key: () for key in keys})
    for parameter in parameters:
        sorter.add(parameter.key, *(key for key in parameter.when if key in keys))
    try:
        order = list(sorter.static_order())
    except CycleError as error:
        errors.append(f"{error.args[1][0]}: its when leads back to itself: {' <- '.join(error.args[1])}")
        return ()
    # For one key, the user's own range comes before the default.
    return tuple(sorted(parameters, key=lambda p: (order.index(p.key), p.is_default)))


def _check(
    parameter: Parameter,
    parameters: Sequence[Parameter],
    losses: Sequence[str],
    base_losses: Sequence[str],
    errors: list[str],
) -> None:
    """What can be known of a key and its conditions without the config."""
    drawn_for = [loss for loss in losses if loss in parameter.when.get(NAME, losses)]
    if parameter.key != NAME:
        _check_option(parameter.key, parameter.key, drawn_for, base_losses, errors)
    for key, accepted in parameter.when.items():
        where = f"{parameter.key}: when: {key}"
        rivals = [rival.range for rival in parameters if rival.key == key]
        if key == NAME and not rivals:
            errors.extend(f"{where}: {_unknown('loss', n, list(LOSSES))}" for n in accepted if n not in list(LOSSES))
        elif key != NAME:
            _check_option(where, key, drawn_for, base_losses, errors)
        counted = [values for values in map(countable_values, rivals) if values is not None]
        if rivals and not counted:
            errors.append(f"{where}: is drawn from an interval, so it is never {accepted[0]!r}; give it a choice")
        elif rivals:
            drawable = [value for values in counted for value in values]
            errors.extend(f"{where}: {_unknown('value', v, drawable)}" for v in accepted if v not in drawable)


def _check_option(where: str, key: str, losses: Sequence[str], base_losses: Sequence[str], errors: list[str]) -> None:
    """Whether a key below `losses` is one; `losses` are those that it is of, where there is a single one at a time."""
    if not key.startswith("losses."):
        return
    position = key.split(".")[1]
    if len(base_losses) > 1:
        if not position.isdigit() or int(position) >= len(base_losses):
            numbers = ", ".join(f"losses.{n} is {loss}" for n, loss in enumerate(base_losses))
            errors.append(f"{where}: which loss? {numbers}; write e.g. losses.0.{key.rpartition('.')[2]}")
            return
        losses = [base_losses[int(position)]]
    elif position.isdigit():
        errors.append(f"{where}: there is one loss at a time; write losses.{key.rpartition('.')[2]}")
        return
    try:
        require_option(key, losses)
    except ValueError as error:
        errors.append(f"{where}: {error}")


def _unknown(kind: str, value: Any, known: Sequence[Any]) -> str:
    near = difflib.get_close_matches(str(value), [str(name) for name in known], n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    shown = ", ".join(map(str, known[:30])) + (", ..." if len(known) > 30 else "")
    return f"unknown {kind} {value!r}{hint} (there are: {shown})"

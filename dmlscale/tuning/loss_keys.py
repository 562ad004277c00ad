"""What a dotted key below `losses` means: `losses.margin` of a single loss, `losses.1.margin` of one of several."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Sequence
from typing import Any

from dmlscale.config.components import LossChoice
from dmlscale.losses import LOSSES

NAME = "losses.name"

# Keys of a loss in the config that are not hyper-parameters of its formula: weight, bank_lr, memory_size, ...
OWN_KEYS = {key: field.default for key, field in LossChoice.model_fields.items() if key not in ("name", "options")}


def plain_key(key: str, num_losses: int) -> str:
    """One spelling of a key: of a single loss, `losses.0.margin` is `losses.margin`."""
    return "losses." + key.removeprefix("losses.0.") if num_losses == 1 and key.startswith("losses.0.") else key


def options_of(loss: str) -> dict[str, Any]:
    """All keys that a loss may have in a config beside its name -> their defaults."""
    # A dataclass's constructor has its fields as parameters.
    options = {option.name: option.default for option in inspect.signature(LOSSES[loss]).parameters.values()}
    return {**options, **OWN_KEYS}


def kept_keys(loss: str) -> tuple[str, ...]:
    """Keys of the base config's loss that hold for another one that is drawn in its place."""
    return ("weight", "bank_lr", "bank_weight_decay") if LOSSES[loss].block == "classes" else ("weight",)


def require_option(key: str, losses: Sequence[str]) -> None:
    """Refuses a key that not all of the losses have.

    Args:
        key: `losses.<option>` or `losses.<position>.<option>`.
        losses: those that it would be drawn for.

    Raises:
        ValueError: says which option is near, or which losses have it.
    """
    option = key.removeprefix("losses.").lstrip("0123456789").removeprefix(".")
    having = [loss for loss in losses if option in options_of(loss)]
    if losses and not having:
        known = [known for known in options_of(losses[0]) if known not in OWN_KEYS]
        meant = ["name", *(option for loss in losses for option in options_of(loss))]
        near = difflib.get_close_matches(option, meant, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        has = "" if len(losses) > 1 else f" (it has: {', '.join(known) or 'none'}; and {', '.join(OWN_KEYS)})"
        raise ValueError(f"{' and '.join(losses)}: no option {option!r}{hint}{has}")
    lacking = [loss for loss in losses if loss not in having]
    if lacking:
        raise ValueError(
            f"{', '.join(lacking)}: no option {option!r}; add when: {{{NAME}: [{', '.join(having)}]}} to draw it where "
            "there is one"
        )

"""A prediction as plain values, for people and for machines."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from dmlscale.launch.plan.collectives import Traffic
from dmlscale.launch.plan.prediction import Planner, Prediction


def as_json(planner: Planner, prediction: Prediction, num_classes: int) -> dict[str, Any]:
    """Everything in bytes and seconds; keys are the names of the fields."""
    memory, lasts, device = prediction.memory, prediction.duration, planner.device
    has_bank = memory.held["class banks"] > 0
    return {
        "workers": prediction.sizes.num_ranks,
        "device": device.name,
        "classes": num_classes,
        "batch": {"local": prediction.sizes.local, "global": prediction.sizes.total},
        "parameters": planner.num_parameters,
        "memory": {
            "held": memory.held,
            "phases": memory.phases,
            "fullest_phase": memory.fullest_phase,
            "peak": memory.peak,
            "libraries": device.overhead,
            "needed": planner.needed(prediction),
            "of_device": device.memory,
            "fits": planner.fits(prediction),
            "loader": memory.host,
        },
        "sent": {
            "every_step": _calls(prediction.traffic.every_step),
            "each_logged_step": _calls(prediction.traffic.logging),
            "each_stop_check": _calls(prediction.traffic.stop_check),
            "mean_payload": prediction.traffic.mean_payload(planner.config.train.log_every),
        },
        "seconds": vars(lasts) | {"step": lasts.step, "bound_by": lasts.bound_by},
        "largest": {
            "classes": planner.most_classes() if has_bank else None,
            "batch": planner.largest_batch(num_classes),
        },
        "source": device.source,
    }


def together(calls: Iterable[Traffic]) -> list[tuple[Traffic, int]]:
    """Equal collectives with their number, in the order of their first."""
    counted: dict[Traffic, int] = {}
    for call in calls:
        counted[call] = counted.get(call, 0) + 1
    return list(counted.items())


def _calls(calls: Iterable[Traffic]) -> list[dict[str, Any]]:
    return [vars(call) | {"wire": call.wire, "times": times} for call, times in together(calls)]


def size(number: float) -> str:
    """Bytes in words: 1.5 GB."""
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}" if number < 100 * factor else f"{number / factor:.0f} {unit}"
    return f"{number:.0f} B"


def seconds(number: float) -> str:
    """A time in words: 12.3 ms."""
    for unit, factor in (("s", 1.0), ("ms", 1e-3)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number * 1e6:.3g} us"

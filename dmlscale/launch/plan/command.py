"""The command plan: a config -> tables of what a run will take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dmlscale.config.load import load_config
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.plan.devices import find_device
from dmlscale.launch.plan.figures import as_json, seconds, size, together
from dmlscale.launch.plan.given import find_given
from dmlscale.launch.plan.prediction import Planner, Prediction


def plan(
    config_file: str,
    overrides: Sequence[str],
    *,
    workers: int,
    device: str,
    classes: int | None,
    shape: str | None,
    per_node: int,
    json_file: str | None,
) -> int:
    """Prints the tables; 0, or 1 if the run does not fit.

    Args:
        config_file: YAML.
        overrides: key=value each.
        workers: W.
        device: a name of `devices`.
        classes: in the banks; None takes those of the dataset.
        shape: of a sample, "3,224,224"; None takes that of the dataset.
        per_node: devices of a node.
        json_file: also write all figures there.

    Raises:
        ConfigError: the config is wrong, also for so many workers.
        LaunchError: something is not known.
    """
    config = load_config(config_file, [*overrides, f"resources.workers={workers}"])
    if per_node < 1:
        raise LaunchError(f"--per-node must be at least 1, got {per_node}")
    given = find_given(config, _shape(shape), classes)
    planner = Planner(config, given.shape, find_device(device, workers), per_node)
    prediction = planner.predict(given.num_classes)
    figures = as_json(planner, prediction, given.num_classes)
    if json_file is not None:
        Path(json_file).write_text(json.dumps(figures, indent=2) + "\n")
    _print(planner, prediction, figures)
    return 0 if figures["memory"]["fits"] else 1


def _shape(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        shape = tuple(int(part) for part in text.split(","))
    except ValueError:
        shape = ()
    if not shape or min(shape) < 1:
        raise LaunchError(f"--shape {text}: write the shape of a sample as numbers, e.g. 3,224,224")
    return shape


def _print(planner: Planner, prediction: Prediction, figures: dict[str, Any]) -> None:
    console, device = Console(highlight=False, soft_wrap=True), planner.device
    sizes = prediction.sizes
    classes = "" if figures["largest"]["classes"] is None else f"{figures['classes']:,} classes, "
    console.print(
        f"{sizes.num_ranks} x {device.name}, a batch of {sizes.total:,} samples ({sizes.local:,} on a worker), "
        f"{classes}{planner.num_parameters:,} parameters"
    )
    for table in (_memory(prediction, device.overhead), _sent(prediction), _time(prediction)):
        console.print(table)
    memory, largest = figures["memory"], figures["largest"]
    verdict = "fits" if memory["fits"] else "[red]does not fit[/red]"
    console.print(f"{verdict}: {size(memory['needed'])} of {size(memory['of_device'])} on each device")
    if largest["classes"] is not None:
        console.print(f"classes that fit: {largest['classes']:,}")
    console.print(f"largest global batch that fits: {largest['batch']:,} samples")
    console.print(f"[dim]{device.source}; predictions, see docs/scaling.md for how far to trust them[/dim]")


def _memory(prediction: Prediction, libraries: float) -> Table:
    table = _table("Memory of a worker", "", "")
    memory = prediction.memory
    for name, number in memory.held.items():
        if number:
            table.add_row(name, size(number))
    fullest = memory.fullest_phase
    table.add_row(f"while the fullest phase lasts: {fullest}", size(memory.phases[fullest]))
    if libraries:
        table.add_row("libraries", size(libraries))
    return table


def _sent(prediction: Prediction) -> Table:
    table = _table("Sent in a step", "", "collective", "times", "whole buffer", "by each worker")
    for call, times in together(prediction.traffic.every_step):
        names = (call.what, call.collective, f"{times}")
        table.add_row(*names, size(times * call.payload), size(times * call.wire))
    return table


def _time(prediction: Prediction) -> Table:
    lasts = prediction.duration
    table = _table("Time of a step", "", "")
    for name, number in vars(lasts).items():
        if number and name != "hidden_exchange":
            table.add_row(name.replace("_", " "), seconds(number))
    per_second = prediction.sizes.total / lasts.step
    table.add_row(f"step, bound by: {lasts.bound_by}", f"{seconds(lasts.step)}, {per_second:,.0f} samples/s")
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=any(columns), box=None, padding=(0, 2, 0, 0))
    for n, column in enumerate(columns):
        table.add_column(column, justify="left" if n == 0 else "right")
    return table

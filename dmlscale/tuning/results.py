"""What a sweep leaves in its folder: the table, the figures, the best config, and what the final runs say."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import yaml
from matplotlib.figure import Figure

from dmlscale.config.schema import Config
from dmlscale.tuning import figures
from dmlscale.tuning.config import Sweep
from dmlscale.tuning.figures.final_comparison import verdict
from dmlscale.tuning.importance import importance
from dmlscale.tuning.outcomes import Mode, Outcome, best
from dmlscale.tuning.plan import BEST, DEFAULTS
from dmlscale.tuning.repeats import Repeats, repeats
from dmlscale.tuning.summary import as_csv, summary_table

BEST_FILE = "best.yaml"


@dataclass(frozen=True)
class Comparison:
    """The best settings beside the base's, on the split that is reported.

    Args:
        best: over seeds.
        defaults: over seeds.
        verdict: which are better, and whether seeds alone may explain it.
    """

    best: Repeats
    defaults: Repeats
    verdict: str


def compare(final: Iterable[Outcome], metric: str, mode: Mode) -> Comparison | None:
    """The final runs against each other; None where either side has none that finished."""
    sides = by_seed(final, metric)
    if not sides[BEST] or not sides[DEFAULTS]:
        return None
    both = [repeats(list(sides[which].values())) for which in (BEST, DEFAULTS)]
    return Comparison(both[0], both[1], verdict(sides[BEST], sides[DEFAULTS], mode))


def by_seed(final: Iterable[Outcome], metric: str) -> dict[str, dict[int, float]]:
    """Which settings -> seed -> figure, of the final runs that finished."""
    sides: dict[str, dict[int, float]] = {BEST: {}, DEFAULTS: {}}
    for outcome in final:
        if outcome.status == "finished" and math.isfinite(outcome.value(metric)):
            sides[str(outcome.drawn["settings"])][int(str(outcome.drawn["run.seed"]))] = outcome.value(metric)
    return sides


def write_best(path: Path, winner: Outcome, config: Config, sweep: Sweep) -> None:
    """Writes the settings of the best trial as a config that `train` takes."""
    settings = sweep.settings
    drawn = ", ".join(f"{key}={value}" for key, value in winner.drawn.items())
    values = config.model_dump(mode="json")
    values["run"]["name"] = None
    head = (
        f"# The best of a sweep by {sweep.file}: {settings.metric} {winner.value(settings.metric):.4f} on "
        f"{settings.select_on}.\n# dmlscale train {path}\n# Searched: {drawn}\n"
    )
    path.write_text(head + yaml.safe_dump(values, sort_keys=False))


def write_tables(folder: Path, outcomes: list[Outcome], sweep: Sweep) -> Path:
    """Writes the table of all trials."""
    path = folder / "trials.csv"
    path.write_text(as_csv(summary_table(outcomes, sweep.settings.metric, sweep.settings.mode)))
    return path


def draw_figures(folder: Path, outcomes: list[Outcome], final: list[Outcome], sweep: Sweep) -> dict[Path, str]:
    """Draws what there is enough of; file -> folder among the artifacts."""
    settings = sweep.settings
    drawn: dict[str, Figure] = {}
    if best(outcomes, settings.metric, settings.mode) is not None:
        drawn["parallel_coordinates"] = figures.parallel_coordinates(outcomes, settings.metric, settings.mode)
        drawn["learning_curves"] = figures.learning_curves(outcomes, settings.metric, settings.mode)
        drawn["importance"] = figures.importance_bars(importance(outcomes, settings.metric))
        if settings.second_objective:
            score = (settings.metric, settings.mode)
            drawn["pareto_front"] = figures.pareto_front(outcomes, ("cost_s", "min"), score)
    sides = by_seed(final, settings.metric)
    if sides[BEST] and sides[DEFAULTS]:
        drawn["final_comparison"] = figures.final_comparison(
            sides[BEST], sides[DEFAULTS], settings.metric, settings.mode
        )
    paths = {}
    for name, figure in drawn.items():
        path = folder / f"{name}.png"
        figure.savefig(path, facecolor=figure.get_facecolor())
        paths[path] = "figures"
    return paths

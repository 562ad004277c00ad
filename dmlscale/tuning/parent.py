"""The sweep's own run in MLflow: what it shows, and where it leads."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dmlscale.config.schema import Config
from dmlscale.launch.tracked import dataset_name, run_tags
from dmlscale.tracking.mlflow import begin_run, end_run, experiment_of, update_parent
from dmlscale.tracking.spools import holds_spools
from dmlscale.tracking.store import charts_path, compare_path, model_path, run_path
from dmlscale.tracking.tracker import Status
from dmlscale.tuning.config import Sweep, SweepConfig
from dmlscale.tuning.outcomes import Outcome, best
from dmlscale.tuning.results import Comparison
from dmlscale.tuning.summary import as_markdown, in_order, summary_table

_SHOWN = 15  # trials in the description
_COMPARED = 50  # runs that a page still shows, and whose ids leave room in the description
_MOST_LETTERS = 8000  # of a description


@dataclass(frozen=True)
class Parent:
    """A sweep's run.

    Args:
        uri: of the store.
        run_id: there.
        experiment_id: there.
        name: of the sweep.
        folder: of the sweep.
    """

    uri: str
    run_id: str
    experiment_id: str
    name: str
    folder: Path

    @classmethod
    def open(cls, sweep: Sweep, config: Config, uri: str, name: str, folder: Path, tags: Mapping[str, str]) -> Parent:
        """The run of this sweep; found again by its folder."""
        settings = sweep.settings.model_dump(mode="json", exclude={"name"})
        run_id = begin_run(
            uri,
            folder,
            config.tracking.experiment,
            name,
            tags={**run_tags(config, folder, command_of(sweep)), **tags, "sweep.stage": "sweep"},
            params={
                **{f"sweep.{key}": value for key, value in settings.items()},
                **{f"space.{key}": value for key, value in sweep.space_values.items()},
            },
            description=f"Sweep on {dataset_name(config)}, by `{command_of(sweep)}`: under way.",
        )
        return cls(uri, run_id, experiment_of(uri, run_id), name, folder)

    def end(self, status: Status, reason: str = "") -> None:
        """Sets how the sweep ended; where the store is away, `dmlscale sync` does so later."""
        delivery = end_run(self.uri, self.folder, status, reason)
        if delivery.problem:
            print(f"tracking      not all is delivered ({delivery.problem}): `dmlscale sync {self.folder}` sends it")

    def close_child(self, outcome: Outcome) -> None:
        """Ends the run of a trial whose processes are gone."""
        folder = Path(outcome.folder)
        if holds_spools(folder):
            end_run(self.uri, folder, "FAILED" if outcome.status == "failed" else "KILLED", outcome.reason)

    def compare_path(self, outcomes: Sequence[Outcome], settings: SweepConfig) -> str:
        """The page that compares evaluated trials, at most 50: it offers only metrics that all of its runs have."""
        ordered = [outcome for _, outcome in in_order(outcomes, settings.metric, settings.mode)]
        evaluated = [outcome.run_id for outcome in ordered if outcome.run_id and outcome.curve]
        chosen = evaluated or [outcome.run_id for outcome in ordered if outcome.run_id]
        return compare_path(self.experiment_id, chosen[:_COMPARED])

    def charts_path(self, settings: SweepConfig) -> str:
        """The page with the curves of all trials, best first."""
        tags = {"sweep": self.name, "sweep.stage": "trials"}
        metric = f"eval/{settings.select_on}/{settings.metric}"
        return charts_path(self.experiment_id, tags, metric, descending=settings.mode == "max")

    def show(
        self,
        sweep: Sweep,
        outcomes: Sequence[Outcome],
        final: Sequence[Outcome],
        comparison: Comparison | None,
        files: Mapping[Path, str],
    ) -> None:
        """Puts table, links, figures and the verdict into the run."""
        settings = sweep.settings
        winner = best(outcomes, settings.metric, settings.mode)
        metrics: dict[str, float] = {}
        tags: dict[str, str] = {}
        if winner is not None:
            metrics[f"best/{settings.select_on}/{settings.metric}"] = winner.value(settings.metric)
            tags = {"sweep.best_trial": winner.trial, "sweep.best_run": winner.run_id}
        if comparison is not None:
            split = sweep.base_config.data.eval_split
            metrics[f"final/{split}/{settings.metric}_best"] = comparison.best.mean
            metrics[f"final/{split}/{settings.metric}_defaults"] = comparison.defaults.mean
        update_parent(
            self.uri,
            self.folder,
            description=self._description(sweep, outcomes, final, winner, comparison),
            tags=tags,
            metrics=metrics,
            artifacts=files,
        )

    def _description(
        self,
        sweep: Sweep,
        outcomes: Sequence[Outcome],
        final: Sequence[Outcome],
        winner: Outcome | None,
        comparison: Comparison | None,
    ) -> str:
        settings, data = sweep.settings, sweep.base_config.data
        links = [f"[curves of all trials]({self.charts_path(settings)})"]
        which = "all trials" if len(outcomes) <= _COMPARED else f"the best {_COMPARED} trials"
        links.append(f"[compare {which}]({self.compare_path(outcomes, settings)})")
        if final:
            links.append(f"[compare the final runs]({self.compare_path(final, settings)})")
        model = sweep.base_config.tracking.registered_model
        if comparison is not None and model is not None:  # the best settings have been trained on all classes
            links.append(f"[registered model]({model_path(model)})")
        if winner is not None:
            found = f"{settings.metric} {winner.value(settings.metric):.4f} on {html.escape(settings.select_on)}"
            links.insert(0, f"Best: [{winner.trial}]({run_path(self.experiment_id, winner.run_id)}), {found}")
        lines = [" | ".join(links)]  # MLflow folds a description: what is not in its first lines takes a click
        if comparison is not None:
            lines.append(f"**{comparison.verdict}**")
            lines.append(f"On {html.escape(data.eval_split)}: best {comparison.best}, defaults {comparison.defaults}.")
        lines.append(f"{len(outcomes)} trials, by `{command_of(sweep)}`.")
        head = "\n\n".join(lines) + "\n\n"
        trials = summary_table(outcomes, settings.metric, settings.mode)
        return head + as_markdown(trials, limit=_SHOWN, most_letters=_MOST_LETTERS - len(head))


def command_of(sweep: Sweep) -> str:
    """What started it."""
    return f"dmlscale tune {sweep.file}"

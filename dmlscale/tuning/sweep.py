"""The command ``tune``: search on validation classes, then one look at the test split."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console, RenderableType

from dmlscale.config.load import check_config
from dmlscale.config.schema import Config
from dmlscale.launch import preflight
from dmlscale.launch.build import open_index
from dmlscale.launch.cluster import check_resources, ray_cluster, runs_at_once
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.models.export import export_of_run
from dmlscale.launch.run import run_folder
from dmlscale.launch.run.lease import held
from dmlscale.launch.tracked import marked_failed_on_error
from dmlscale.tracking.provenance import cluster_tags, git_tags
from dmlscale.tracking.store import dashboard_address, dashboard_command, is_server, resolve_uri, run_path
from dmlscale.tuning.config import Sweep, load_sweep
from dmlscale.tuning.outcomes import Outcome, best
from dmlscale.tuning.parent import Parent, command_of
from dmlscale.tuning.plan import BEST, OptunaDraw, check_sweep, final_trials
from dmlscale.tuning.results import BEST_FILE, compare, draw_figures, write_best, write_tables
from dmlscale.tuning.selection import SELECTED_ON_TEST, check_disjoint, selects_on_reported
from dmlscale.tuning.stage import Stage, name_of, run_stage
from dmlscale.tuning.sweep_folder import DONE_FILE, SWEEP_FILE, sweep_folder
from dmlscale.tuning.trial import Place, end_trial, read_outcomes, write_json
from dmlscale.tuning.trials_table import TrialsTable
from dmlscale.tuning.watch import StageWatch

EXIT_RESUME_ME = 75
FORGOTTEN = "forgotten when the sweep was killed"


def tune(config_file: str, overrides: list[str], *, resume: bool) -> int:
    """Searches as the file says and shows what was found.

    Returns:
        0; 1 if no trial has a result; 75 if it was stopped on the way and --resume goes on.
    """
    sweep = load_sweep(config_file, overrides)
    if resume and sweep.settings.name is None:
        raise LaunchError("--resume needs the name of the sweep to continue: add sweep.name=...")
    trials, any_trial = check_sweep(sweep)
    base = run_folder.resolve(sweep.base_config, "base")
    preflight.check_cheap(base)
    check_resources(base.resources)
    uri = resolve_uri(base.tracking.uri, folder=Path(base.run.folder).parent)
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(config_file).stem).lstrip("._-") or "sweep"
    folder = Path(base.run.folder) / (sweep.settings.name or f"{stem}-{datetime.now():%Y%m%d-%H%M%S}")
    with sweep_folder(folder, sweep, resume=resume), held(folder):
        if (folder / DONE_FILE).exists():
            print(f"{folder} is complete: nothing is left to do")
            return 0
        preflight.check_data(base, preflight.prepare_data(base, print))
        index = open_index(any_trial)
        preflight.check_data(any_trial, index)
        preflight.check_batch(any_trial, index)
        check_disjoint(any_trial, index, base, sweep.settings)
        tags = {"sweep": folder.name, **git_tags(Path.cwd()), **cluster_tags()}
        if selects_on_reported(sweep):
            tags |= SELECTED_ON_TEST
        with ray_cluster(base.resources, with_dashboard=True):
            _require_dashboard()
            parent = Parent.open(sweep, base, uri, folder.name, folder, tags)
            write_json(folder / SWEEP_FILE, sweep.as_values())
            run = _Run(sweep, base, any_trial, folder, parent, tags)
            print(f"sweep {folder.name}  {run.at_once} trial(s) at a time  folder {folder}", flush=True)
            with marked_failed_on_error(uri, folder), _terminated_like_interrupted():
                return run.both_stages(trials)


@dataclass(frozen=True)
class _Run:
    """A sweep at work, on a cluster that this process is connected to."""

    sweep: Sweep
    base: Config
    any_trial: Config
    folder: Path
    parent: Parent
    tags: dict[str, str]

    @property
    def at_once(self) -> int:
        """Trials at a time."""
        import ray

        fitting = runs_at_once(self.base.resources, ray.cluster_resources())
        return min(fitting, self.sweep.settings.concurrent or fitting)

    def both_stages(self, trials: list[dict[str, Any]] | None) -> int:
        """Searches and compares; returns the command's exit code."""
        settings = self.sweep.settings
        outcomes = self._stage("trials", trials, scheduled=True)
        if outcomes is None:
            return self._stopped()
        winner = best(outcomes, settings.metric, settings.mode)
        if winner is None:
            self._show(outcomes, [])
            self.parent.end("FAILED", "no trial has a result")
            print(f"\nno trial has a result; the first: {outcomes[0].reason if outcomes else 'none was begun'}")
            return 1
        config = best_config(winner, self.base)
        write_best(self.folder / BEST_FILE, winner, config, self.sweep)
        final: list[Outcome] | None = []
        if settings.repeats:
            final = self._stage("final", final_trials(self.sweep, config.model_dump(mode="json")), scheduled=False)
        if final is None:
            return self._stopped()
        self._show(outcomes, final)
        self._export(final)
        self.parent.end("FINISHED")
        write_json(self.folder / DONE_FILE, {})
        return 0

    def _stage(self, name: str, trials: list[dict[str, Any]] | None, *, scheduled: bool) -> list[Outcome] | None:
        """What became of a stage's trials; None if it was stopped on the way."""
        place = Place(
            folder=str(self.folder / name),
            tracking_uri=self.parent.uri,
            parent_run=self.parent.run_id,
            command=command_of(self.sweep),
            stage=name,
            tags=self.tags,
        )
        draw = None if trials is not None else OptunaDraw(self.sweep)
        stage = Stage(place, self.sweep.settings, trials, draw, self.any_trial, self.at_once)
        has_ended = False
        try:
            has_ended = run_stage(stage, self._watch(stage), scheduled=scheduled)
        finally:
            self._close_open(self.folder / name, for_good=has_ended)
        return read_outcomes(self.folder / name) if has_ended else None

    def _close_open(self, folder: Path, *, for_good: bool) -> None:
        """Ends the MLflow runs of trials whose processes are gone, so that none is RUNNING for ever.

        Args:
            folder: of the stage.
            for_good: the stage is over, so a trial without an end is one that a kill made Tune forget.
        """
        for outcome in read_outcomes(folder):
            if outcome.status in ("running", "pending"):
                reason = FORGOTTEN if for_good else "stopped with the sweep"
                if for_good:
                    end_trial(Path(outcome.folder), "stopped", reason, outcome.seconds)
                outcome = replace(outcome, status="stopped", reason=reason)
            if outcome.status != "finished":
                with suppress(Exception):  # a tracker that is away; what a trial recorded stays in its folder
                    self.parent.close_child(outcome)

    def _watch(self, stage: Stage) -> StageWatch:
        settings, started = self.sweep.settings, time.monotonic()

        def table(outcomes: list[Outcome]) -> RenderableType:
            elapsed, steps = time.monotonic() - started, self.any_trial.train.steps
            return TrialsTable(outcomes, settings.metric, settings.mode, steps=steps, elapsed=elapsed)

        reason = "behind the others (ASHA)" + ("" if settings.time_budget_minutes is None else ", or out of time")
        return StageWatch(stage.place.folder, name_of, table, self.parent.close_child, reason)

    def _show(self, outcomes: list[Outcome], final: list[Outcome]) -> None:
        """Table, figures, verdict: to the folder, to MLflow, and to the terminal."""
        settings, data = self.sweep.settings, self.base.data
        comparison = compare(final, settings.metric, settings.mode)
        files = draw_figures(self.folder, outcomes, final, self.sweep)
        files[write_tables(self.folder, outcomes, self.sweep)] = ""
        if (self.folder / BEST_FILE).exists():
            files[self.folder / BEST_FILE] = ""
        self.parent.show(self.sweep, outcomes, final, comparison, files)
        Console().print(TrialsTable(outcomes, settings.metric, settings.mode, steps=self.any_trial.train.steps))
        if comparison is not None:
            looked = ", which also decided" if selects_on_reported(self.sweep) else ", never looked at before"
            print(f"\n{settings.metric} on {data.eval_split}{looked}:")
            print(f"  best        {comparison.best}\n  defaults    {comparison.defaults}\n{comparison.verdict}")
        elif final:
            reasons = "; ".join(f"{outcome.trial} {outcome.status}: {outcome.reason}" for outcome in final)
            print(f"\nbest and defaults cannot be compared: {reasons}")
        if (self.folder / BEST_FILE).exists():
            print(f"\nbest config   {self.folder / BEST_FILE}")
        address = dashboard_address(self.parent.uri)
        print(f"mlflow run    {self.parent.run_id}  (experiment {self.base.tracking.experiment}, {self.parent.uri})")
        if not is_server(self.parent.uri):
            print(f"dashboard     {dashboard_command(self.parent.uri)}\n              then open")
        print(f"sweep         {address}/{run_path(self.parent.experiment_id, self.parent.run_id)}")
        print(f"curves        {address}/{self.parent.charts_path(settings)}")
        print(f"compare       {address}/{self.parent.compare_path(outcomes, settings)}")

    def _export(self, final: list[Outcome]) -> None:
        """The model of the best settings, of the first seed: which of the seeds is best must not be chosen by test."""
        for outcome in final:
            if outcome.status == "finished" and outcome.drawn["settings"] == BEST:
                folder = Path(outcome.folder)
                export_of_run(str(folder), folder, self.base.tracking.registered_model)
                return

    def _stopped(self) -> int:
        self.parent.end("KILLED", "stopped on request")
        print(
            f"\nstopped; every trial that has ended is kept. To go on, the same command with\n"
            f"    sweep.name={self.folder.name} --resume"
        )
        return EXIT_RESUME_ME


def best_config(winner: Outcome, base: Config) -> Config:
    """The settings of the best trial, with everything that concerns trials alone as in the base."""
    values = yaml.safe_load((Path(winner.folder) / run_folder.CONFIG_FILE).read_text())
    config = check_config(values, winner.trial)
    data = config.data.model_copy(
        update={key: getattr(base.data, key) for key in ("validation_classes", "eval_split", "gallery_split")}
    )
    return config.model_copy(
        update={"data": data, "evaluation": base.evaluation, "run": base.run, "tracking": base.tracking}
    )


def _require_dashboard() -> None:
    """Whether Ray can tell of its actors, without which trials that are stopped early keep their resources.

    Raises:
        LaunchError: it cannot.
    """
    import ray
    from ray.util.state import list_nodes

    try:
        list_nodes(address=ray.get_runtime_context().gcs_address, limit=1, timeout=20)
    except Exception as error:
        raise LaunchError(
            "the Ray cluster has no dashboard that answers, and without it trials that are stopped early would keep "
            "their resources for good: start it with `ray start --head --include-dashboard=true` (and "
            f'`pip install "ray[default]"`): {str(error).splitlines()[0][:200]}'
        ) from error


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """SIGTERM does what Ctrl-C does: Tune saves its state and stops the trials."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: os.kill(os.getpid(), signal.SIGINT))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

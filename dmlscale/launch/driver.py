"""The commands ``train`` and ``evaluate``, as the process that the user started sees them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dmlscale.config.load import check_config, load_config, override_values
from dmlscale.config.schema import Config
from dmlscale.launch import preflight, summary
from dmlscale.launch.build import open_index
from dmlscale.launch.display import ProgressTail
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.models.export import export_of_run
from dmlscale.launch.recovery.supervision import WITHOUT_WORKERS
from dmlscale.launch.run import lease, run_folder
from dmlscale.launch.run.checkpoint_places import find_checkpoint
from dmlscale.launch.run.continuation import continues, unfinished_twin
from dmlscale.launch.run.run_state import newest_step, state_on_error, write_state
from dmlscale.launch.signals import beside, stop_on_signal
from dmlscale.launch.task import Task
from dmlscale.launch.tracked import mark_stopped, marked_failed_on_error, run_id_of, start_run, where_recorded
from dmlscale.tracking.store import resolve_uri
from dmlscale.training import checkpoint

# sysexits.h: a temporary failure; the same command goes on.
EXIT_RESUME_ME = 75


def train(config_file: str, overrides: list[str], *, local: bool, resume: bool, json_file: str | None) -> int:
    """Trains as the config says and shows the figures; goes on with the run of this name if it is not finished.

    Returns:
        0, or `EXIT_RESUME_ME` if the run was asked to stop and has saved itself.
    """
    started = time.monotonic()
    asked = load_config(config_file, overrides)
    if resume and asked.run.name is None:
        raise LaunchError("--resume needs the name of the run to continue: add run.name=...")
    config_name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(config_file).stem).lstrip("._-") or "run"
    config = run_folder.resolve(asked, config_name)
    _check_before_work(config, local)
    uri = resolve_uri(config.tracking.uri, folder=Path(config.run.folder).parent)
    summary.check_json(json_file)
    if asked.run.name is None and (twin := unfinished_twin(config, config_name)):
        print(twin, flush=True)
    folder = run_folder.make_folder(config)
    with lease.held(folder) as held:
        if not resume and continues(config, folder):
            resume = True
            print(f"continuing run {folder.name} at step {newest_step(folder)} (it was not finished)", flush=True)
        run_folder.open_folder(config, resume=resume)
        index = preflight.prepare_data(config, print)
        run_folder.check_same_dataset(folder, index)
        preflight.check_data(config, index)
        preflight.check_batch(config, index)
        run_id = start_run(config, index, uri, folder, f"dmlscale train {config_file}")
        run_folder.write_config(config, index, folder)
        task = Task("train", config.model_dump(mode="json"), str(folder), None, uri, run_id)
        print(f"run {config.run.name}  {_workers(config, local)}  folder {folder}", flush=True)
        with marked_failed_on_error(uri, folder):
            result = _trained(task, config, held, local=local)
        if result.pop(WITHOUT_WORKERS, False):
            mark_stopped(uri, folder)
    result |= {"run": config.run.name, "folder": str(folder), "tracking_uri": uri, "tracking_run": run_id_of(folder)}
    result["seconds"] = time.monotonic() - started
    summary.write_json(json_file, result)
    if result["stopped"]:
        print(
            f"\nstopped at step {result['step']} with everything saved; to go on, the same command with\n"
            f"    run.name={config.run.name}"
        )
        return EXIT_RESUME_ME
    summary.show(result, config)
    print(f"\ncheckpoint    {result['checkpoint']}")
    if best := result["best"]:
        print(f"best          {best['checkpoint']}  ({best['metric']} {best['value']:.4f})")
    export_of_run(str(folder), folder, config.tracking.registered_model)
    for line in where_recorded(uri, folder, config.tracking.experiment):
        print(line)
    return 0


def _trained(task: Task, config: Config, held: lease.Lease, *, local: bool) -> dict[str, Any]:
    """The result of the workers; meanwhile the run's state is kept up to date and signals ask for a stop."""
    folder = Path(task.folder)

    def note_stop() -> None:
        write_state(folder, "stopping")

    write_state(folder, "training" if local else "starting")
    with state_on_error(folder), stop_on_signal(task.stop_file, note_stop) as handlers, ProgressTail(task.progress):
        result = beside(lambda: _runner(local)(task, config), handlers, held.check)
    write_state(folder, "stopped" if result["stopped"] else "finished")  # no signal is to say "stopping" after it
    return result


def evaluate(
    checkpoint_path: str,
    overrides: list[str],
    *,
    local: bool,
    json_file: str | None,
    report_folder: str | None = None,
    best: bool = False,
) -> int:
    """Evaluates a checkpoint on its run's evaluation split, or on what the overrides say, and shows the figures.

    Where a folder is given, the report is written into it: report.html and its figures as PNG files. Of a run, the
    newest checkpoint is taken, or the best.
    """
    path = find_checkpoint(checkpoint_path, best=best)
    record = checkpoint.read_record(path)
    config = check_config(override_values(record.config, overrides), str(path / "record.json"))
    config = run_folder.resolve(config, "evaluation")
    _check_before_work(config, local)
    summary.check_json(json_file)
    report = None if report_folder is None else str(summary.open_report_folder(report_folder))
    index = open_index(config)
    preflight.check_evaluation(config, index)
    preflight.check_shards(config, index, (config.data.eval_split, config.data.gallery_split))
    folder = str(run_folder.folder_of(checkpoint_path, path))
    task = Task("evaluate", config.model_dump(mode="json"), folder, str(path), report_folder=report)
    result = _runner(local)(task, config)
    summary.write_json(json_file, result)
    summary.show(result, config)
    return 0


def _check_before_work(config: Config, local: bool) -> None:
    preflight.check_cheap(config)
    if local:
        from dmlscale.launch.local import local_device

        local_device(config.resources)
    else:
        from dmlscale.launch.cluster import check_resources

        check_resources(config.resources)


def _runner(local: bool) -> Callable[[Task, Config], dict[str, Any]]:
    if local:
        from dmlscale.launch.local import run_local

        return lambda task, config: run_local(task, config.resources)
    from dmlscale.launch.ray_train import run_on_ray

    return lambda task, config: run_on_ray(task, config.resources)


def _workers(config: Config, local: bool) -> str:
    return "in this process" if local else f"on {config.resources.workers} Ray worker(s)"

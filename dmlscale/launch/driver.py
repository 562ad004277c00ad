"""The commands ``train`` and ``evaluate``, as the process that the user started sees them."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from dmlscale.config.load import check_config, load_config, override_values
from dmlscale.config.schema import Config
from dmlscale.launch import preflight, run_folder
from dmlscale.launch.build import open_index
from dmlscale.launch.display import ProgressTail, left_out_lines, metrics_table
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.evaluation.report import REPORT_FILE
from dmlscale.launch.models.export import export_of_run
from dmlscale.launch.task import Task
from dmlscale.launch.tracked import marked_failed_on_error, start_run
from dmlscale.tracking.store import dashboard_command, is_server, resolve_uri, run_url
from dmlscale.training import checkpoint

Handler = Callable[[int, FrameType | None], None]
# sysexits.h: a temporary failure; the same command with --resume goes on.
EXIT_RESUME_ME = 75


def train(config_file: str, overrides: list[str], *, local: bool, resume: bool, json_file: str | None) -> int:
    """Trains as the config says and shows the figures.

    Returns:
        0, or `EXIT_RESUME_ME` if the run was asked to stop and has saved itself.
    """
    started = time.monotonic()
    asked = load_config(config_file, overrides)
    if resume and asked.run.name is None:
        raise LaunchError("--resume needs the name of the run to continue: add run.name=...")
    config = run_folder.resolve(asked, re.sub(r"[^A-Za-z0-9._-]+", "-", Path(config_file).stem).lstrip("._-") or "run")
    _check_before_work(config, local)
    uri = resolve_uri(config.tracking.uri, folder=Path(config.run.folder).parent)
    _check_json(json_file)
    folder = run_folder.open_folder(config, resume=resume)
    index = preflight.prepare_data(config, print)
    run_folder.check_same_dataset(folder, index)
    preflight.check_data(config, index)
    preflight.check_batch(config, index)
    run_id = start_run(config, index, uri, folder, f"dmlscale train {config_file}")
    run_folder.write_config(config, index, folder)
    task = Task("train", config.model_dump(mode="json"), str(folder), None, uri, run_id)
    print(f"run {config.run.name}  {_workers(config, local)}  folder {folder}", flush=True)
    with marked_failed_on_error(uri, run_id), _stop_on_signal(task.stop_file) as handlers, ProgressTail(task.progress):
        result = _beside(lambda: _runner(local)(task, config), handlers)
    result |= {"run": config.run.name, "folder": str(folder), "tracking_uri": uri, "tracking_run": run_id}
    result["seconds"] = time.monotonic() - started
    _write_json(json_file, result)
    if result["stopped"]:
        print(
            f"\nstopped at step {result['step']} with everything saved; to go on, the same command with\n"
            f"    run.name={config.run.name} --resume"
        )
        return EXIT_RESUME_ME
    _show(result, config)
    if result["skipped"]:
        why = ", ".join(f"{count:,} x {kind}" for kind, count in result["skipped"].items())
        print(f"\nskipped       training samples that could not be read: {why}; `dmlscale verify` names them")
    print(f"\ncheckpoint    {result['checkpoint']}")
    export_of_run(result["checkpoint"], folder, config.tracking.registered_model)
    print(f"mlflow run    {run_id}  (experiment {config.tracking.experiment}, {uri})")
    if is_server(uri):
        print(f"dashboard     {run_url(uri, run_id)}")
    else:
        print(f"dashboard     {dashboard_command(uri)}\n              then open {run_url(uri, run_id)}")
    return 0


def evaluate(
    checkpoint_path: str, overrides: list[str], *, local: bool, json_file: str | None, report_folder: str | None = None
) -> int:
    """Evaluates a checkpoint on its run's evaluation split, or on what the overrides say, and shows the figures.

    Where a folder is given, the report is written into it: report.html and its figures as PNG files.
    """
    path = run_folder.find_checkpoint(checkpoint_path)
    record = checkpoint.read_record(path)
    config = check_config(override_values(record.config, overrides), str(path / "record.json"))
    config = run_folder.resolve(config, "evaluation")
    _check_before_work(config, local)
    _check_json(json_file)
    report = None if report_folder is None else str(_open_report_folder(report_folder))
    index = open_index(config)
    preflight.check_evaluation(config, index)
    preflight.check_shards(config, index, (config.data.eval_split, config.data.gallery_split))
    task = Task("evaluate", config.model_dump(mode="json"), str(path.parent.parent), str(path), report_folder=report)
    result = _runner(local)(task, config)
    _write_json(json_file, result)
    _show(result, config)
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


def _beside(job: Callable[[], dict[str, Any]], handlers: Mapping[int, Handler]) -> dict[str, Any]:
    """Runs a job in a thread and waits for it here, where signals arrive.

    Ray puts handlers of its own in place, from Python if it is started in the main thread and from C++ in any: a
    stop would then end the run without a checkpoint. So it is started in another thread, and ours are kept.
    """
    done: Future[dict[str, Any]] = Future()

    def run() -> None:
        try:
            done.set_result(job())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="job", daemon=True).start()
    while not done.done():
        for number, handler in handlers.items():
            signal.signal(number, handler)
        wait([done], timeout=0.2)
    return done.result()


def _workers(config: Config, local: bool) -> str:
    return "in this process" if local else f"on {config.resources.workers} Ray worker(s)"


@contextmanager
def _stop_on_signal(stop_file: Path) -> Iterator[Mapping[int, Handler]]:
    """SIGTERM and Ctrl-C ask the workers to save and stop; a second one ends at once."""

    def ask(number: int, frame: FrameType | None) -> None:
        if stop_file.exists():
            raise KeyboardInterrupt
        stop_file.touch()
        print("\nstopping: saving a checkpoint first (once more to end at once)", flush=True)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield dict.fromkeys(before, ask)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        stop_file.unlink(missing_ok=True)


def _check_json(json_file: str | None) -> None:
    if json_file and Path(json_file).is_dir():
        raise LaunchError(f"--json {json_file} is a folder: name a file in it")
    if json_file and not os.access(Path(json_file).absolute().parent, os.W_OK):
        raise LaunchError(f"--json {json_file}: its folder does not exist or cannot be written")


def _open_report_folder(folder: str) -> Path:
    """The folder, made if it is not there; evaluating first and failing then would be a pity.

    Raises:
        LaunchError: it cannot be made, or not be written.
    """
    path = Path(folder).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LaunchError(f"--report {folder}: cannot be made: {error.strerror}") from None
    if not os.access(path, os.W_OK):
        raise LaunchError(f"--report {folder}: cannot be written")
    return path


def _write_json(json_file: str | None, result: dict[str, Any]) -> None:
    if json_file:
        Path(json_file).write_text(json.dumps(result, indent=1) + "\n")


def _show(result: dict[str, Any], config: Config) -> None:
    title = f"zero-shot retrieval, {config.data.eval_split} split of {Path(config.data.path).name}"
    if config.data.gallery_split:
        title += f", searched in {config.data.gallery_split}"
    Console().print(metrics_table(title, result["metrics"], result["raw_pixels"], result["intervals"]))
    for line in left_out_lines(result["left_out"]):
        print(line)
    if "report" in result:
        print(f"\nreport        {Path(result['report']) / REPORT_FILE}")

"""The command ``sync``: what the folders of runs hold -> the store of runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import yaml

from dmlscale.config.load import check_config
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.run.lease import held, is_driven
from dmlscale.launch.run.run_folder import CONFIG_FILE
from dmlscale.launch.tracked import flat_params, run_tags
from dmlscale.tracking.run_file import KnownRun, earlier_ids, known_run, note_run
from dmlscale.tracking.sender import first_line
from dmlscale.tracking.spools import holds_spools
from dmlscale.tracking.store import resolve_uri

_DEEPEST = 3  # a sweep's trials lie two folders below the folder of all runs


def sync(folders: Sequence[str], *, uri: str | None) -> int:
    """Sends what runs have recorded and their store lacks, such as after it was away, and says so for each run.

    Args:
        folders: of runs, of sweeps, or with such folders in them.
        uri: the store; None for the one that each run was begun with. To another store than before a run is sent from
            its beginning, but for files over 1 MiB, of which no copies are kept.

    Returns:
        0 if all is delivered, else 1.

    Raises:
        LaunchError: a folder is not there, or holds no run that was recorded.
        StoreError: a store that cannot be used.
    """
    store = None if uri is None else resolve_uri(uri)
    runs = [run for folder in folders for run in _runs(Path(folder).absolute())]
    results: list[bool] = []
    parents: dict[str, str] = {}
    for run in dict.fromkeys(runs):
        is_done, line = _sync(run, store, parents)
        print(f"{run}: {line}", flush=True)
        results.append(is_done)
        known = known_run(run)
        if known is not None:  # the trials of a sweep come after it
            parents |= dict.fromkeys(earlier_ids(run), known.run_id)
    return 0 if all(results) else 1


def _runs(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise LaunchError(f"{folder} is not there, or no folder")
    runs = list(_below(folder, _DEEPEST))
    if not runs:
        raise LaunchError(f"{folder} holds no run that was recorded: name the folder of a run, a sweep, or all runs")
    return runs


def _below(folder: Path, depth: int) -> Iterator[Path]:
    if holds_spools(folder):
        yield folder
    if depth:
        for inner in sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()):
            yield from _below(inner, depth - 1)


def _sync(run: Path, store: str | None, parents: Mapping[str, str]) -> tuple[bool, str]:
    """Whether all of a run is delivered, and what became of it."""
    from dmlscale.tracking.mlflow import is_delivered, last_status, recorded_store, send_rest

    if any(is_driven(folder) for folder in (run, *run.parents[:2])):  # a trial is driven by its sweep
        return False, "is at work, and sends by itself"
    known = known_run(run)
    uri = store or (known.uri if known else "") or recorded_store(run) or _configured_store(run)
    if not uri:
        return False, "failed: nobody wrote down its store: name it with --uri"
    try:
        if store is None and is_delivered(uri, run):  # a store that is named is asked whether it has the run
            return True, "nothing to send"
        with held(run):
            if known is None and not recorded_store(run):
                _find_old_run(run, uri)
            delivery = send_rest(uri, run, parents=parents)
    except Exception as error:  # whatever one run has, the others are sent
        return False, f"failed: {first_line(error)}"
    if delivery.problem:
        return False, f"failed: {delivery.left:,} records are left: {delivery.problem}"
    known = known_run(run)
    if not delivery.sent or known is None:
        return True, "nothing to send"
    return True, f"{delivery.sent:,} records sent, run {known.run_id} {last_status(run)} ({uri})"


def _configured_store(run: Path) -> str:
    if not (run / CONFIG_FILE).is_file():
        return ""
    config = check_config(yaml.safe_load((run / CONFIG_FILE).read_text()), str(run / CONFIG_FILE))
    return resolve_uri(config.tracking.uri, folder=Path(config.run.folder).parent)


def _find_old_run(run: Path, uri: str) -> None:
    """A run that was begun by a version that did not write down what it is: found by its folder, or made."""
    from dmlscale.tracking.mlflow import start_or_continue

    config = check_config(yaml.safe_load((run / CONFIG_FILE).read_text()), str(run / CONFIG_FILE))
    run_id = start_or_continue(
        uri,
        config.tracking.experiment,
        config.run.name or run.name,
        key=str(run),
        tags=run_tags(config, run, "dmlscale sync"),
        params=flat_params(config),
    )
    note_run(run, KnownRun(uri, run_id))

"""What the tracker is told of a run before its workers start, and when they end badly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from dmlscale.config.schema import Config
from dmlscale.data.index import Index
from dmlscale.launch.run.lease import read_holder, this_process
from dmlscale.tracking.provenance import cluster_tags, git_tags
from dmlscale.tracking.run_file import known_run
from dmlscale.tracking.spools import num_undelivered
from dmlscale.tracking.store import dashboard_command, is_server, run_url
from dmlscale.tracking.tracker import Status


def start_run(
    config: Config,
    index: Index,
    uri: str,
    folder: Path,
    command: str,
    *,
    tags: Mapping[str, Any] | None = None,
    description: str = "",
    without: tuple[str, ...] = (),
    if_unreachable: Literal["fail", "continue"] | None = None,
) -> str:
    """Makes the run in the tracking store, or continues the one of this folder.

    Args:
        config: resolved.
        index: the dataset.
        uri: of the store.
        folder: of the run, by which it is found again.
        command: that started it.
        tags: beside those that every run has.
        description: Markdown, after what every run says.
        without: parameters to leave out.
        if_unreachable: in place of ``tracking.if_unreachable``.

    Returns:
        The id of the run; empty if the store is away and has not made it yet.

    Raises:
        TrackingUnreachableError: the store is away, and the run shall not begin without it.
        TrackingDeniedError: it refuses access.
    """
    from dmlscale.tracking.mlflow import DatasetNote, begin_run

    assert config.run.name is not None
    d = config.data
    digest = _digest({**index.description, "validation_classes": d.validation_classes})
    dataset = dataset_name(config)
    losses = loss_name(config)
    splits = ((d.train_split, "train"), (d.eval_split, "eval"), (d.gallery_split, "gallery"))
    return begin_run(
        uri,
        folder,
        config.tracking.experiment,
        config.run.name,
        tags={**run_tags(config, folder, command), **(tags or {})},
        params={name: value for name, value in flat_params(config).items() if name not in without},
        description=f"**{losses}** on {dataset}, by `{command}`{description}",
        datasets=[
            DatasetNote(f"{dataset}/{split}", digest, d.path, index.description, context)
            for split, context in splits
            if split is not None
        ],
        if_unreachable=if_unreachable or config.tracking.if_unreachable,
        say=_say,
    )


def run_id_of(folder: Path) -> str:
    """The id of the run of a folder; empty while its store has not made it."""
    known = known_run(folder)
    return "" if known is None else known.run_id


def where_recorded(uri: str, folder: Path, experiment: str) -> list[str]:
    """Lines that tell where to look at the run of a folder, or how to send it."""
    known, left = known_run(folder), num_undelivered(folder)
    lines = []
    if left:
        lines.append(f"tracking      {left:,} records are not delivered yet: `dmlscale sync {folder}` sends them")
    if known is None:
        return lines
    lines.append(f"mlflow run    {known.run_id}  (experiment {experiment}, {uri})")
    if is_server(uri):
        return [*lines, f"dashboard     {run_url(uri, known.run_id)}"]
    return [*lines, f"dashboard     {dashboard_command(uri)}", f"              then open {run_url(uri, known.run_id)}"]


def _say(*, fault: str = "", message: str = "") -> None:
    print(f"fault: {fault}" if fault else message, flush=True)


def run_tags(config: Config, folder: Path, command: str) -> dict[str, Any]:
    """What runs are filtered by: loss, backbone, dataset, commit, and the job of the cluster."""
    return {
        **git_tags(Path.cwd()),
        **cluster_tags(),
        "mlflow.source.name": command,
        "mlflow.source.type": "LOCAL",
        "loss": loss_name(config),
        "backbone": config.model.backbone,
        "dataset": dataset_name(config),
        "dmlscale.folder": str(folder),
    }


def loss_name(config: Config) -> str:
    """The losses by name."""
    return " + ".join(term.name for term in config.losses)


def dataset_name(config: Config) -> str:
    """The last part of the dataset's path."""
    return Path(config.data.path).name


def flat_params(config: Config) -> dict[str, Any]:
    """Settings by dotted name; those of a single loss as ``loss.margin``, of several as ``loss.0.margin``."""
    flat: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else key, inner)
        else:
            flat[prefix] = value

    values = config.model_dump(mode="json")
    terms = values.pop("losses")
    for n, term in enumerate(terms):
        options = term.pop("options")
        add("loss" if len(terms) == 1 else f"loss.{n}", term | options)
    add("", values)
    return flat


@contextmanager
def marked_failed_on_error(uri: str, folder: Path) -> Iterator[None]:
    """A run whose block ends with an error is FAILED in the store, or KILLED if someone interrupted it.

    Where the store is away, `dmlscale sync` says so later.

    Args:
        uri: of the store.
        folder: of the run.
    """
    try:
        yield
    except BaseException as error:
        if read_holder(folder) not in (None, this_process()):  # another driver goes on with the run
            raise
        from dmlscale.tracking.mlflow import end_run

        status: Status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        with suppress(Exception):  # the error itself must not be hidden by a tracker that is gone
            end_run(uri, folder, status, f"{type(error).__name__}: {error}".splitlines()[0])
        raise


def mark_stopped(uri: str, folder: Path) -> None:
    """Says that a run was stopped on request, where no workers were there to say so."""
    from dmlscale.tracking.mlflow import end_run

    with suppress(Exception):  # what is left to say is sent by `dmlscale sync`
        end_run(uri, folder, "KILLED", "stopped on request")


def _digest(description: Mapping[str, Any]) -> str:
    """A short name of a dataset's content, from what its description says."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]

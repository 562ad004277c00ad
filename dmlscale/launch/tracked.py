"""What the tracker is told of a run before its workers start, and when they end badly."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dmlscale.config.schema import Config
from dmlscale.data.index import Index
from dmlscale.tracking.provenance import cluster_tags, git_tags
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

    Returns:
        The id of the run.
    """
    from dmlscale.tracking.mlflow import DatasetNote, start_or_continue

    assert config.run.name is not None
    d = config.data
    digest = _digest({**index.description, "validation_classes": d.validation_classes})
    dataset = dataset_name(config)
    losses = loss_name(config)
    splits = ((d.train_split, "train"), (d.eval_split, "eval"), (d.gallery_split, "gallery"))
    return start_or_continue(
        uri,
        config.tracking.experiment,
        config.run.name,
        key=str(folder),
        tags={**run_tags(config, folder, command), **(tags or {})},
        params={name: value for name, value in flat_params(config).items() if name not in without},
        description=f"**{losses}** on {dataset}, by `{command}`{description}",
        datasets=[
            DatasetNote(f"{dataset}/{split}", digest, d.path, index.description, context)
            for split, context in splits
            if split is not None
        ],
    )


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
def marked_failed_on_error(uri: str, run_id: str) -> Iterator[None]:
    """A run whose block ends with an error is FAILED in the store, or KILLED if someone interrupted it."""
    try:
        yield
    except BaseException as error:
        from dmlscale.tracking.mlflow import end_run

        status: Status = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        with suppress(Exception):  # the error itself must not be hidden by a tracker that is gone
            end_run(uri, run_id, status, f"{type(error).__name__}: {error}".splitlines()[0])
        raise


def _digest(description: Mapping[str, Any]) -> str:
    """A short name of a dataset's content, from what its description says."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()[:16]

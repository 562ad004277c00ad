"""A trained model -> a version of a registered model in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from dmlscale.data.decoding.contents import Content
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.models.embedding_model import EmbeddingModel
from dmlscale.tracking.run_file import KnownRun, known_run
from dmlscale.training.state import Record

if TYPE_CHECKING:  # 3 s to import
    from dmlscale.tracking.mlflow import ModelNote

_SERVING_FILE = Path(__file__).with_name("serving.py")
_SERVING_PACKAGES = ("dmlscale", "mlflow", "torch", "torchvision", "timm", "numpy")
_HASH_TAG = "dmlscale.content_hash"


def check_registration(record: Record, name: str) -> None:
    """Whether the model of a checkpoint can be registered; changes nothing.

    Args:
        record: of the checkpoint.
        name: of the registered model.

    Raises:
        LaunchError: its run was not tracked, or its store has been away so far.
        TrackingUnreachableError: the store does not answer.
        RegistryError: the store does not know the run, or refuses the name.
    """
    from dmlscale.tracking.mlflow import check_registrable

    check_registrable(*_tracked(record), name)


def register_model(model: EmbeddingModel, folder: Path, record: Record, name: str, sample: Sequence[Content]) -> None:
    """Logs an exported folder with its run and makes it a version of a registered model, if it is none yet.

    Args:
        model: that was exported.
        folder: of the export.
        record: of the checkpoint.
        name: of the registered model.
        sample: the contents of its files, for the example.

    Raises:
        TrackingUnreachableError: the store does not answer.
        RegistryError: the store does not know the run, or refuses the name.
    """
    from dmlscale.tracking.mlflow import find_version, log_model

    uri, run_id = _tracked(record)
    registered = find_version(uri, run_id, name, {_HASH_TAG: model.content_hash})
    remark = ", with the same weights, was there"
    if registered is None:
        remark = ""
        registered = log_model(
            uri, run_id, folder, _note(model, sample), code=_SERVING_FILE, step=record.step, registered_name=name
        )
    print(f"registered    {registered.uri}{remark}  ({uri})")


def _tracked(record: Record) -> KnownRun:
    """The run of a checkpoint; where it was recorded anew in another store, the run there."""
    run_id, run = record.tracking.get("run"), record.config["run"]
    if run_id is None:
        raise LaunchError("--register: the run was not tracked by MLflow; export it without --register")
    folder = Path(run["folder"]) / run["name"]
    known = known_run(folder) or KnownRun(record.tracking["uri"], run_id)
    if not known.run_id:
        raise LaunchError(f"--register: MLflow has been away since the run began: first `dmlscale sync {folder}`")
    return known


def _note(model: EmbeddingModel, sample: Sequence[Content]) -> ModelNote:
    from dmlscale.tracking.mlflow import ModelNote

    kind, origin = model.config.data.input, model.origin
    return ModelNote(
        input=kind,
        embedding_dim=model.embedding_dim,
        example=model.decoder(sample).numpy() if kind == "array" else [bytes(part) for part in sample],
        requirements=[f"{package}=={version(package).partition('+')[0]}" for package in _SERVING_PACKAGES],
        description=f"**{origin.losses}** on {origin.dataset}, {model.config.model.backbone} with "
        f"{model.embedding_dim} values a sample, from `{origin.run}` at step {origin.step}",
        tags={
            "loss": origin.losses,
            "dataset": origin.dataset,
            "backbone": model.config.model.backbone,
            "dmlscale.run": origin.run,
            "dmlscale.step": origin.step,
            _HASH_TAG: model.content_hash,
        },
        main_metric=f"eval/{model.config.data.eval_split}/recall_at_1",
    )

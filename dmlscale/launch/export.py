"""The command ``export``: a checkpoint -> a folder with the model, and a version in MLflow's registry."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import numpy as np
from torch import Tensor

from dmlscale.data.decoding.contents import Content
from dmlscale.data.errors import DataError
from dmlscale.data.reader import LostSampleError, Reader
from dmlscale.data.transforms import apply
from dmlscale.launch.build import open_index
from dmlscale.launch.embedding_model import EmbeddingModel
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.exported_folder import MODEL_FILE, WEIGHTS_FILE, write_model
from dmlscale.launch.model_folder import load_checkpoint
from dmlscale.launch.onnx_export import export_onnx, require_packages
from dmlscale.launch.run_folder import find_checkpoint
from dmlscale.training import checkpoint
from dmlscale.training.state import Record

ONNX_FILE = "model.onnx"
_NUM_EXAMPLES = 5
_TRIED = 64  # samples, where some cannot be read
_SERVING_FILE = Path(__file__).with_name("serving.py")
_SERVING_PACKAGES = ("dmlscale", "mlflow", "torch", "torchvision", "timm", "numpy")


def export(checkpoint_path: str, folder: str, *, onnx: bool, register: str | None) -> int:
    """Writes the model of a checkpoint into a folder that needs no checkpoint, no dataset and no config.

    Args:
        checkpoint_path: a checkpoint, or a run, of which the newest is taken.
        folder: to write; it must not be there, or be empty.
        onnx: also write the network as ONNX, compared with the original. Takes some samples of the dataset.
        register: also log the model with its MLflow run, and make it a version of the registered model of this name.
            Takes a sample of the dataset as an example.

    Returns:
        0.

    Raises:
        LaunchError: the folder is not empty, packages are missing, the run is not tracked, or the ONNX file is not
            equal to the network.
        DataError: the dataset cannot be read.
    """
    path, target = find_checkpoint(checkpoint_path), Path(folder)
    record = checkpoint.read_record(path)
    _check_target(target)
    if onnx:
        require_packages()
    if register is not None and record.tracking.get("run") is None:
        raise LaunchError(f"--register: the run of {path} was not tracked by MLflow; export it without --register")
    model = load_checkpoint(path)
    samples = _samples(model) if onnx or register is not None else []
    _write(model, target, _transformed(model, samples) if onnx else None)
    if register is not None:
        _register(model, target, record, register, samples[0])
    return 0


def export_of_run(checkpoint_path: str, run_folder: Path, register: str | None) -> None:
    """What a finished training leaves: its model in the run's folder, anew, and a version of a registered model.

    The training is over and all of it is kept, so what goes wrong here is said and ends nothing.

    Args:
        checkpoint_path: the last one.
        run_folder: the model goes to ``model`` in it.
        register: name of the registered model; None registers nothing.
    """
    target = run_folder / "model"
    shutil.rmtree(target, ignore_errors=True)
    try:
        export(checkpoint_path, str(target), onnx=False, register=register)
    except Exception as error:
        named = f" --register {register}" if register else ""
        print(
            f"warning: the model was not exported: {error}\nThe run is complete; once that is put right: "
            f"dmlscale export {run_folder} FOLDER{named}"
        )


def _check_target(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise LaunchError(f"{target} is there already and is no empty folder: name another one")


def _write(model: EmbeddingModel, target: Path, examples: Tensor | None) -> None:
    """All files or none: they are written beside the folder, which they then become."""
    partial = target.absolute().parent / f".partial-{target.name}-{uuid.uuid4().hex[:8]}"
    try:
        partial.mkdir(parents=True)
        write_model(model, partial)
        difference = None if examples is None else export_onnx(model, partial / ONNX_FILE, examples)
        partial.rename(target)
    except OSError as error:
        raise LaunchError(f"cannot write {target}: {error.strerror}; choose another folder") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"model         {model.name}: {model.config.model.backbone}, {model.embedding_dim} values a sample")
    print(f"exported      {target}: {MODEL_FILE}, {WEIGHTS_FILE}", end="")
    print("" if difference is None else f", {ONNX_FILE} (differs by {difference:.1e} at most)")


def _register(model: EmbeddingModel, folder: Path, record: Record, name: str, sample: Sequence[Content]) -> None:
    from dmlscale.tracking.mlflow import ModelNote, log_model  # 3 s to import

    kind, origin = model.config.data.input, model.origin
    note = ModelNote(
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
            "dmlscale.content_hash": model.content_hash,
        },
        main_metric=f"eval/{model.config.data.eval_split}/recall_at_1",
    )
    registered = log_model(
        record.tracking["uri"],
        record.tracking["run"],
        folder,
        note,
        code=_SERVING_FILE,
        step=record.step,
        registered_name=name,
    )
    print(f"registered    {registered.uri}  ({record.tracking['uri']})")


def _samples(model: EmbeddingModel) -> list[Sequence[Content]]:
    """Some readable samples of the evaluation split.

    Raises:
        DataError: the dataset cannot be read.
    """
    index = open_index(model.config).split(model.config.data.eval_split)
    reader = Reader(index, model.decoder)
    found: list[Sequence[Content]] = []
    for position in np.unique(np.linspace(0, len(index) - 1, _TRIED).astype(int)).tolist():
        with suppress(LostSampleError):
            (row_id,) = index.row_ids_between(position, position + 1).tolist()
            reader.decoded(row_id)
            found.append(reader.read(row_id))
        if len(found) == _NUM_EXAMPLES:
            break
    reader.close()
    if not found:
        raise DataError(f"none of {_TRIED} samples of {index.storage} can be read: `dmlscale verify` tells why")
    return found


def _transformed(model: EmbeddingModel, samples: Sequence[Sequence[Content]]) -> Tensor:
    """(n, ...) what the network sees of samples."""
    decoded = [model.decoder(parts) for parts in samples]
    return apply(model.transform, decoded, np.arange(len(decoded)), seed=0, epoch=0)

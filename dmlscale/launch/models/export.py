"""The command ``export``: a checkpoint -> a folder with the model, and a version in MLflow's registry."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from torch import Tensor

from dmlscale.data.decoding.contents import Content
from dmlscale.data.errors import DataError
from dmlscale.data.reader import LostSampleError, Reader
from dmlscale.data.transforms import apply
from dmlscale.launch.build import open_index
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.models.embedding_model import EmbeddingModel
from dmlscale.launch.models.exported_folder import MODEL_FILE, WEIGHTS_FILE, load_exported, write_model
from dmlscale.launch.models.model_folder import load_checkpoint
from dmlscale.launch.models.onnx_export import export_onnx, require_packages
from dmlscale.launch.models.register import check_registration, register_model
from dmlscale.launch.run.checkpoint_places import find_checkpoint
from dmlscale.training import checkpoint

ONNX_FILE = "model.onnx"
_NUM_EXAMPLES = 5
_TRIED = 64  # samples, where some cannot be read


def export(checkpoint_path: str, folder: str, *, onnx: bool, register: str | None) -> int:
    """Writes the model of a checkpoint into a folder that needs no checkpoint, no dataset and no config.

    Args:
        checkpoint_path: a checkpoint, or a run, of which the newest is taken.
        folder: to write; it must not be there, or be empty. With ``register`` it may also hold this very model: then
            it is registered as it is, as after a first try whose registration failed.
        onnx: also write the network as ONNX, compared with the original. Takes some samples of the dataset.
        register: also log the model with its MLflow run, and make it a version of the registered model of this name,
            if it is none yet. Takes a sample of the dataset as an example.

    Returns:
        0.

    Raises:
        LaunchError: the folder is not empty, packages are missing, the run is not tracked, or the ONNX file is not
            equal to the network.
        DataError: the dataset cannot be read.
        TrackingUnreachableError: the store of runs does not answer.
        RegistryError: it does not know the run, or refuses the name.
    """
    path, target = find_checkpoint(checkpoint_path), Path(folder)
    record = checkpoint.read_record(path)
    may_hold_model = register is not None and (target / MODEL_FILE).is_file()
    if not may_hold_model:
        _check_target(target)
    if onnx:
        require_packages()
    if register is not None:
        check_registration(record, register)
    model = load_checkpoint(path)
    is_there = may_hold_model and _holds(target, model, onnx)
    if not is_there:
        _check_target(target)
    samples = _samples(model) if onnx or register is not None else []
    if is_there:
        print(f"exported      {target} holds {model.name} already")
    else:
        _write(model, target, _transformed(model, samples) if onnx else None)
    if register is not None:
        register_model(model, target, record, register, samples[0])
    return 0


def export_of_run(checkpoint_path: str, run_folder: Path, register: str | None) -> None:
    """What a finished training leaves: its model in the run's folder, anew, and a version of a registered model.

    The training is over and all of it is kept, so what goes wrong here is said and ends nothing. An earlier model stays
    until the new one is complete.

    Args:
        checkpoint_path: the last one.
        run_folder: the model goes to ``model`` in it.
        register: name of the registered model; None registers nothing.
    """
    target, named = run_folder / "model", f" --register {register}" if register else ""
    try:
        path = find_checkpoint(checkpoint_path)
        model = load_checkpoint(path)
        _write(model, target, None, replace=True)
    except Exception as error:
        _warn("exported", error, f"dmlscale export {run_folder} FOLDER{named}")
        return
    if register is None:
        return
    try:
        record = checkpoint.read_record(path)
        check_registration(record, register)
        register_model(model, target, record, register, _samples(model)[0])
    except Exception as error:
        _warn("registered", error, f"dmlscale export {run_folder} {target}{named}")


def _warn(what: str, error: Exception, command: str) -> None:
    print(f"warning: the model was not {what}: {error}\nThe run is complete; once that is put right: {command}")


def _check_target(target: Path) -> None:
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise LaunchError(f"{target} is there already and is no empty folder: name another one")


def _holds(target: Path, model: EmbeddingModel, onnx: bool) -> bool:
    """Whether a folder is an export of this very model."""
    try:
        has_weights = load_exported(str(target)).content_hash == model.content_hash
    except LaunchError:
        return False
    return has_weights and (not onnx or (target / ONNX_FILE).is_file())


def _write(model: EmbeddingModel, target: Path, examples: Tensor | None, *, replace: bool = False) -> None:
    """All files or none: they are written beside the folder, which they then become."""
    mark = f"{target.name}-{uuid.uuid4().hex[:8]}"
    partial, earlier = (target.absolute().parent / f".{kind}-{mark}" for kind in ("partial", "earlier"))
    try:
        partial.mkdir(parents=True)
        write_model(model, partial)
        difference = None if examples is None else export_onnx(model, partial / ONNX_FILE, examples)
        if replace and target.exists():
            target.rename(earlier)
        partial.rename(target)
    except OSError as error:
        raise LaunchError(f"cannot write {target}: {error.strerror or error}; choose another folder") from error
    finally:
        if earlier.exists() and not target.exists():  # stopped between the two
            earlier.rename(target)
        for folder in (partial, earlier):
            shutil.rmtree(folder, ignore_errors=True)
    print(f"model         {model.name}: {model.config.model.backbone}, {model.embedding_dim} values a sample")
    print(f"exported      {target}: {MODEL_FILE}, {WEIGHTS_FILE}", end="")
    print("" if difference is None else f", {ONNX_FILE} (differs by {difference:.1e} at most)")


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

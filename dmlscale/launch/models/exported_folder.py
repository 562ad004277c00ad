"""Exported models: a folder of numbers and settings that is safe to open, whoever made it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmlscale.config.load import ConfigError, check_config
from dmlscale.config.schema import Config
from dmlscale.data.decoding.decode import find_decoder
from dmlscale.data.decoding.log_mel import AudioOptions
from dmlscale.launch.build import build_embedder
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.models.embedding_model import EmbeddingModel, Origin, hash_of_weights
from dmlscale.models.embedder import Embedder
from dmlscale.models.errors import ModelError

MODEL_FILE = "model.json"
WEIGHTS_FILE = "model.safetensors"
_FORMAT, _FORMAT_VERSION = "dmlscale model", 1
# What a trained model needs of its config; None: the whole section.
_KEPT: dict[str, tuple[str, ...] | None] = {
    "model": None,
    "data": ("input", "channels", "audio", "eval_transform", "train_split", "validation_classes"),
    "evaluation": ("metric", "batch_size"),
}
# A config has these too; to a trained model they mean nothing, and its loss may be unknown where it is used.
_NOT_KEPT: dict[str, Any] = {"losses": [{"name": "softmax"}], "train": {"steps": 1}}
# Options of timm that read a file or the network: they would be the sender's, not the user's.
_READING_OPTIONS = ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def load_exported(path: str, *, device: torch.device | None = None) -> EmbeddingModel:
    """The model of an exported folder. Nothing in it is run: weights are safetensors, the rest is JSON.

    Raises:
        LaunchError: the folder is no model, is damaged, has an unknown format, or settings that a model has not.
    """
    file, weights_file = Path(path) / MODEL_FILE, Path(path) / WEIGHTS_FILE
    values = _read_model_file(file)
    origin = _checked_origin(values["origin"], file)
    config = _checked_settings(values["settings"], origin.dataset, file)
    try:
        # First without memory: settings may ask for more than there is, and the weights tell whether they are true.
        with torch.device("meta"):
            expected = untrained(config).state_dict()
        _check_fit(_shapes(weights_file), {name: str(tuple(t.shape)) for name, t in expected.items()}, weights_file)
        weights = load_file(weights_file)
        _check_fit(_kinds(weights), _kinds(expected), weights_file)
        embedder = untrained(config)
    except ModelError as error:
        raise LaunchError(f"{file}: {error}") from None
    except (SafetensorError, OSError) as error:
        raise LaunchError(f"{weights_file} is missing or no safetensors file: {str(error).splitlines()[0]}") from None
    if hash_of_weights(weights) != values["content_hash"]:
        raise LaunchError(f"{weights_file} does not hold the weights that {file} was written with: export it again")
    embedder.load_state_dict(weights)
    return assemble(embedder, config, origin, values["content_hash"], device)


def write_model(model: EmbeddingModel, folder: Path) -> None:
    """Writes what `load_exported` reads into a folder that is there.

    Raises:
        OSError: it cannot be written.
    """
    weights = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for name, tensor in model.embedder.state_dict().items()
    }
    try:
        save_file(weights, folder / WEIGHTS_FILE)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    everything = model.config.model_dump(mode="json")
    settings = {
        section: {key: everything[section][key] for key in keys or everything[section]}
        for section, keys in _KEPT.items()
    }
    settings["model"]["pretrained"] = False  # the weights come from the folder, not from timm's hub
    values = {
        "format": _FORMAT,
        "version": _FORMAT_VERSION,
        "embedding_dim": model.embedding_dim,
        "content_hash": model.content_hash,
        "settings": settings,
        "origin": dataclasses.asdict(model.origin),
    }
    (folder / MODEL_FILE).write_text(json.dumps(values, indent=2) + "\n")
    shutil.copymode(folder / MODEL_FILE, folder / WEIGHTS_FILE)  # safetensors lets nobody else read it


def untrained(config: Config) -> Embedder:
    """The network, without weights from elsewhere and without a trace in the caller's random numbers.

    Options that would read a file or the network are left out: weights come from where the config comes from, and that
    may be a stranger's checkpoint.

    Raises:
        ModelError: there is no such network.
    """
    options = {name: value for name, value in config.model.options.items() if name not in _READING_OPTIONS}
    model = config.model.model_copy(update={"pretrained": False, "options": options})
    with torch.random.fork_rng(devices=[]):
        try:
            return build_embedder(config.model_copy(update={"model": model}))
        except (RuntimeError, TypeError, OverflowError) as error:  # by torch, of the head
            reason = str(error).splitlines()[0]
            raise ModelError(f"model.embedding_dim: {model.embedding_dim} values cannot be made: {reason}") from error


def assemble(
    embedder: Embedder, config: Config, origin: Origin, content_hash: str, device: torch.device | None
) -> EmbeddingModel:
    """The model of a network that has its weights; the config says the rest."""
    d = config.data
    # Whoever sends samples has not checked them as the packer does, so the careful way of decoding is taken.
    decoder = find_decoder(
        d.input, channels=d.channels, audio=None if d.audio is None else AudioOptions(**d.audio), is_checked=False
    )
    transform = d.eval_transform.build()
    return EmbeddingModel(embedder, decoder, transform, config, origin, content_hash, device or torch.device("cpu"))


def _read_model_file(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise LaunchError(f"{file} is missing or damaged: {error}") from None
    if not isinstance(values, dict) or values.get("format") != _FORMAT:
        raise LaunchError(f"{file} does not describe a model: its format is not {_FORMAT!r}")
    if values.get("version") != _FORMAT_VERSION:
        raise LaunchError(
            f"{file} has format version {values.get('version')!r}, this dmlscale reads {_FORMAT_VERSION}: "
            "install the dmlscale that wrote it, or export the model again"
        )
    kinds = {"content_hash": str, "settings": dict, "origin": dict}
    for key, kind in kinds.items():
        if not isinstance(values.get(key), kind):
            raise LaunchError(f"{file} is damaged: {key} is missing or not of type {kind.__name__}")
    return values


def _checked_settings(settings: dict[str, Any], dataset: str, file: Path) -> Config:
    """The config of an exported model, if it holds what a model has and nothing else."""
    for section, values in settings.items():
        keys = _KEPT.get(section, ())
        unknown = [key for key in values if keys is not None and key not in keys] if isinstance(values, dict) else []
        if keys == () or unknown:
            raise LaunchError(f"{file}: settings.{'.'.join([section, *unknown[:1]])} is no setting of a model")
    try:
        data = {**settings.get("data", {}), "path": dataset, "transform": "as_is"}
        config = check_config({**settings, **_NOT_KEPT, "data": data}, str(file))
    except ConfigError as error:
        raise LaunchError(str(error)) from None
    except TypeError as error:  # a value in the place of a section
        raise LaunchError(f"{file} is damaged: {error}") from None
    reading = [key for key in config.model.options if key in _READING_OPTIONS]
    if reading:
        raise LaunchError(f"{file}: settings.model.options.{reading[0]} would read files, so it is refused")
    return config


def _checked_origin(values: dict[str, Any], file: Path) -> Origin:
    try:
        origin: Origin = TypeAdapter(Origin).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("origin", *first["loc"])))
        raise LaunchError(f"{file} is damaged: {key}: {first['msg']}") from None
    if "/" in origin.dataset:
        raise LaunchError(f"{file}: origin.dataset must be a name, not a path, got {origin.dataset!r}")
    return origin


def _shapes(file: Path) -> dict[str, str]:
    """By name, of the tensors in a file; reads the beginning of it alone."""
    with safe_open(file, "pt") as opened:
        names = opened.keys()
        return {name: str(tuple(opened.get_slice(name).get_shape())) for name in names}


def _kinds(weights: dict[str, Tensor]) -> dict[str, str]:
    return {name: f"{tuple(tensor.shape)} {tensor.dtype}" for name, tensor in weights.items()}


def _check_fit(found: dict[str, str], expected: dict[str, str], file: Path) -> None:
    for name in sorted(found.keys() | expected.keys()):
        if name not in found or name not in expected:
            where = "in the file" if name in found else "in the network"
            raise LaunchError(f"{file} does not fit {MODEL_FILE}: {name!r} is only {where}")
        here, there = expected[name], found[name]
        if here != there:
            raise LaunchError(f"{file} does not fit {MODEL_FILE}: {name!r} is {there} there, the network has {here}")

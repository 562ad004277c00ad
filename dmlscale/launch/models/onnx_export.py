"""A trained network as an ONNX file that is known to give the same embeddings."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmlscale.launch.errors import LaunchError
from dmlscale.launch.models.embedding_model import EmbeddingModel

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
PARITY = 1e-4
_BATCH_SIZES = (1, 2, 5)


def require_packages() -> None:
    """Whether ONNX files can be written here.

    Raises:
        LaunchError: packages are missing; names them.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise LaunchError(f"--onnx needs {', '.join(missing)}: pip install 'dmlscale[onnx]'")


def export_onnx(model: EmbeddingModel, file: Path, images: Tensor) -> float:
    """Writes the network and compares it with the original, by onnxruntime on the CPU.

    The file has one input, ``images`` (b, ...) float32: samples that are decoded and transformed. One output,
    ``embeddings`` (b, d) float32. b is free, the other axes are those of ``images``.

    Args:
        model: on the CPU.
        file: to write.
        images: (n, ...) float32, some transformed samples to compare with.

    Returns:
        The largest difference of a value, over batches of 1, 2 and 5 samples; in parts of the largest value where
        that is above 1.

    Raises:
        LaunchError: torch cannot write the network as ONNX, or it gives other embeddings. No file is left.
    """
    batches = [images[torch.arange(size) % len(images)] for size in _BATCH_SIZES]
    try:
        _write(model, file, batches[1])
        difference = max(_difference(model, file, batch) for batch in batches)
    except Exception as error:  # of the exporter's many passes, and of onnxruntime
        file.unlink(missing_ok=True)
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise LaunchError(
            f"{model.config.model.backbone} cannot be written as ONNX for samples of shape "
            f"{tuple(images.shape[1:])}: {reason[:300]}; export it without --onnx"
        ) from error
    if not difference < PARITY:  # nor if it is not a number
        file.unlink()
        raise LaunchError(
            f"the ONNX file of {model.name} gives other embeddings: they differ by {difference:.2g}, at most "
            f"{PARITY:g} is allowed; export it without --onnx"
        )
    return difference


def _write(model: EmbeddingModel, file: Path, example: Tensor) -> None:
    with _quiet(), torch.no_grad():
        torch.onnx.export(
            model.embedder,
            (example,),
            file,
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=["images"],
            output_names=["embeddings"],
            external_data=False,
            verbose=False,
        )


def _difference(model: EmbeddingModel, file: Path, batch: Tensor) -> float:
    import onnxruntime  # an extra

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (found,) = session.run(["embeddings"], {"images": batch.numpy()})
    expected = model.embed_images(batch)
    if found.shape != expected.shape:
        raise ValueError(f"it gives embeddings of shape {found.shape} for {len(batch)} samples")
    return float(np.abs(found - expected).max() / max(1.0, np.abs(expected).max()))


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter tells of its own steps, by every channel there is."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)

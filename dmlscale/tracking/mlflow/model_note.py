"""What a model in MLflow says about itself: what goes in, what comes out, and an example."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import Array
from numpy.typing import NDArray

# The files of a sample travel as a column of a table, of one file as bytes, of several as base64 text: a server decodes
# base64 in a column of bytes, but not inside of lists.
_COLUMNS = {"image": "image", "audio": "file", "views": "views"}


@dataclass(frozen=True)
class ModelNote:
    """What a model says about itself.

    Args:
        input: "image", "audio", "views" or "array".
        embedding_dim: d.
        example: one sample: the contents of its files, or for "array" its values (c, h, w) or (n,).
        requirements: that pip installs where the model is served.
        description: Markdown.
        tags: to search for.
        main_metric: name of the metric that becomes a tag too, if the run has it at the model's step.
    """

    input: str
    embedding_dim: int
    example: Sequence[bytes] | NDArray[np.float32]
    requirements: Sequence[str]
    description: str = ""
    tags: Mapping[str, Any] = field(default_factory=dict)
    main_metric: str = ""


def signature_of(note: ModelNote) -> ModelSignature:
    """What goes in and what comes out."""
    if isinstance(note.example, np.ndarray):
        # Pictures of other heights and widths pass through most networks, vectors of other lengths through none.
        free = (-1,) * 2 if note.example.ndim == 3 else ()
        shape = (-1, *note.example.shape[: note.example.ndim - len(free)], *free)
        inputs = Schema([TensorSpec(np.dtype(np.float32), shape)])
    else:
        kind = Array(DataType.string) if note.input == "views" else DataType.binary
        inputs = Schema([ColSpec(kind, _COLUMNS[note.input])])
    return ModelSignature(inputs, Schema([TensorSpec(np.dtype(np.float32), (-1, note.embedding_dim))]))


def input_example(note: ModelNote) -> pd.DataFrame | NDArray[np.float32]:
    """One sample in the form of the signature."""
    if isinstance(note.example, np.ndarray):
        return note.example[None]
    if note.input == "views":
        return pd.DataFrame({"views": [[base64.b64encode(view).decode() for view in note.example]]})
    return pd.DataFrame({_COLUMNS[note.input]: [bytes(note.example[0])]})

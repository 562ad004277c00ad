"""What MLflow runs where a registered model is served: a copy of this file travels with the model.

It is a "model from code": there is no pickle, and the weights come from the exported folder beside it. The package
dmlscale must be installed there.
"""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext
from numpy.typing import NDArray

from dmlscale.data.errors import DataError
from dmlscale.launch.models.exported_folder import load_exported


class ServedEmbedder(PythonModel):
    """Files of samples, or arrays, in; embeddings out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Reads the exported folder that is the artifact "model"."""
        self._model = load_exported(context.artifacts["model"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> NDArray[np.float32]:
        """Embeds samples.

        Args:
            context: not looked at.
            model_input: a table whose first column holds the samples: each a file as bytes or base64 text, or a list
                of them (views of an object); or, for the input "array", values (n, c, h, w), (n, h, w) or (n, k).
            params: not looked at.

        Returns:
            (n, d) float32.

        Raises:
            DataError: a sample cannot be decoded, or does not fit the network.
        """
        if isinstance(model_input, np.ndarray):
            return self._model.embed_parts([[_npy(sample)] for sample in model_input])
        cells = model_input.iloc[:, 0]
        several = (cell if isinstance(cell, list | tuple | np.ndarray) else [cell] for cell in cells)
        return self._model.embed_parts(
            [[_content(file, position) for file in files] for position, files in enumerate(several)]
        )


def _content(file: bytes | str, position: int) -> bytes:
    if not isinstance(file, str):
        return bytes(file)
    try:
        return base64.b64decode("".join(file.split()), validate=True)  # many tools break it into lines
    except ValueError as error:
        raise DataError(f"sample {position} cannot be decoded: its text is no base64 ({error})") from None


def _npy(sample: NDArray) -> bytes:
    file = BytesIO()
    np.save(file, sample, allow_pickle=False)
    return file.getvalue()


set_model(ServedEmbedder())

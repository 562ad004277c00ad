"""Models of every kind of input, registered by the command and asked over MLflow's own web application."""

from __future__ import annotations

import base64
import json
from io import BytesIO
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest
from fastapi.testclient import TestClient
from mlflow.pyfunc import scoring_server

from dmlscale.data.inputs import InputKind
from dmlscale.launch.models.export import export
from dmlscale.launch.models.model_folder import load_model
from dmlscale.tracking.mlflow import start_or_continue
from tests.launch.models.checkpoints import pack_samples, write_checkpoint
from tests.launch.test_every_input import CASES, array, picture, recording

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


def text(file: bytes) -> str:
    return base64.b64encode(file).decode()


def values(file: bytes) -> Any:
    """Of an array's file, as JSON has them."""
    return np.load(BytesIO(file)).astype(np.float32).tolist()


INPUTS: dict[str, tuple[InputKind, list[list[bytes]]]] = {
    "image": ("image", [[picture()] for _ in range(3)]),
    "views": ("views", [[picture(), picture()] for _ in range(3)]),
    "maps": ("array", [[array(5, 20, 24)] for _ in range(3)]),
    "vectors": ("array", [[array(12)] for _ in range(3)]),
    "audio": ("audio", [[recording()] for _ in range(3)]),
}
BODIES: dict[str, Any] = {
    "image": lambda samples: {"dataframe_records": [{"image": text(parts[0])} for parts in samples]},
    "views": lambda samples: {"dataframe_records": [{"views": [text(view) for view in parts]} for parts in samples]},
    "maps": lambda samples: {"inputs": [values(parts[0]) for parts in samples]},
    "vectors": lambda samples: {"inputs": [values(parts[0]) for parts in samples]},
    "audio": lambda samples: {"dataframe_records": [{"file": text(parts[0])} for parts in samples]},
}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.mark.parametrize("case", CASES)
def test_files_over_the_web_give_the_checkpoints_vectors(
    case: str, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, samples = INPUTS[case]
    pack_samples(tmp_path / "data", kind, samples)
    tracked: dict[str, str | None] = {"uri": uri, "run": start_or_continue(uri, "served", case, key=case)}
    run = write_checkpoint(tmp_path / "run", case, f"data.path={tmp_path / 'data'}", tracked=tracked)
    assert export(str(run), str(tmp_path / "out"), onnx=False, register=case) == 0

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    loaded = mlflow.pyfunc.load_model(f"models:/{case}/1")
    web = TestClient(scoring_server.init(loaded))
    answer = web.post("/invocations", json=BODIES[case](samples))
    assert answer.status_code == 200, answer.text
    expected = load_model(str(run)).embed_parts(samples)
    np.testing.assert_allclose(np.array(answer.json()["predictions"]), expected, atol=1e-5)

    if case == "views":  # text in lists is decoded by the model itself
        broken = BODIES[case](samples[:2])
        broken["dataframe_records"][1]["views"][0] = "no base64!"
        answer = web.post("/invocations", json=broken)
        assert answer.status_code == 400
        assert "sample 1 cannot be decoded: its text is no base64" in answer.text
        in_lines = BODIES[case](samples[:1])
        in_lines["dataframe_records"][0]["views"][0] = base64.encodebytes(samples[0][0]).decode()
        assert web.post("/invocations", json=in_lines).status_code == 200

    # The example that MLflow shows on the model's page is a request that works.
    folder = Path(mlflow.artifacts.download_artifacts(f"models:/{case}/1"))
    example = json.loads((folder / "serving_input_example.json").read_text())
    answer = web.post("/invocations", json=example)
    assert answer.status_code == 200, answer.text
    assert np.abs(np.array(answer.json()["predictions"]) - expected).sum(axis=1).min() < 1e-5

"""A registered model behind a real server gives the vectors of the checkpoint."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

from dmlscale.data.index import Index
from dmlscale.data.reader import Reader
from dmlscale.launch.models.embedding_model import EmbeddingModel
from dmlscale.launch.models.export import export
from dmlscale.launch.models.model_folder import load_model
from tests.integration.runs import write_config

pytestmark = pytest.mark.slow
NAME = "glyph embedder"


@pytest.fixture(scope="module")
def store(glyphs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run, its tracking database, and the exported and registered model."""
    folder = tmp_path_factory.mktemp("serving")
    config = write_config(folder / "small.yaml", glyphs, folder)
    command = [sys.executable, "-m", "dmlscale.cli", "train", str(config), "train.steps=4", "--local"]
    subprocess.run(command, check=True, timeout=200, capture_output=True)
    assert export(str(folder / "runs" / "small"), str(folder / "exported"), onnx=False, register=NAME) == 0
    return folder


@pytest.fixture(scope="module")
def samples(glyphs: Path) -> list[bytes]:
    """Files of nine pictures."""
    reader = Reader(Index.load(str(glyphs)), lambda parts: pytest.fail("not to be decoded"))
    return [bytes(reader.read(row)[0]) for row in range(0, 90, 10)]


@pytest.fixture(scope="module")
def model(store: Path) -> EmbeddingModel:
    """As the checkpoint has it."""
    return load_model(str(store / "runs" / "small"))


@pytest.fixture(scope="module")
def address(store: Path) -> Iterator[str]:
    """Of the running server."""
    # Bound for all that time: nobody else gets the port. The server does, since both allow it and only one listens.
    reserved = socket.socket()
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    reserved.bind(("127.0.0.1", 0))
    port = reserved.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", f"models:/{NAME}/1"]
    options = ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{store / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    with (store / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command + options, stdout=log, stderr=log, env=environment, cwd=store, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server, store / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(20)
        reserved.close()


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=1)
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(log.read_text()[-3000:])


def ask(address: str, body: dict[str, Any]) -> np.ndarray:
    """The predictions for a request."""
    request = urllib.request.Request(
        f"{address}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return np.array(json.load(answer)["predictions"], np.float32)


def test_the_server_gives_the_checkpoints_vectors(address: str, model: EmbeddingModel, samples: list[bytes]) -> None:
    text = [base64.b64encode(sample).decode() for sample in samples]
    expected = model.embed_parts([[sample] for sample in samples])
    assert np.linalg.norm(expected[0] - expected[-1]) > 1e-3  # vectors that do differ
    for body in (
        {"dataframe_split": {"columns": ["image"], "data": [[picture] for picture in text]}},
        {"dataframe_records": [{"image": picture} for picture in text]},
    ):
        np.testing.assert_allclose(ask(address, body), expected, atol=1e-5)


def test_the_server_says_what_is_wrong_with_a_picture(address: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as caught:
        ask(address, {"dataframe_records": [{"image": base64.b64encode(b"no picture").decode()}]})
    assert caught.value.code == 400
    assert "sample 0 cannot be decoded" in caught.value.read().decode()


def test_pyfunc_gives_the_checkpoints_vectors(
    store: Path, model: EmbeddingModel, samples: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store / 'mlflow.db'}")
    loaded = mlflow.pyfunc.load_model(f"models:/{NAME}/latest")
    expected = model.embed_parts([[sample] for sample in samples])
    found = loaded.predict(pd.DataFrame({"image": samples}))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    text = [base64.b64encode(sample).decode() for sample in samples]
    np.testing.assert_allclose(loaded.predict(pd.DataFrame({"image": text})), expected, atol=1e-5)
    assert loaded.predict(loaded.input_example).shape == (1, 16)


def test_the_exported_folder_gives_the_checkpoints_vectors(
    store: Path, model: EmbeddingModel, samples: list[bytes]
) -> None:
    exported = load_model(str(store / "exported"))
    found = exported.embed_parts([[sample] for sample in samples])
    np.testing.assert_array_equal(found, model.embed_parts([[sample] for sample in samples]))

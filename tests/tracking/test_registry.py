"""Models in a real store: a database, and a server."""

from __future__ import annotations

import base64
import os
import uuid
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from dmlscale.tracking.mlflow import (
    ModelNote,
    RegistryError,
    TrackingUnreachableError,
    check_registrable,
    find_version,
    log_model,
    start_or_continue,
)
from dmlscale.tracking.tracker import Status
from tests.tracking.conftest import MlflowServer

CODE = '''
from pathlib import Path
import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

class Lengths(PythonModel):
    """(length of the file, what the folder says)."""

    def load_context(self, context):
        self.number = float((Path(context.artifacts["model"]) / "number.txt").read_text())

    def predict(self, context, model_input, params=None):
        if isinstance(model_input, np.ndarray):
            lengths = [sample.sum() for sample in model_input]
        else:
            lengths = [len(cell) for cell in model_input.iloc[:, 0]]
        return np.array([[length, self.number] for length in lengths], np.float32)

set_model(Lengths())
'''
PICTURE = ModelNote("image", 2, [b"picture"], ["numpy"], "A **note**", {"loss": "triplet"}, "eval/test/recall_at_1")


@pytest.fixture(params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest, sqlite_uri: str, mlflow_server: MlflowServer) -> str:
    return sqlite_uri if request.param == "sqlite" else mlflow_server.uri


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "my #1 model"
    path.mkdir()
    (path / "number.txt").write_text("7")
    (tmp_path / "code.py").write_text(CODE)
    return path


def make_run(uri: str) -> str:
    run_id = start_or_continue(uri, "models", "run", key=uuid.uuid4().hex, params={"loss.margin": 0.2})
    client = MlflowClient(uri)
    for step, value in ((10, 0.25), (20, 0.5)):
        for name in ("eval/test/recall_at_1", "eval/test/raw_pixels/recall_at_1", "train/loss"):
            client.log_metric(run_id, name, value, step=step)
    return run_id


def register(uri: str, run_id: str, folder: Path, name: str | None, note: ModelNote = PICTURE, step: int = 10) -> str:
    made = log_model(uri, run_id, folder, note, code=folder.parent / "code.py", step=step, registered_name=name)
    return made.uri


def test_a_registered_model_predicts_and_says_what_it_is(
    uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id, name = make_run(uri), f"model {uuid.uuid4().hex}"
    assert register(uri, run_id, folder, name) == f"models:/{name}/1"
    (folder / "number.txt").write_text("8")
    assert register(uri, run_id, folder, name, step=15) == f"models:/{name}/2"

    client = MlflowClient(uri)
    first, second = (client.get_model_version(name, number) for number in ("1", "2"))
    assert (first.run_id, first.description) == (run_id, "A **note**")
    assert first.tags == {"loss": "triplet", "recall_at_1": "0.25"}
    assert second.tags == {"loss": "triplet"}  # nothing was measured at step 15
    run = client.get_run(run_id)
    outputs = sorted(run.outputs.model_outputs, key=lambda output: output.step)
    logged = [client.get_logged_model(output.model_id) for output in outputs]
    assert [(model.status, model.source_run_id, model.params) for model in logged] == [
        ("READY", run_id, {"loss.margin": "0.2"})
    ] * 2
    assert [[(m.key, m.value) for m in model.metrics or []] for model in logged] == [
        [("eval/test/recall_at_1", 0.25)],
        [],
    ]
    assert len(client.get_metric_history(run_id, "eval/test/recall_at_1")) == 2

    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    served = [mlflow.pyfunc.load_model(f"models:/{name}/{version}") for version in ("1", "latest")]
    files = pd.DataFrame({"image": [b"a", b"bcd"]})
    assert [model.predict(files).tolist() for model in served] == [[[1, 7], [3, 7]], [[1, 8], [3, 8]]]
    assert served[0].input_example["image"].tolist() == [b"picture"]
    with pytest.raises(mlflow.MlflowException, match="image"):
        served[0].predict(pd.DataFrame({"other": [b"a"]}))


@pytest.mark.parametrize("status", ["RUNNING", "FINISHED", "KILLED"])
def test_no_run_and_no_store_is_changed(status: Status, uri: str, folder: Path) -> None:
    run_id = make_run(uri)
    if status != "RUNNING":
        MlflowClient(uri).set_terminated(run_id, status)
    client = MlflowClient(uri)
    before = client.get_run(run_id)
    environment, store = dict(os.environ), mlflow.get_tracking_uri()
    number_of_runs = len(client.search_runs([before.info.experiment_id]))
    assert register(uri, run_id, folder, None).startswith("models:/m-")
    after = client.get_run(run_id)
    assert (after.info.status, after.info.end_time) == (status, before.info.end_time)
    assert after.data.to_dictionary() == before.data.to_dictionary()
    assert mlflow.active_run() is None
    assert (dict(os.environ), mlflow.get_tracking_uri()) == (environment, store)
    assert len(client.search_runs([before.info.experiment_id])) == number_of_runs


VIEWS = [b"one", b"two"]
FORMS = {
    "views": (
        ModelNote("views", 2, VIEWS, ["numpy"]),
        pd.DataFrame({"views": [[base64.b64encode(view).decode() for view in VIEWS]] * 3}),
        [[2, 7]] * 3,
    ),
    "audio": (ModelNote("audio", 2, [b"RIFF"], ["numpy"]), pd.DataFrame({"file": [b"RIFFRIFF"]}), [[8, 7]]),
    "vectors": (ModelNote("array", 2, np.ones(4, np.float32), ["numpy"]), np.ones((2, 4), np.float32), [[4, 7]] * 2),
    "maps": (
        ModelNote("array", 2, np.ones((1, 3, 3), np.float32), ["numpy"]),
        np.ones((2, 1, 5, 6), np.float32),
        [[30, 7]] * 2,
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_input_has_a_form(form: str, sqlite_uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note, samples, expected = FORMS[form]
    made = register(sqlite_uri, make_run(sqlite_uri), folder, None, note)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", sqlite_uri)
    model = mlflow.pyfunc.load_model(made)
    assert model.predict(samples).tolist() == expected
    assert model.predict(model.input_example).shape == (1, 2)
    (output,) = model.metadata.signature.outputs.inputs
    assert (output.type, output.shape) == (np.dtype("float32"), (-1, 2))


def test_what_the_store_refuses_is_told_before_anything_is_sent(uri: str, folder: Path) -> None:
    run_id = make_run(uri)
    with pytest.raises(RegistryError, match="a/b"):
        register(uri, run_id, folder, "a/b")
    with pytest.raises(RegistryError, match=r"[Rr]un.*not found"):
        register(uri, "0" * 32, folder, None)
    assert MlflowClient(uri).get_run(run_id).outputs.model_outputs == []


def test_what_the_store_would_refuse_is_known_before(uri: str) -> None:
    run_id, name = make_run(uri), f"model {uuid.uuid4().hex}"
    check_registrable(uri, run_id, name)
    client = MlflowClient(uri)
    assert not client.search_registered_models(f"name = '{name}'")
    client.create_registered_model(name)
    check_registrable(uri, run_id, name)
    for wrong in ("a/b", "a:b", ""):
        with pytest.raises(RegistryError, match="name"):
            check_registrable(uri, run_id, wrong)
    with pytest.raises(RegistryError, match=r"[Rr]un.*not found"):
        check_registrable(uri, "0" * 32, name)


def test_no_answer_is_told_before(tmp_path: Path) -> None:
    with pytest.raises(TrackingUnreachableError, match="cannot reach"):
        check_registrable("http://127.0.0.1:9", "0" * 32, "name")


def test_versions_are_found_by_run_and_tags(uri: str, folder: Path) -> None:
    run_id, other, name = make_run(uri), make_run(uri), f"it's a model {uuid.uuid4().hex}"
    assert find_version(uri, run_id, name, {}) is None
    for step in (10, 20):
        register(uri, run_id, folder, name, step=step)
    found = find_version(uri, run_id, name, {"recall_at_1": "0.25"})
    assert found == (f"models:/{name}/1", "1")
    assert find_version(uri, run_id, name, {"loss": "triplet"}) == (f"models:/{name}/2", "2")
    assert find_version(uri, run_id, name, {"loss": "circle"}) is None
    assert find_version(uri, run_id, name + "x", {"loss": "triplet"}) is None
    assert find_version(uri, other, name, {"loss": "triplet"}) is None


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_model_that_could_not_be_sent_counts_as_failed(
    kind: type[BaseException], sqlite_uri: str, folder: Path
) -> None:
    run_id = make_run(sqlite_uri)
    (folder.parent / "code.py").write_text(f"raise {kind.__name__}('broken')")
    with pytest.raises(BaseException, match="broken"):
        register(sqlite_uri, run_id, folder, None)
    client = MlflowClient(sqlite_uri)
    models = client.search_logged_models([client.get_run(run_id).info.experiment_id])
    assert [model.status for model in models if model.source_run_id == run_id] == ["FAILED"]

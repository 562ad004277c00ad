"""A model is the same wherever it is kept, and a folder that is damaged or hostile is refused."""

from __future__ import annotations

import json
import pickle
import resource
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from dmlscale.data.errors import DataError
from dmlscale.data.transforms import apply
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.models.embedding_model import EmbeddingModel, hash_of_weights
from dmlscale.launch.models.exported_folder import load_exported, write_model
from dmlscale.launch.models.model_folder import load_checkpoint, load_model
from tests.launch.models.checkpoints import write_checkpoint
from tests.launch.test_every_input import CASES, picture

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> EmbeddingModel:
    """Of pictures, with batch normalisation, in batches of 2."""
    return load_checkpoint(
        write_checkpoint(tmp_path_factory.mktemp("runs") / "mine", "image", "evaluation.batch_size=2")
    )


@pytest.fixture
def exported(model: EmbeddingModel, tmp_path: Path) -> Path:
    folder = tmp_path / "exported"
    folder.mkdir()
    write_model(model, folder)
    return folder


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("normalize", ["true", "false"])
def test_a_folder_has_what_its_checkpoint_has(case: str, normalize: str, tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "mine", case, f"model.normalize={normalize}")
    checkpointed = load_model(str(path))
    write_model(checkpointed, tmp_path)
    read = load_model(str(tmp_path))
    assert (read.content_hash, read.name, read.origin) == (
        checkpointed.content_hash,
        "mine at step 7",
        checkpointed.origin,
    )
    assert read.config.model == checkpointed.config.model
    samples = [CASES[case][0]] * 3
    embeddings = read.embed_parts(samples)
    assert embeddings.dtype == np.float32
    np.testing.assert_array_equal(embeddings, checkpointed.embed_parts(samples))
    # Against the steps themselves, in one batch.
    images = apply(read.transform, [read.decoder(parts) for parts in samples], np.arange(3), seed=0, epoch=0)
    with torch.no_grad():
        expected = checkpointed.embedder.eval()(images)
    np.testing.assert_allclose(embeddings, expected, atol=1e-6)
    np.testing.assert_allclose(read.embed_images(images), expected, atol=1e-6)


def test_nothing_of_the_machine_is_in_it(exported: Path, model: EmbeddingModel) -> None:
    assert model.config.run.folder.startswith("/")
    text = (exported / "model.json").read_text()
    assert '"/' not in text
    assert sorted(file.name for file in exported.iterdir()) == ["model.json", "model.safetensors"]
    assert len({file.stat().st_mode for file in exported.iterdir()}) == 1


def test_a_folder_of_before_validation_classes_were_kept(exported: Path, tmp_path: Path) -> None:
    def remove(key: str) -> None:
        values = json.loads((exported / "model.json").read_text())
        del values["settings"]["data"][key]
        (exported / "model.json").write_text(json.dumps(values))

    for key in ("validation_classes", "train_split"):
        remove(key)
    data = load_exported(str(exported)).config.data
    assert (data.validation_classes, data.train_split) == (0, "train")


def test_a_full_disk_is_told(model: EmbeddingModel, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, before[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_model(model, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_newest_checkpoint_of_a_run_is_taken(tmp_path: Path) -> None:
    paths = [write_checkpoint(tmp_path / "run", "vectors", step=step) for step in (3, 12)]
    newest = load_model(str(tmp_path / "run"))
    assert newest.name == "run at step 12"
    assert newest.content_hash == load_model(str(paths[1])).content_hash != load_model(str(paths[0])).content_hash
    with pytest.raises(LaunchError, match="holds no model"):
        load_model(str(tmp_path))


def test_chunks_change_nothing(model: EmbeddingModel) -> None:
    samples = [[picture()] for _ in range(5)]
    together = model.embed_parts(samples)
    assert together.shape == (5, 5)
    np.testing.assert_allclose(together, np.concatenate([model.embed_parts([one]) for one in samples]), atol=1e-6)
    assert model.embed_parts([]).shape == (0, 5)
    assert model.embed_images(torch.empty(0, 3, 32, 32)).shape == (0, 5)


def test_embedding_changes_no_weight_and_loading_no_random_number(model: EmbeddingModel, exported: Path) -> None:
    model.embed_parts([[picture()]] * 3)
    assert hash_of_weights(model.embedder.state_dict()) == model.content_hash
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    load_model(str(exported))
    assert torch.equal(torch.rand(3), expected)


def test_threads_may_share_a_model(model: EmbeddingModel) -> None:
    samples = [[[picture()]] * 2 for _ in range(16)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(model.embed_parts, samples))
    for embeddings, sample in zip(found, samples, strict=True):
        np.testing.assert_array_equal(embeddings, model.embed_parts(sample))


def test_a_sample_that_cannot_be_decoded_is_named_by_its_position(model: EmbeddingModel) -> None:
    samples = [[picture()], [picture()], [picture()], [b"no picture"]]
    with pytest.raises(DataError, match=r"^sample 3 cannot be decoded: .*picture"):
        model.embed_parts(samples)
    with pytest.raises(DataError, match="sample 0 cannot be decoded: has 2 files"):
        model.embed_parts([[picture(), picture()]])


def test_samples_that_do_not_fit_the_network_are_told(tmp_path: Path) -> None:
    vectors = load_model(str(write_checkpoint(tmp_path / "run", "vectors")))
    with pytest.raises(DataError, match=r"samples of shape \(3,\) do not fit the network of run at step 7"):
        vectors.embed_images(torch.ones(2, 3))


def edit(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / "model.json").read_text())
        for dotted, value in changes.items():
            *parents, last = dotted.split("__")
            at = values
            for parent in parents:
                at = at[parent]
            at[last] = value
        (folder / "model.json").write_text(json.dumps(values))

    return change


def edit_weights(change: Callable[[dict[str, Tensor]], Any]) -> Callable[[Path], None]:
    def edited(folder: Path) -> None:
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, folder / "model.safetensors")

    return edited


class Canary:
    """Leaves a file where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Canary(folder / "executed")))


def torch_pickled(folder: Path) -> None:
    torch.save(Canary(folder / "executed"), folder / "model.safetensors")


def checkpoint_as_option(folder: Path) -> None:
    torch.save(Canary(folder / "executed"), folder / "evil.pth")
    edit(settings__model__options={"checkpoint_path": str(folder / "evil.pth")})(folder)


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "pickle": (pickled, "no safetensors file"),
    "torch's pickle": (torch_pickled, "no safetensors file"),
    "a file as an option": (checkpoint_as_option, r"options\.checkpoint_path would read files"),
    "a hub as an option": (edit(settings__model__options={"pretrained_cfg": {"url": "http://a"}}), "pretrained_cfg"),
    "weights of a hub": (edit(settings__model__options={"pretrained": True}), "timm refused"),
    "a hub as backbone": (edit(settings__model__backbone="hf-hub:evil/model"), "no model 'hf-hub:evil/model'"),
    "a folder as backbone": (edit(settings__model__backbone="local-dir:/evil"), "no model 'local-dir:/evil'"),
    "a data path": (edit(settings__data__path="/etc"), r"settings\.data\.path is no setting of a model"),
    "a cache": (edit(settings__data__cache_folder="/etc"), r"settings\.data\.cache_folder is no setting"),
    "a section": (edit(settings__run={"folder": "/etc"}), r"settings\.run\.folder is no setting of a model"),
    "a dataset's path": (edit(origin__dataset="s3://a/b"), "must be a name"),
    "another format": (edit(format="zip"), "its format is not 'dmlscale model'"),
    "a later version": (edit(version=2), r"format version 2, this dmlscale reads 1: install"),
    "no list": (lambda folder: (folder / "model.json").write_text("[]"), "does not describe a model"),
    "no JSON": (lambda folder: (folder / "model.json").write_text("{"), "missing or damaged"),
    "a section that is text": (edit(settings__data="image"), "is damaged"),
    "settings that are text": (edit(settings="image"), "settings is missing or not of type dict"),
    "a wrong value": (edit(settings__data__channels=2), "pictures have 1 or 3"),
    "an unknown transform": (edit(settings__data__eval_transform="nothing"), "nothing"),
    "no origin": (edit(origin={}), r"origin\.run"),
    "weights that are gone": (lambda folder: (folder / "model.safetensors").unlink(), "missing or no safetensors"),
    "weights cut off": (
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9]),
        "no safetensors file",
    ),
    "a tensor less": (edit_weights(lambda w: w.pop("head.bias")), "'head.bias' is only in the network"),
    "a tensor more": (edit_weights(lambda w: w.update(other=torch.ones(2))), "'other' is only in the file"),
    "another shape": (
        edit(settings__model__embedding_dim=6),
        r"'head.bias' is \(5,\) there, the network has \(6,\)",
    ),
    "more than any memory holds": (
        edit(settings__model__embedding_dim=10**12),
        r"'head.bias' is \(5,\) there, the network has \(1000000000000,\)",
    ),
    "no number of values": (edit(settings__model__embedding_dim=2**70), "embedding_dim: 1180.* cannot be made"),
    "a norm of nobody": (edit(settings__model__options={"norm_layer": "nothing"}), "timm refused .*KeyError"),
    "nested": (lambda folder: (folder / "model.json").write_text("[" * 200_000), "missing or damaged"),
    "another type": (edit_weights(lambda w: w.update({"head.bias": w["head.bias"].half()})), "float16"),
    "another model's": (edit_weights(lambda w: w["head.bias"].add_(1)), "does not hold the weights"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_damaged_or_hostile_is_refused(damage: str, exported: Path) -> None:
    change, message = DAMAGES[damage]
    change(exported)
    with pytest.raises(LaunchError, match=message) as caught:
        load_exported(str(exported))
    assert str(exported) in str(caught.value)
    assert not (exported / "executed").exists()


@given(
    st.dictionaries(st.text(max_size=4), st.lists(st.floats(width=32), min_size=1, max_size=4), min_size=1), st.data()
)
def test_the_hash_knows_names_and_values_and_nothing_else(values: dict[str, list[float]], data: st.DataObject) -> None:
    weights = {name: torch.tensor(numbers) for name, numbers in values.items()}
    known = hash_of_weights(weights)
    assert hash_of_weights(dict(reversed(weights.items()))) == known
    assert hash_of_weights({name: torch.stack([t, t], 1)[:, 0] for name, t in weights.items()}) == known
    name = data.draw(st.sampled_from(sorted(weights)))
    others = [
        {**weights, name: weights[name].view(torch.int32) ^ 1},
        {**weights, name: (weights[name].view(torch.int32) ^ 1).view(torch.float32)},
        {**weights, name: weights[name][None]},
        {**weights, name + " ": weights[name]},
        {key + "x" if key == name else key: tensor for key, tensor in weights.items()},
    ]
    assert all(hash_of_weights(other) != known for other in others)

"""What the config says about the kind of input, its decoder and its transforms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dmlscale.config.load import ConfigError, check_config, load_config
from dmlscale.data.decoding.log_mel import AudioOptions
from dmlscale.data.transforms import find_transform

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
AUDIO = [
    "data.input=audio",
    "data.channels=1",
    "data.transform={name: spectrogram_train, time_mask: 20}",
    "data.eval_transform=standardize",
]


def minimal(**data: Any) -> dict[str, Any]:
    return {"data": {"path": "x", **data}, "losses": {"name": "triplet"}, "train": {"steps": 1}}


def test_a_transform_by_its_name_has_all_its_options() -> None:
    config = load_config(QUICKSTART, ["data.transform=papers_train", "data.channels=3"])
    assert config.data.transform.build() == find_transform("papers_train")
    assert config.data.transform.options["size"] == 224
    by_default = check_config(minimal(), "here")
    assert by_default.data.transform == config.data.transform
    assert by_default.data.eval_transform.build() == find_transform("papers_eval")


@pytest.mark.parametrize("nested", ["{name: papers_train, size: 64}", "{name: papers_train, options: {size: '64'}}"])
def test_a_transform_with_options(nested: str) -> None:
    config = load_config(QUICKSTART, [f"data.transform={nested}", "data.transform.normalize=caffe_bgr"])
    assert config.data.transform.build() == find_transform("papers_train", size=64, normalize="caffe_bgr")


def test_audio_has_its_options() -> None:
    config = load_config(QUICKSTART, [*AUDIO, "data.audio.mels=64", "data.audio.high_hz=7600"])
    assert config.data.audio is not None
    assert AudioOptions(**config.data.audio) == AudioOptions(mels=64, high_hz=7600.0)
    by_default = load_config(QUICKSTART, AUDIO).data.audio
    assert by_default is not None
    assert AudioOptions(**by_default) == AudioOptions()
    assert load_config(QUICKSTART).data.audio is None


@pytest.mark.parametrize("overrides", [[], AUDIO, [*AUDIO, "data.audio.seconds=2"]])
def test_what_was_resolved_is_a_config(overrides: list[str]) -> None:
    config = load_config(QUICKSTART, overrides)
    assert check_config(config.model_dump(mode="json"), "here") == config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.input=vidio", r"data\.input: .*'image', 'views', 'array' or 'audio', got 'vidio'"),
        (
            "data.transform=papers_trian",
            r"data\.transform: unknown transform 'papers_trian'; did you mean 'papers_train'",
        ),
        (
            "data.transform={name: papers_train, sizes: 3}",
            r"data\.transform: papers_train has no key 'sizes'; .*'size'",
        ),
        ("data.transform={name: papers_train, size: big}", r"data\.transform: size: .*valid integer.*got 'big'"),
        ("data.transform={name: papers_train, size: 0}", r"data\.transform: size must be at least 1, got 0"),
        ("data.transform={name: papers_eval, normalize: vgg}", r"normalize: .*'caffe_bgr'.*got 'vgg'"),
        ("data.transform={name: as_is, size: 1}", r"as_is has no key 'size' \(it has none\)"),
        ("data.transform={size: 64}", r"data\.transform: needs a name, one of: as_is, papers_eval"),
        ("data.transform=spectrogram_train", r"spectrogram_train is not for data\.input=image .*: as_is, papers_eval"),
        ("data.audio={mels: 40}", r"data\.audio: is a group of settings for data\.input=audio alone"),
        ("data.channels=0", r"data\.channels: .*greater than or equal to 1, got 0"),
        ("model.view_pooling=min", r"model\.view_pooling: .*'max' or 'mean', got 'min'"),
    ],
)
def test_each_mistake_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(QUICKSTART, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.audio.mel=40", r"data\.audio: audio has no key 'mel'; did you mean 'mels'"),
        ("data.audio.mels=-1", r"data\.audio: audio\.mels must be above 0, got -1"),
        ("data.audio.high_hz=wide", r"data\.audio: high_hz: .*got 'wide'"),
        ("data.audio=40", r"data\.audio: is a group of settings"),
        ("data.channels=3", r"data\.channels: log-mels have one: set data\.channels=1, got 3"),
        ("data.eval_transform=papers_eval", r"data\.eval_transform: papers_eval is not for data\.input=audio"),
    ],
)
def test_each_mistake_about_audio_is_named(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(QUICKSTART, [*AUDIO, override])


def test_arrays_may_have_any_number_of_channels() -> None:
    config = check_config(minimal(input="array", channels=7, transform="as_is", eval_transform="as_is"), "here")
    assert config.data.channels == 7

"""Nested settings as the flat parameters of a tracked run."""

from __future__ import annotations

from dmlscale.config.load import load_config
from dmlscale.launch.tracked import flat_params

AUDIO = [
    "data.input=audio",
    "data.channels=1",
    "data.transform={name: spectrogram_train, time_mask: 20}",
    "data.eval_transform=standardize",
]


def test_options_of_transforms_and_audio_are_flat() -> None:
    flat = flat_params(load_config("configs/quickstart.yaml", AUDIO))
    assert not [key for key, value in flat.items() if isinstance(value, dict)]
    assert flat["data.transform.name"] == "spectrogram_train"
    assert flat["data.transform.options.time_mask"] == 20
    assert flat["data.eval_transform.name"] == "standardize"
    assert flat["data.audio.mels"] == 40


def test_pictures_have_no_parameters_of_audio() -> None:
    flat = flat_params(load_config("configs/quickstart.yaml"))
    assert flat["data.transform.options.max_shift"] == 2
    assert [key for key in flat if key.startswith("data.audio")] == ["data.audio"]
    assert flat["data.audio"] is None

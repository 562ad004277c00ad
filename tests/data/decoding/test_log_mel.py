"""Log-mels against librosa and against the formula, written out."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import librosa
import numpy as np
import pytest
from scipy.io import wavfile

from dmlscale.data.decoding.decode import find_decoder
from dmlscale.data.decoding.log_mel import AudioOptions
from dmlscale.data.errors import DataError


def wav(samples: np.ndarray, rate: int = 16_000) -> list[bytes]:
    buffer = BytesIO()
    wavfile.write(buffer, rate, samples.astype(np.float32))
    return [buffer.getvalue()]


def log_mel(samples: np.ndarray, rate: int = 16_000, **options: Any) -> np.ndarray:
    return find_decoder("audio", audio=AudioOptions(**options))(wav(samples, rate)).numpy()


NOISE = np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32)


@pytest.mark.parametrize(
    "options",
    [
        {"window_ms": 32},
        {"window_ms": 64, "mels": 80, "hop_ms": 12.5},
        {"window_ms": 32, "low_hz": 300, "high_hz": 3400, "log_floor": 1.0},
        {"window_ms": 64, "sample_rate": 8_000, "seconds": 2},
    ],
)
def test_it_is_what_librosa_makes(options: dict[str, Any]) -> None:
    asked = AudioOptions(**options)
    energies = librosa.feature.melspectrogram(
        y=NOISE,
        sr=asked.sample_rate,
        n_fft=asked.window_samples,
        hop_length=asked.hop_samples,
        center=False,
        n_mels=asked.mels,
        fmin=asked.low_hz,
        fmax=asked.top_hz,
        htk=True,
        norm=None,
    )
    expected = np.log(np.maximum(energies, asked.log_floor))
    np.testing.assert_allclose(log_mel(NOISE, asked.sample_rate, **options)[0], expected, atol=1e-4)


def test_a_frame_shorter_than_a_power_of_two_is_padded() -> None:
    found = log_mel(NOISE)
    assert found.shape == (1, 40, 98)
    assert found.dtype == np.float32
    frame = NOISE[160 * 7 : 160 * 7 + 400] * (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400))
    spectrum = np.array([abs(np.sum(frame * np.exp(-2j * np.pi * k * np.arange(400) / 512))) for k in range(257)])
    filters = librosa.filters.mel(sr=16_000, n_fft=512, n_mels=40, fmin=20, htk=True, norm=None)
    np.testing.assert_allclose(found[0, :, 7], np.log(filters @ spectrum**2), atol=1e-4)


def test_a_tone_is_in_its_band_whatever_the_rate_of_the_recording() -> None:
    centers = librosa.mel_frequencies(42, fmin=20, fmax=8000, htk=True)[1:-1]
    for rate in (8_000, 16_000, 22_050, 44_100, 48_000):
        tone = 0.5 * np.sin(2 * np.pi * centers[20] * np.arange(rate) / rate)
        found = log_mel(tone, rate)
        assert found.shape == (1, 40, 98)
        assert (found[0].argmax(axis=0) == 20).mean() > 0.95
        # Half the amplitude of the window's sum, squared, at the tip of the triangle.
        assert found[0, 20, 49] == pytest.approx(2 * np.log(0.5 * 200 / 2), abs=0.7)


def test_resampling_keeps_the_recording() -> None:
    times = np.arange(48_000) / 48_000
    smooth = np.sum([np.sin(2 * np.pi * hz * times + hz) for hz in (200, 700, 1500, 2500)], axis=0) / 8
    at_48, at_16 = log_mel(smooth, 48_000, high_hz=3000), log_mel(smooth[::3], 16_000, high_hz=3000)
    loud = at_16[0, :, 5:-5] > 0
    assert loud.mean() > 0.3
    np.testing.assert_allclose(at_48[0, :, 5:-5][loud], at_16[0, :, 5:-5][loud], atol=0.05)


@pytest.mark.parametrize("num_samples", [1, 999, 15_999, 16_001, 24_001, 50_000])
def test_recordings_of_any_length_are_cut_or_padded_in_the_middle(num_samples: int) -> None:
    samples = np.random.default_rng(1).normal(0, 0.1, num_samples).astype(np.float32)
    spare = num_samples - 16_000
    if spare >= 0:
        fitted = samples[spare // 2 :][:16_000]
    else:
        fitted = np.concatenate([np.zeros(-spare // 2), samples, np.zeros(-spare - (-spare // 2))])
    np.testing.assert_array_equal(log_mel(samples), log_mel(fitted))


def test_silence_is_the_floor() -> None:
    found = log_mel(np.zeros(100), log_floor=1e-3)
    assert np.unique(found).tolist() == pytest.approx([np.log(1e-3)])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_rate": 0}, r"audio\.sample_rate must be above 0, got 0"),
        ({"hop_ms": float("nan")}, r"audio\.hop_ms must be above 0"),
        ({"high_hz": 9000}, "high_hz=9000 must ascend from 0 to half the sample rate, 8000"),
        ({"low_hz": 500, "high_hz": 400}, "low_hz=500 and high_hz=400"),
        ({"seconds": 0.01}, "no longer than seconds=0.01"),
        ({"hop_ms": 0.001}, "a sample at least"),
        ({"mels": 200}, "mels=200 bands are narrower .* take fewer mels"),
    ],
)
def test_options_out_of_range_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        AudioOptions(**options)


def test_eighty_mels_fit() -> None:
    assert log_mel(NOISE, mels=80).shape == (1, 80, 98)

"""Recordings to log-mel spectrograms, as keyword spotting takes them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dmlscale.data.decoding.contents import Content, Wave, only_part, read_wave
from dmlscale.data.errors import DataError


@dataclass(frozen=True)
class AudioOptions:
    """How a log-mel spectrogram is made.

    Args:
        sample_rate: in Hz; recordings of another rate are resampled.
        seconds: length; the middle of longer recordings is taken, shorter ones get silence at both ends.
        window_ms: length of a frame in milliseconds.
        hop_ms: from one frame to the next in milliseconds.
        mels: bands, equally wide on the mel scale.
        low_hz: lower edge of the lowest band.
        high_hz: upper edge of the highest band; None is half the sample rate.
        log_floor: energies below it count as it; a full-scale tone has an energy of about (window samples / 4) ** 2.

    Raises:
        DataError: a value is out of its range, or the frames are too short for so many bands.
    """

    sample_rate: int = 16_000
    seconds: float = 1.0
    window_ms: float = 25.0
    hop_ms: float = 10.0
    mels: int = 40
    low_hz: float = 20.0
    high_hz: float | None = None
    log_floor: float = 1e-6

    def __post_init__(self) -> None:
        for name in ("sample_rate", "seconds", "window_ms", "hop_ms", "mels", "log_floor"):
            value = getattr(self, name)
            if not value > 0 or not math.isfinite(value):
                raise DataError(f"audio.{name} must be above 0, got {value}")
        if not 0 <= self.low_hz < self.top_hz <= self.sample_rate / 2:
            raise DataError(
                f"audio.low_hz={self.low_hz} and high_hz={self.top_hz} must ascend from 0 to half the sample rate, "
                f"{self.sample_rate / 2:g}"
            )
        if self.hop_samples < 1 or not 2 <= self.window_samples <= self.num_samples:
            raise DataError(
                f"audio.window_ms={self.window_ms} must be two samples at least and no longer than "
                f"seconds={self.seconds}, and hop_ms={self.hop_ms} a sample at least"
            )
        if not _mel_filters(self).any(dim=0).all():
            raise DataError(
                f"audio.mels={self.mels} bands are narrower than the frequencies that frames of "
                f"window_ms={self.window_ms} tell apart: take fewer mels, longer frames or a larger low_hz"
            )

    @property
    def top_hz(self) -> float:
        """Upper edge of the highest band."""
        return self.sample_rate / 2 if self.high_hz is None else self.high_hz

    @property
    def num_samples(self) -> int:
        """Samples of a recording once it has its length."""
        return round(self.sample_rate * self.seconds)

    @property
    def window_samples(self) -> int:
        """Samples of a frame."""
        return round(self.sample_rate * self.window_ms / 1000)

    @property
    def hop_samples(self) -> int:
        """Samples from one frame to the next."""
        return round(self.sample_rate * self.hop_ms / 1000)

    @property
    def fft_size(self) -> int:
        """Samples of a frame with its padding: the next power of two, whose finer frequencies fill narrow bands."""
        return int(2 ** math.ceil(math.log2(self.window_samples)))


@dataclass(frozen=True)
class LogMelDecoder:
    """A .wav file -> (1, mels, frames) float32: the natural logarithm of the energy in each band and frame.

    Frames lie inside the recording, so there are ``1 + (num_samples - window_samples) // hop_samples``. Each is
    multiplied with a periodic Hann window.
    """

    options: AudioOptions

    def __call__(self, parts: Sequence[Content]) -> Tensor:
        """See ``Decoder``."""
        options = self.options
        samples = torch.from_numpy(_of_length(_at_rate(read_wave(only_part(parts)), options), options.num_samples))
        frames = samples.unfold(0, options.window_samples, options.hop_samples) * _window(options.window_samples)
        energies = torch.fft.rfft(frames, n=options.fft_size).abs().square() @ _mel_filters(options)
        return energies.clamp(min=options.log_floor).log().T[None].contiguous()


def _at_rate(wave: Wave, options: AudioOptions) -> NDArray[np.float32]:
    if wave.rate_hz == options.sample_rate:
        return wave.samples
    from scipy.signal import resample_poly  # a second, which those with pictures need not wait

    common = math.gcd(wave.rate_hz, options.sample_rate)
    resampled = resample_poly(wave.samples, options.sample_rate // common, wave.rate_hz // common)
    return np.asarray(resampled, np.float32)


def _of_length(samples: NDArray[np.float32], length: int) -> NDArray[np.float32]:
    spare = len(samples) - length
    if spare >= 0:
        return np.ascontiguousarray(samples[spare // 2 : spare // 2 + length])
    return np.pad(samples, (-spare // 2, -spare - (-spare // 2)))


@lru_cache(maxsize=8)
def _window(num_samples: int) -> Tensor:
    return torch.hann_window(num_samples)


@lru_cache(maxsize=8)
def _mel_filters(options: AudioOptions) -> Tensor:
    """(frequencies, mels) weights: triangles of height 1 that are equally wide on the mel scale of O'Shaughnessy."""
    low, high = (2595 * math.log10(1 + hz / 700) for hz in (options.low_hz, options.top_hz))
    corners = 700 * (10 ** (np.linspace(low, high, options.mels + 2) / 2595) - 1)
    frequencies = np.fft.rfftfreq(options.fft_size, 1 / options.sample_rate)[:, None]
    rising = (frequencies - corners[:-2]) / np.diff(corners)[:-1]
    falling = (corners[2:] - frequencies) / np.diff(corners)[1:]
    return torch.from_numpy(np.maximum(0, np.minimum(rising, falling)).astype(np.float32))

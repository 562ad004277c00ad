"""Which files are refused before they get into a shard, and that a decoder takes all others."""

from __future__ import annotations

import subprocess
import sys
import warnings
from io import BytesIO

import numpy as np
import pytest
import soundfile  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import wavfile

from dmlscale.data.decoding.check import check_bytes
from dmlscale.data.decoding.contents import read_array, read_wave
from dmlscale.data.decoding.decode import find_decoder
from dmlscale.data.inputs import InputKind

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")
RNG = np.random.default_rng(0)


def picture(file_format: str = "PNG", *, width: int = 17, height: int = 12) -> bytes:
    buffer = BytesIO()
    Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(buffer, file_format)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    buffer = BytesIO()
    np.savez(buffer, allow_pickle=True, **arrays)
    return buffer.getvalue()


def wav(samples: np.ndarray, rate: int = 16_000) -> bytes:
    buffer = BytesIO()
    wavfile.write(buffer, rate, samples)
    return buffer.getvalue()


def mu_law() -> bytes:
    buffer = BytesIO()
    soundfile.write(buffer, np.zeros(9), 16_000, format="WAV", subtype="ULAW")
    return buffer.getvalue()


GOOD: dict[str, tuple[InputKind, list[bytes]]] = {
    "png": ("image", [picture()]),
    "jpeg": ("image", [picture("JPEG")]),
    "bmp": ("image", [picture("BMP")]),
    "gif": ("image", [picture("GIF")]),
    "webp": ("image", [picture("WEBP")]),
    "views": ("views", [picture(), picture("JPEG")]),
    "vector": ("array", [npy(np.arange(4))]),
    "matrix": ("array", [npz(a=np.ones((2, 3), np.float16))]),
    "wav": ("audio", [wav(np.arange(100, dtype=np.int16))]),
}
BAD: dict[str, tuple[InputKind, list[bytes], str]] = {
    "nothing": ("image", [b""], "no picture"),
    "text": ("image", [b"<html>not found</html>"], "no picture in a format"),
    "two files": ("image", [picture(), picture()], "has 2 files, must have one"),
    "no files": ("array", [], "has 0 files"),
    "no views": ("views", [], "has no views"),
    "views differ": ("views", [picture(), picture(width=9)], "view 1 is 9 x 12, view 0 is 17 x 12"),
    "a broken view": ("views", [picture(), picture()[:300]], "truncated"),
    "no array": ("array", [picture()], r"no \.npy or \.npz"),
    "pickle": ("array", [npy(np.array([{"a": 1}]))], "allow_pickle=False"),
    "pickle in npz": ("array", [npz(data=np.array([{"a": 1}]))], "allow_pickle=False"),
    "empty npz": ("array", [npz()], "without arrays"),
    "text array": ("array", [npy(np.array(["a"]))], "must be real numbers"),
    "complex": ("array", [npy(np.ones(3, complex))], "must be real numbers"),
    "scalar": ("array", [npy(np.array(1.0))], r"shape \(\), must be"),
    "four axes": ("array", [npy(np.ones((1, 1, 1, 1)))], r"must be \(d,\), \(h, w\) or"),
    "no values": ("array", [npy(np.ones((3, 0)))], "without a zero"),
    "nan": ("array", [npy(np.array([1, np.nan]))], "not finite"),
    "too large": ("array", [npy(np.array([1e300]))], "not finite in float32"),
    "no wav": ("audio", [picture()], r"no \.wav"),
    "wav without sound": ("audio", [wav(np.zeros(0, np.int16))], "has no samples"),
    "wav header only": ("audio", [wav(np.zeros(9, np.int16))[:36]], "cut off before"),
    "wav with nan": ("audio", [wav(np.full(9, np.nan, np.float32))], "not finite"),
    "compressed": ("audio", [mu_law()], "MULAW"),
    "odd rate": ("audio", [wav(np.zeros(9, np.int16), rate=3)], "sample rate of 3 Hz"),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_passes_can_be_decoded(name: str) -> None:
    kind, parts = GOOD[name]
    assert check_bytes(kind, parts) is None
    expected = find_decoder(kind)(parts)
    assert expected.equal(find_decoder(kind)([bytearray(part) for part in parts]))
    assert expected.equal(find_decoder(kind)([memoryview(part) for part in parts]))


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_decoded_has_a_reason(name: str) -> None:
    kind, parts, reason = BAD[name]
    with pytest.raises(ValueError, match=reason):
        find_decoder(kind)(parts)
    found = check_bytes(kind, parts)
    assert found is not None
    assert "0x" not in found, "the same file must have the same reason in every process"
    assert "\n" not in found


@pytest.mark.parametrize("name", [name for name in GOOD if name != "views"])
@given(share=st.floats(0, 0.97))
def test_a_cut_off_file_never_passes(name: str, share: float) -> None:
    kind, (data,) = GOOD[name]
    cut = data[: int(len(data) * share)]
    if kind == "image" and name == "png":
        cut = cut[:-32]  # behind the last pixels there is nothing that would be missed
    assert check_bytes(kind, [cut]) is not None
    with pytest.raises(ValueError, match=r"\w"):
        find_decoder(kind)([cut])


@given(data=st.binary(max_size=200), kind=st.sampled_from(["image", "views", "array", "audio"]))
def test_any_bytes_behind_a_header_are_a_reason_and_no_crash(data: bytes, kind: InputKind) -> None:
    for head in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"RIFF0000WAVE"):
        assert check_bytes(kind, [head + data]) is not None


def test_a_picture_of_too_many_pixels_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    for most in (150, 100, 50):  # with half as many Pillow warns, with a quarter it refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", most)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert "pixels" in (check_bytes("image", [picture()]) or "")
        assert not [each for each in caught if each.category is not ResourceWarning]  # what other tests have left


def test_pictures_of_unknown_range_are_refused_with_the_way_out() -> None:
    buffer = BytesIO()
    Image.fromarray(RNG.random((4, 5)).astype(np.float32)).save(buffer, "TIFF")
    assert "'array'" in (check_bytes("image", [buffer.getvalue()]) or "")


def test_arrays_are_taken_as_documented() -> None:
    matrix, cube = np.arange(6.0).reshape(2, 3), np.arange(24).reshape(2, 3, 4)
    assert read_array(npy(matrix)).tolist() == [matrix.tolist()]
    assert read_array(npy(np.asfortranarray(cube))).tolist() == cube.tolist()
    assert read_array(npy(np.array([True, False]))).tolist() == [1, 0]
    assert read_array(npz(other=cube, data=matrix)).shape == (1, 2, 3)
    assert read_array(npz(first=cube, second=matrix)).shape == (2, 3, 4)
    assert read_array(npy(matrix)).dtype == np.float32


@pytest.mark.parametrize("file_format", ["WAV", "WAVEX"])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
@pytest.mark.parametrize("channels", [1, 2])
def test_samples_are_those_that_another_library_wrote(file_format: str, subtype: str, channels: int) -> None:
    expected, buffer = RNG.uniform(-0.9, 0.9, (500, channels)), BytesIO()
    soundfile.write(buffer, expected, 22_050, format=file_format, subtype=subtype)
    samples, rate = read_wave(buffer.getvalue())
    assert rate == 22_050
    assert samples.dtype == np.float32
    assert samples.shape == (500,)
    bits = {"PCM_U8": 8, "PCM_16": 16}.get(subtype, 24)
    np.testing.assert_allclose(samples, expected.mean(axis=1), atol=1.01 * 2.0 ** (1 - bits))


def test_other_parts_of_a_wav_file_neither_matter_nor_warn() -> None:
    plain = wav(np.arange(50, dtype=np.int16))
    with_note = plain[:36] + b"note\x03\x00\x00\x00abc\x00" + plain[36:] + b"id3 \x02\x00\x00\x00xy"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_wave(with_note).samples.tolist() == read_wave(plain).samples.tolist()


def test_checking_does_not_wait_for_torch() -> None:
    script = (
        "import sys; from dmlscale.data.decoding.check import check_bytes; "
        "[check_bytes(kind, [b'x']) for kind in ('image', 'views', 'array', 'audio')]; print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from dmlscale.data.errors import DataError
from dmlscale.data.sources import SOURCES
from dmlscale.data.sources.speech_commands import SpeechCommands
from tests.data.sources import official
from tests.data.sources.round_trip import assert_round_trip, listed


def wave(seed: int) -> bytes:
    file = io.BytesIO()
    wavfile.write(file, 16_000, np.random.default_rng(seed).integers(-999, 999, 160).astype(np.int16))
    return file.getvalue()


WORDS = [f"{word}/{speaker}_nohash_{n}.wav" for word in ("no", "up", "yes") for speaker in ("0a", "1b") for n in (0, 1)]
TREE = {
    **{name: wave(seed) for seed, name in enumerate(WORDS)},
    "_background_noise_/pink_noise.wav": wave(99),
    "_background_noise_/README.md": b"",
    "validation_list.txt": b"no/0a_nohash_0.wav\nyes/1b_nohash_1.wav\n",
    "testing_list.txt": b"up/0a_nohash_1.wav\r\n",
    "LICENSE": b"",
}


def test_registry_finds_it() -> None:
    assert SOURCES["speech_commands"] is SpeechCommands


def test_official_lists_are_the_splits(tmp_path: Path) -> None:
    official.write_folder(TREE, tmp_path / "data")
    index = assert_round_trip(SpeechCommands(str(tmp_path / "data")), tmp_path)
    found = listed(SpeechCommands(str(tmp_path / "data")), tmp_path)
    splits = {key: item.split for key, (item, _) in found.items() if item.split != "train"}
    assert splits == {
        "no/0a_nohash_0": "validation",
        "yes/1b_nohash_1": "validation",
        "up/0a_nohash_1": "test",
    }
    assert len(found) == len(WORDS)
    assert tuple(index.class_names) == ("no", "up", "yes")


@pytest.mark.parametrize("protocol", ["official", "zero_shot"])
def test_archive_beside_or_given_and_folder_list_the_same(tmp_path: Path, protocol: str) -> None:
    def found(path: Path) -> object:
        return listed(SpeechCommands(str(path), protocol), tmp_path / "scratch")  # type: ignore[arg-type]

    plain = found(official.write_folder(TREE, tmp_path / "data"))
    archive = official.write_tar(TREE, tmp_path / "download" / "speech_commands_v0.02.tar.gz")
    assert found(archive) == found(archive.parent) == plain


def test_zero_shot_deals_words_and_needs_no_lists(tmp_path: Path) -> None:
    tree = {f"{word}/1.WAV": wave(word) for word in range(60)}
    path = str(official.write_folder(tree, tmp_path / "data"))
    found = listed(SpeechCommands(path, "zero_shot", train_fraction=0.5), tmp_path)
    splits = {item.class_name: item.split for item, _ in found.values()}
    assert 15 < list(splits.values()).count("train") < 45
    other = listed(SpeechCommands(path, "zero_shot", train_fraction=0.5, seed=1), tmp_path)
    assert splits != {item.class_name: item.split for item, _ in other.values()}


def test_a_listed_recording_that_is_not_there_is_rejected(tmp_path: Path) -> None:
    tree = {**TREE, "testing_list.txt": b"up/9z_nohash_0.wav\n"}
    official.write_folder(tree, tmp_path / "data")
    index = assert_round_trip(SpeechCommands(str(tmp_path / "data")), tmp_path, unreadable=["up/9z_nohash_0"])
    assert len(index) == len(WORDS)


def test_official_counts_are_those_of_all_files() -> None:
    counts = SpeechCommands("x").official_counts
    assert sum(count.num_samples for count in counts.values()) == 105_829
    assert not SpeechCommands("x", "zero_shot").official_counts


@pytest.mark.parametrize(
    ("changes", "protocol", "message"),
    [
        ({"validation_list.txt": None}, "official", "found no validation_list.txt or speech_commands_v0.02.tar.gz"),
        ({"testing_list.txt": None}, "official", r"cannot read .*testing_list.txt .*restore it from http"),
        ({"testing_list.txt": TREE["validation_list.txt"]}, "official", "has no/0a_nohash_0.wav, and so has another"),
        (dict.fromkeys(WORDS), "zero_shot", r"no <word>/<name>\.wav"),
    ],
)
def test_what_is_missing_is_named(
    tmp_path: Path, changes: dict[str, bytes | None], protocol: str, message: str
) -> None:
    tree = {name: data for name, data in {**TREE, **changes}.items() if data is not None}
    official.write_folder(tree, tmp_path / "data")
    with pytest.raises(DataError, match=message):
        listed(SpeechCommands(str(tmp_path / "data"), protocol), tmp_path)  # type: ignore[arg-type]


def test_bad_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="protocol='none', must be 'official' or 'zero_shot'"):
        SpeechCommands("x", protocol="none")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="train_fraction=2"):
        SpeechCommands("x", train_fraction=2)
    with pytest.raises(DataError, match=r"there is no .*nowhere"):
        SpeechCommands(str(tmp_path / "nowhere"), "zero_shot").open(tmp_path)

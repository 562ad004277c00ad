"""Speech Commands: spoken words of one second; or any recordings in folders of their words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from dmlscale.data.errors import DataError
from dmlscale.data.inputs import InputKind
from dmlscale.data.originals.archives import open_files
from dmlscale.data.originals.class_split import check_fraction, split_of_class
from dmlscale.data.originals.downloads import Download, ListedFiles, OfficialCount
from dmlscale.data.originals.extensions import AUDIO_EXTENSIONS, extension_of
from dmlscale.data.originals.files import Files
from dmlscale.data.originals.names import SampleKeys, readable
from dmlscale.data.sources import SOURCES, TEST_SPLIT, TRAIN_SPLIT, Item, OpenSource

VALIDATION_SPLIT = "validation"

_DOWNLOAD = Download("speech_commands", "http://download.tensorflow.org/data/speech_commands_v0.02.tar.gz")
_ARCHIVES = ("speech_commands_v0.02.tar.gz", "speech_commands_v0.02.tar", "data_speech_commands_v0.02.tar.gz")
_LISTS = {"validation_list.txt": VALIDATION_SPLIT, "testing_list.txt": TEST_SPLIT}
_NOISE = "_background_noise_"


@SOURCES.register("speech_commands")
@dataclass(frozen=True)
class SpeechCommands:
    """Spoken words (Warden 2018), arXiv:1804.03209: <word>/<speaker>_nohash_<n>.wav. Keys are the paths.

    Args:
        path: the folder of the download (archive or unpacked), or the archive; for "zero_shot" any folder or archive
            of recordings in folders of their classes.
        protocol: "official" takes the splits from the lists of the download, all words in each: "train", "validation",
            "test". "zero_shot" trains on some words and tests on the others, dealt by a hash of the word.
        train_fraction: share of the words to train on, for "zero_shot".
        seed: of the deal.
    """

    path: str
    protocol: Literal["official", "zero_shot"] = "official"
    train_fraction: float = 0.5
    seed: int = 0

    input: ClassVar[InputKind] = "audio"

    def __post_init__(self) -> None:
        check_fraction("speech_commands", self.train_fraction)
        if self.protocol not in ("official", "zero_shot"):
            raise DataError(f"speech_commands: protocol={self.protocol!r}, must be 'official' or 'zero_shot'")

    @property
    def official_counts(self) -> Mapping[str, OfficialCount]:
        """Of version 0.02."""
        if self.protocol == "zero_shot":
            return {}
        sizes = {TRAIN_SPLIT: 84_843, VALIDATION_SPLIT: 9_981, TEST_SPLIT: 11_005}
        return {split: OfficialCount(size, 35) for split, size in sizes.items()}

    def open(self, scratch: Path) -> OpenSource:
        """See ``Source``."""
        if self.protocol == "official":
            files = _DOWNLOAD.find(self.path, scratch, next(iter(_LISTS)), archives=_ARCHIVES)
            return ListedFiles(files, partial(_official_items, files))
        place = Path(self.path).expanduser()
        if not place.exists():
            raise DataError(f"speech_commands: there is no {place}: set path to a folder or archive of recordings")
        archives = [place / name for name in _ARCHIVES if (place / name).is_file()]
        files = open_files(archives[0] if archives else place, scratch)
        return ListedFiles(files, partial(self._zero_shot_items, files))

    def _zero_shot_items(self, files: Files) -> Iterator[Item]:
        keys = SampleKeys()
        for name, word in _recordings(files):
            split = split_of_class(word, self.train_fraction, self.seed)
            yield Item(keys.add(name), word, split, readable(name), extension_of(name))


def _official_items(files: Files) -> Iterator[Item]:
    listed: dict[str, str] = {}
    for list_name, split in _LISTS.items():
        for (name,) in _DOWNLOAD.rows(files, list_name, ("file",), spaced="file"):
            if listed.setdefault(name, split) != split:
                raise DataError(
                    f"{files.location(list_name)} has {name}, and so has another list: restore both from "
                    f"{_DOWNLOAD.address}"
                )
    keys = SampleKeys()
    for name, word in _recordings(files):
        yield Item(keys.add(name), word, listed.pop(readable(name), TRAIN_SPLIT), readable(name), extension_of(name))
    for name, split in listed.items():  # what is not there fails when it is loaded
        yield Item(keys.add(name), name.partition("/")[0], split, name, extension_of(name))


def _recordings(files: Files) -> Iterator[tuple[str, str]]:
    """Names and words of the recordings."""
    count = 0
    for name in files.names():
        *_, word, _ = ("", *readable(name).split("/"))
        if word and word != _NOISE and extension_of(name) in AUDIO_EXTENSIONS:
            yield name, word
            count += 1
    if not count:
        raise DataError(f"speech_commands: no <word>/<name>.wav in {files.location('') or 'the folder'}")

"""Look through a WebDataset shard that others have made: what samples it holds, and where their bytes lie."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import BinaryIO, NamedTuple

from dmlscale.data.errors import DataError
from dmlscale.data.fingerprint import content_hash
from dmlscale.data.inputs import InputKind
from dmlscale.data.originals.extensions import EXTENSIONS, extension_of
from dmlscale.data.originals.names import readable
from dmlscale.data.packing.foreign_labels import read_label
from dmlscale.data.tar import members_of

# As WebDataset does it: the key ends at the first dot of the base name, and what looks like __meta__ is no sample.
_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
_META = re.compile(r"__[^/]*__($|/)")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}

Check = Callable[[Sequence[bytes]], str | None]  # the files of a sample -> why they cannot be decoded


class ScannedSample(NamedTuple):
    """A sample in a shard, and where its bytes lie."""

    key: str
    offset: int  # of its bytes; of the tar header of its first part, if it has several
    size: int  # bytes from there; with several parts to the end of the last
    num_parts: int
    extension: str  # of its file, without the dot
    class_label: str
    content_hash: int


class ScanReject(NamedTuple):
    """A sample that cannot be used, or with an empty key what is wrong with the shard itself."""

    key: str
    reason: str


@dataclass(frozen=True)
class Scan:
    """What to look for in each sample.

    Args:
        input: what the samples are.
        label: the member that tells the class: an extension ("cls"), or an extension and the way to a value in its
            JSON ("json:label", "json:annotation.species").
        member: extension of the member that is the sample ("jpg", "left.png"); None finds it by the endings that
            ``input`` goes with.
        check: tells why the files of a sample cannot be decoded; None looks into none.
    """

    input: InputKind
    label: str = "cls"
    member: str | None = None
    check: Check | None = None

    @property
    def label_member(self) -> str:
        """Extension of the member that holds the label."""
        return self.label.partition(":")[0].lower()

    def is_input(self, extension: str) -> bool:
        """Whether a member of this (whole) extension may be the sample or a part of it."""
        if self.member is not None:
            return extension == self.member.lower()
        return extension_of(f"x.{extension}") in EXTENSIONS[self.input]


def scan_shard(file: BinaryIO, scan: Scan) -> Iterator[ScannedSample | ScanReject]:
    """List the samples of a shard in one pass from front to back, in the memory of one sample (and the keys).

    A sample is a run of members with one key, as for WebDataset. It is one file, or for "views" all its numbered ones
    ("0.png", "1.png", ...) in the order of the shard. Damage never raises: what comes before it is listed, then one
    reject tells of it and is the last.

    Args:
        file: the shard; opened for reading, can seek.
        scan: what to look for.

    Yields:
        Samples and rejects in the order of the shard.

    Raises:
        DataError: the shard is compressed, so that its samples cannot be read at an offset.
        OSError: the file cannot be read.
    """
    _refuse_compressed(file)
    if not file.seek(0, 2):
        yield ScanReject("", "the shard is empty (0 bytes)")
        return
    file.seek(0)
    keys: set[str] = set()
    group: _Group | None = None
    try:
        for member in _members(file, scan):
            if group is not None and member.key != group.key:
                yield group.close(scan, keys)
                group = None
            group = group or _Group(member.key)
            group.members.append(member)
    except _DamageError as damage:
        if group is not None and group.key != damage.key:
            last = group.close(scan, keys)
            # A sample followed by damaged bytes may have had more views, but not another picture or label.
            if damage.key or (isinstance(last, ScannedSample) and scan.input != "views"):
                yield last
                group = None
        yield ScanReject(readable(group.key if group is not None else damage.key), str(damage))
        return
    yield group.close(scan, keys) if group is not None else ScanReject("", "the shard holds no samples")


class _Member(NamedTuple):
    key: str
    extension: str  # all after the first dot
    header: int  # offset of its first header block
    offset: int  # of its data
    data: bytes | None  # None where nobody asks for it
    is_sparse: bool

    @property
    def end(self) -> int:
        """Offset of what follows its data."""
        size = len(self.data or b"")
        return self.offset + size + -size % tarfile.BLOCKSIZE


class _DamageError(Exception):  # the archive ends here
    def __init__(self, reason: str, key: str) -> None:
        super().__init__(reason)
        self.key = key  # of the member that is cut off; "" where the damage lies between members


def _members(file: BinaryIO, scan: Scan) -> Iterator[_Member]:
    """The regular members of a tar file that belong to samples."""
    key = ""
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:  # leaves `file` open
            for info in members_of(tar):
                match = _NAME.fullmatch(info.name)
                if match is None or not info.isreg() or _META.match(info.name):
                    continue
                key, extension = match[1], match[2].lower()
                wanted = extension == scan.label_member or scan.is_input(extension)
                content = tar.extractfile(info) if wanted else None
                data = content.read() if content is not None else None
                yield _Member(key, extension, info.offset, info.offset_data, data, info.issparse())
                key = ""
            end = tar.offset
    except (tarfile.TarError, ValueError, OverflowError) as error:  # tarfile's numbers and texts raise the last two
        raise _DamageError(f"the shard is truncated or damaged near byte {file.tell()} ({error})", key) from None
    _check_end(file, end)


def _check_end(file: BinaryIO, offset: int) -> None:
    """Whether the archive really ends at ``offset``: for tarfile it also does at a damaged header."""
    file.seek(offset)
    block = file.read(tarfile.BLOCKSIZE)
    if len(block) < tarfile.BLOCKSIZE:
        raise _DamageError(f"the shard is truncated at byte {offset + len(block)}: it has no mark of its end", "")
    if any(block):
        raise _DamageError(f"the shard has a damaged header at byte {offset}: what follows is lost", "")


@dataclass
class _Group:
    """The members of one sample."""

    key: str
    members: list[_Member] = field(default_factory=list)

    def close(self, scan: Scan, keys: set[str]) -> ScannedSample | ScanReject:
        """The sample; ``keys`` are those seen before, to which its own is added."""
        try:
            self._check_names(keys)
            parts = self._parts(scan)
            class_label = read_label({m.extension: m.data for m in self.members}, scan.label)
            data = [part.data or b"" for part in parts]
            if not all(data):
                raise ValueError(f"the file {parts[data.index(b'')].extension!r} is empty")
            if scan.check is not None and (reason := scan.check(data)) is not None:
                raise ValueError(reason)
        except ValueError as error:
            return ScanReject(readable(self.key), str(error))
        offset = parts[0].offset if len(parts) == 1 else parts[0].header
        size = parts[-1].offset + len(data[-1]) - offset
        extension = extension_of(f"x.{parts[0].extension}")
        return ScannedSample(self.key, offset, size, len(parts), extension, class_label, content_hash(data))

    def _check_names(self, keys: set[str]) -> None:
        try:
            self.key.encode()
        except UnicodeEncodeError:
            raise ValueError("the name is not UTF-8: rename it") from None
        if self.key in keys:
            raise ValueError("the key comes twice in the shard (its members must follow each other)")
        keys.add(self.key)
        extensions = [member.extension for member in self.members]
        for extension in extensions:
            if extensions.count(extension) > 1:
                raise ValueError(f"has two members {extension!r}")

    def _parts(self, scan: Scan) -> list[_Member]:
        """The member that is the sample, or the views that make it."""
        found = [member for member in self.members if scan.is_input(member.extension)]
        if not found:
            there = ", ".join(member.extension for member in self.members)
            wanted = f"member {scan.member!r}" if scan.member else f"file for the input {scan.input!r}"
            raise ValueError(f"has no {wanted} (it has: {there})")
        if scan.input == "views":
            parts = [member for member in found if re.fullmatch(r"\d+\.\w+", member.extension)] or found
        else:
            # "jpg" is the sample where there also is a "mask.png".
            plain = [member for member in found if "." not in member.extension]
            parts = plain if len(plain) == 1 else found
        names = ", ".join(member.extension for member in parts)
        if len(parts) > 1 and scan.input != "views":
            raise ValueError(f"has several files that may be the sample ({names}): say which one with 'member'")
        if any(part.end != following.header for part, following in pairwise(parts)):
            raise ValueError(f"its views ({names}) do not follow each other in the shard")
        if any(part.is_sparse for part in parts):
            raise ValueError("is stored as a sparse file, whose bytes are not all in the shard")
        return parts


def _refuse_compressed(file: BinaryIO) -> None:
    file.seek(0)
    head = file.read(8)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise DataError(
                f"shard {getattr(file, 'name', '') or 'file'} is compressed ({name}), so samples cannot be read "
                "at an offset: decompress it (pictures are compressed already), or pack it as a new dataset"
            )

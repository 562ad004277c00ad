"""Names of shards that an index tells: it may be a stranger's, and must not lead to files that are none of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from fsspec.utils import get_protocol

from dmlscale.data.errors import DataError
from dmlscale.data.layout import SHARDS_FILE
from dmlscale.data.storage.file_systems import is_local
from dmlscale.data.storage.storage import Storage
from dmlscale.redaction import shown

_ELSEWHERE = "webdataset"  # the source whose shards stay where they are
_UNUSABLE = re.compile(r"[\x00-\x1f\x7f]|::")  # "::" joins file systems of fsspec: what is before it is no place


def check_shard_names(names: Sequence[str], description: Mapping[str, Any], storage: Storage) -> None:
    """Whether all shards lie in the dataset's folder, or may lie elsewhere.

    Only an index over shards of others names them by a path or URL of their own. Such an index that comes from another
    machine must not name files of this one.

    Args:
        names: of the shards.
        description: of the dataset.
        storage: where the dataset lies.

    Raises:
        DataError: they do not.
    """
    may_be_elsewhere = description.get("source") == _ELSEWHERE
    for name in names:
        if reason := _why_not(name, storage, may_be_elsewhere=may_be_elsewhere):
            raise DataError(
                f"{SHARDS_FILE} at {storage} names a shard {shown(name)!r:.300}, which {reason}: it is not opened. "
                "Take the dataset from whom you trust, or pack it again"
            )


def _why_not(name: str, storage: Storage, *, may_be_elsewhere: bool) -> str:
    if _UNUSABLE.search(name):
        return "is no name of a file"
    if "://" not in name and not name.startswith("/"):
        leaves = any(part in ("", ".", "..") for part in name.split("/"))
        return "leads out of the dataset's folder" if leaves else ""
    if not may_be_elsewhere:
        return "lies outside of the dataset's folder"
    if is_local(get_protocol(name)) and not storage.is_local:
        return "is a file of this machine, while the dataset is not on it"
    return ""

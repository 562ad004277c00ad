"""The tables of a dataset on this machine, wherever the dataset lies."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from dmlscale.data.errors import DataError
from dmlscale.data.layout import DESCRIPTION_FILE, TABLE_FILES
from dmlscale.data.storage.cache import ShardCache
from dmlscale.data.storage.storage import Storage
from dmlscale.data.storage.transfer_errors import MissingFileError


def fetch_tables(storage: Storage, cache: ShardCache) -> tuple[Storage, Path]:
    """Fetch the tables, unless they lie here.

    The description is asked for each time: it tells which version of the dataset it is, and tables and shards of
    another version are then never taken from the cache.

    Returns:
        The storage of this version, and the folder that holds the tables.

    Raises:
        DataError: there is no dataset, or it cannot be fetched.
    """
    if storage.is_local:
        return storage, storage.local_path("")
    try:
        version = _version(storage, cache)
        versioned = replace(storage, version=version)
        folders = {cache.fetch(versioned, name).parent for name in TABLE_FILES}
    except MissingFileError as error:
        raise DataError(
            f"no dataset at {storage} ({error}): pack one with `dmlscale pack` and upload its folder there"
        ) from None
    return versioned, folders.pop()


def _version(storage: Storage, cache: ShardCache) -> str:
    url = storage.url(DESCRIPTION_FILE)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, DESCRIPTION_FILE)
        cache.retry.call(lambda: storage.download(DESCRIPTION_FILE, path), url)
        try:
            return str(json.loads(path.read_text())["version"])
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{url} is no description of a dataset: pack and upload it again") from None

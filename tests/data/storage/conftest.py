from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dmlscale.data.storage.storage import Storage
from tests.data.far_shards import served_shards
from tests.data.servers import HttpServer


@pytest.fixture
def http(tmp_path: Path) -> Iterator[HttpServer]:
    with served_shards(tmp_path) as server:
        yield server


@pytest.fixture
def storage(http: HttpServer) -> Storage:
    return Storage.open(http.url)

"""docs/datasets.md says what the sources say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dmlscale.data.sources import SOURCES

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "datasets.md").read_text()
NAMES = ["cars196", "cub200", "inaturalist2018", "inshop", "sop"]


@pytest.mark.parametrize("name", NAMES)
def test_the_table_has_the_official_counts(name: str) -> None:
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{name}` |"))
    source: Any = SOURCES[name]
    assert set(re.findall(r"\d{1,3}(?:,\d{3})*", row)) >= {
        f"{number:,}" for count in source.official_counts.values() for number in count
    }


@pytest.mark.parametrize("name", NAMES)
def test_there_are_configs_and_the_page_names_them_all(name: str) -> None:
    configs = sorted((ROOT / "configs" / name).glob("*.yaml"))
    assert configs
    assert all(f"configs/{name}/{path.name}" in PAGE for path in configs)

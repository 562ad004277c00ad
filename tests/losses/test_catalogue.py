"""The catalogue: what is printed, what is documented, and what is registered are one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dmlscale.cli import main
from dmlscale.losses import LOSSES
from dmlscale.losses.catalogue import as_markdown, divisors_as_markdown, entries

DOCS = Path(__file__).parents[2] / "docs" / "losses.md"


@pytest.mark.parametrize("table", [as_markdown, divisors_as_markdown])
def test_docs_hold_the_tables(table: object) -> None:
    assert callable(table)
    assert table() in DOCS.read_text(), "docs/losses.md is stale: run `make docs`"


def test_every_loss_is_there_with_its_defaults() -> None:
    found = {entry.name: entry for entry in entries()}
    assert set(found) == set(LOSSES)
    for name, entry in found.items():
        made = LOSSES[name]()
        assert entry.hyper_parameters == dataclasses.asdict(made)  # type: ignore[call-overload]
        assert entry.family == made.block
        assert len(entry.paper) > 10
        assert entry.sharded
        assert entry.divided_by


def test_the_command_prints_all_and_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["losses"]) == 0
    printed = capsys.readouterr().out
    for name in LOSSES:
        assert name in printed
    assert main(["losses", "arcface"]) == 0
    assert "Formula:" in capsys.readouterr().out
    assert main(["losses", "arcfase"]) == 2
    assert "did you mean 'arcface'" in capsys.readouterr().err


def test_a_stale_document_is_renewed_and_a_strange_one_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stale = tmp_path / "losses.md"
    stale.write_text(DOCS.read_text().replace("margin=0.4", "margin=9"))
    assert main(["losses", "--renew", str(stale)]) == 0
    assert stale.read_text() == DOCS.read_text()
    strange = tmp_path / "other.md"
    strange.write_text("# Nothing\n")
    assert main(["losses", "--renew", str(strange)]) == 2
    assert "no table" in capsys.readouterr().err
    assert strange.read_text() == "# Nothing\n"

"""Rules of the tree that no linter knows. The import contracts between rooms are import-linter's: `make check`."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dmlscale.config.load import load_config
from dmlscale.tuning.config import load_sweep

ROOT = Path(__file__).parents[2]
SOURCES = sorted(p for room in ("dmlscale", "tests", "benchmarks") for p in (ROOT / room).rglob("*.py"))
MOST_LINES, MOST_FUNCTION_LINES, MOST_MEDIAN = 300, 60, 150


def test_files_stay_small() -> None:
    lengths = {p.relative_to(ROOT): len(p.read_text().splitlines()) for p in SOURCES}
    assert {path: n for path, n in lengths.items() if n > MOST_LINES} == {}
    assert sorted(lengths.values())[len(lengths) // 2] < MOST_MEDIAN
    assert not [p for p in SOURCES if p.stem in ("utils", "common", "helpers")]


def test_functions_stay_on_a_screen() -> None:
    long = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno is not None:
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                if node.end_lineno - first.lineno + 1 > MOST_FUNCTION_LINES:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}")
    assert long == []


def test_torch_distributed_has_few_doors() -> None:
    """Only the room that knows ranks, and the checkpoints, talk to a process group."""
    allowed = {"training/checkpoint/pieces.py", "training/state.py"}
    found = set()
    for path in (ROOT / "dmlscale").rglob("*.py"):
        name = path.relative_to(ROOT / "dmlscale").as_posix()
        if not name.startswith("distributed/") and re.search(
            r"^\s*(import|from) torch\.distributed", path.read_text(), re.M
        ):
            found.add(name)
    assert found <= allowed


def test_losses_import_torch_alone() -> None:
    script = (
        "import sys, dmlscale.losses as l; list(l.LOSSES.items());"
        "print([m for m in ('numpy', 'ray', 'mlflow', 'timm', 'pydantic', 'pyarrow', 'yaml', 'faiss') "
        "if m in sys.modules and m != 'numpy'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def test_there_are_configs() -> None:
    assert len(CONFIGS) >= 6


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_every_config_loads_and_says_how_to_run_it(path: Path) -> None:
    if path.parent.name == "tune":
        load_sweep(str(path), [])
    else:
        load_config(path)
    head = path.read_text().splitlines()[:3]
    assert head[0].startswith("# ")
    assert any(path.relative_to(ROOT).as_posix() in line for line in head)


def test_readme_names_what_is_there() -> None:
    text = (ROOT / "README.md").read_text()
    for name in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (ROOT / name).exists(), f"README links {name}"
    for room in sorted(p.name for p in (ROOT / "dmlscale").iterdir() if p.is_dir() and p.name != "__pycache__"):
        assert f"{room}/" in text, f"README's tree lacks {room}/"

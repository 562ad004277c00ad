"""docs/faults.md speaks of states, phases, keys and exit codes that there are."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

from pydantic import BaseModel

from dmlscale.config.schema import Config
from dmlscale.distributed.beats import PHASES
from dmlscale.launch.driver import EXIT_RESUME_ME
from dmlscale.launch.run.run_state import Name

TEXT = (Path(__file__).parents[2] / "docs" / "faults.md").read_text()


def test_the_diagram_has_every_state() -> None:
    diagram = TEXT[TEXT.index("stateDiagram-v2") : TEXT.index("| state |")]
    ends = re.findall(r"^ +(\S+) --> ([^\s:]+)", diagram, re.MULTILINE)
    assert {name for pair in ends for name in pair} - {"[*]"} == set(get_args(Name))


def test_every_phase_is_named() -> None:
    listed = TEXT[TEXT.index("in a *phase*") : TEXT.index("Messages about lost")]
    assert set(re.findall(r"`([\w ]+)`", listed)) == set(PHASES)


def test_the_keys_exist() -> None:
    named = set(re.findall(r"`(train|resources|tracking|data)\.(\w+)", TEXT))
    assert len(named) > 10
    unknown = [f"{s}.{key}" for s, key in named if key not in type_of(s).model_fields]
    assert unknown == []


def type_of(section: str) -> type[BaseModel]:
    found = Config.model_fields[section].annotation
    assert isinstance(found, type)
    assert issubclass(found, BaseModel)
    return found


def test_the_exit_codes() -> None:
    codes = set(map(int, re.findall(r"^\| (\d+) \|", TEXT, re.MULTILINE)))
    assert codes == {0, 1, 2, EXIT_RESUME_ME, 130}

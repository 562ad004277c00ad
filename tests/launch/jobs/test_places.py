from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dmlscale.launch.errors import LaunchError
from dmlscale.launch.jobs.command import Command, read_train, settings_of
from dmlscale.launch.jobs.places import folders_of, placed
from dmlscale.tuning.submitted import read_sweep

QUICKSTART = "configs/quickstart.yaml"
SWEEP = "configs/tune/glyphs.yaml"


def test_the_quickstart_needs_a_shared_folder_and_nothing_else() -> None:
    command = Command("train", (QUICKSTART,))
    settings = settings_of(command, read_train)
    with pytest.raises(LaunchError, match=r"run\.folder=runs, data\.path=data/glyphs: .*--shared"):
        placed(command, settings, None)
    there = placed(command, settings, "/mnt/shared")
    config = read_train(QUICKSTART, there.overrides).config
    assert (config.run.folder, config.data.path) == ("/mnt/shared/runs", "/mnt/shared/data/glyphs")
    assert folders_of(there, read_train(QUICKSTART, there.overrides))["run.folder"] == "/mnt/shared/runs"


def test_a_sweep_is_placed_by_its_base() -> None:
    command = Command("tune", (SWEEP,))
    with pytest.raises(LaunchError, match=r"base\.data\.path=data/glyphs"):
        placed(command, settings_of(command, read_sweep), None)
    there = placed(command, settings_of(command, read_sweep), "/mnt/shared")
    settings = read_sweep(SWEEP, there.overrides)
    assert settings.data_path == settings.config.data.path == "/mnt/shared/data/glyphs"
    assert settings.config.run.folder == "/mnt/shared/runs"


def test_the_data_path_of_a_sweep_is_as_written_even_where_its_file_sets_it(tmp_path: Path) -> None:
    sweep = yaml.safe_load(Path(SWEEP).read_text())
    sweep["base"] = str(Path(QUICKSTART).absolute())
    sweep["set"]["data.path"] = "elsewhere/set"
    file = tmp_path / "sweep.yaml"
    file.write_text(yaml.safe_dump(sweep))
    assert read_sweep(str(file), []).data_path == "elsewhere/set"
    assert read_sweep(str(file), ["base.data.path=given"]).data_path == "given"


def test_absolute_paths_and_urls_are_left_as_they_are() -> None:
    overrides = ("run.folder=/mnt/runs", "data.path=s3://bucket/glyphs", "data.source=null")
    command = Command("train", (QUICKSTART,), overrides)
    settings = settings_of(command, read_train)
    assert placed(command, settings, None) == placed(command, settings, "/mnt/shared") == command


def test_a_sqlite_store_and_a_source_are_paths_too() -> None:
    overrides = (
        "run.folder=/mnt/runs",
        "data.path=/mnt/birds",
        "data.source={name: folder, path: pictures, train_classes: 0.5}",
        "tracking.uri=sqlite:///mine.db",
    )
    command = Command("train", (QUICKSTART,), overrides)
    settings = settings_of(command, read_train)
    with pytest.raises(LaunchError, match=r"data\.source\.path=pictures, tracking\.uri=sqlite:///mine\.db"):
        placed(command, settings, None)
    config = read_train(QUICKSTART, placed(command, settings, "/mnt/s").overrides).config
    assert config.data.source is not None
    assert config.data.source.options["path"] == "/mnt/s/pictures"
    assert config.tracking.uri == "sqlite:////mnt/s/mine.db"


def test_pack_and_evaluate_have_paths_among_their_words() -> None:
    pack = placed(Command("pack", ("folder", "data/birds"), ("path=pictures",)), None, "/mnt/s")
    assert pack.words[:3] == ["pack", "folder", "/mnt/s/data/birds"]
    assert pack.overrides[-1] == "path=/mnt/s/pictures"
    same = placed(Command("pack", ("glyphs", "glyphs")), None, "/mnt/s")
    assert same.words == ["pack", "glyphs", "/mnt/s/glyphs"]
    evaluate = Command("evaluate", ("runs/mine",), (), ("--report", "report"))
    assert placed(evaluate, None, "/mnt/s").words == ["evaluate", "/mnt/s/runs/mine", "--report", "/mnt/s/report"]
    with pytest.raises(LaunchError, match="runs/mine, report"):
        placed(evaluate, None, None)


def test_a_report_lies_in_a_folder_that_all_nodes_share() -> None:
    evaluate = placed(Command("evaluate", ("runs/mine",), (), ("--report", "/home/me/report")), None, "/mnt/s")
    assert folders_of(evaluate, None) == {"checkpoint": "/mnt/s/runs", "--report": "/home/me"}


def test_the_shared_folder_itself_is_absolute() -> None:
    with pytest.raises(LaunchError, match="absolute"):
        placed(Command("evaluate", ("runs/mine",)), None, "shared")


@given(st.lists(st.from_regex(r"d[a-z0-9_]{1,8}", fullmatch=True), min_size=1, max_size=4).map("/".join))
def test_whatever_is_relative_lies_below_the_shared_folder(path: str) -> None:
    command = placed(Command("evaluate", (path,), (f"data.path={path}",)), None, "/mnt/s")
    assert command.subject == (f"/mnt/s/{path}",)
    assert command.overrides[-1] == f"data.path=/mnt/s/{path}"
    assert placed(command, None, None) == command

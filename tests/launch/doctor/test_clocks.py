from __future__ import annotations

import pytest

from dmlscale.launch.doctor.clocks import check_clocks
from tests.launch.doctor.machines import RoomsOfOne


@pytest.mark.parametrize(
    ("ahead", "status"), [(0.0, "ok"), (0.6, "ok"), (5.0, "warn"), (-5.0, "warn"), (100.0, "fail")]
)
def test_a_clock_is_compared_with_that_of_the_head(ahead: float, status: str) -> None:
    found = check_clocks(RoomsOfOne(["n0", "n1", "n2"], ahead={"n1": ahead}))
    assert {f.node: f.status for f in found} == {"n0": "ok", "n1": status, "n2": "ok"}


def test_the_clock_of_the_one_who_asks_does_not_count() -> None:
    found = check_clocks(RoomsOfOne(["n0", "n1"], ahead={"n0": 50.0, "n1": 50.0}))
    assert {f.status for f in found} == {"ok"}


def test_how_far_and_which_way_is_told() -> None:
    found = check_clocks(RoomsOfOne(["n0", "n1"], ahead={"n1": -40.0}))
    assert found[1].what == "40.0 s behind n0"


def test_a_silent_node_is_a_finding_and_the_others_are_compared() -> None:
    found = check_clocks(RoomsOfOne(["n0", "n1", "n2"], ahead={"n2": 9.0}, silent=["n0"]))
    assert [(f.node, f.status) for f in found] == [("n0", "fail"), ("n1", "ok"), ("n2", "warn")]

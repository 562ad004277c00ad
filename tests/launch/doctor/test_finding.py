"""Findings of many nodes become few lines, and none is lost."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dmlscale.launch.doctor.finding import Finding, lines_of, most_common, named, passes

FINDINGS = st.lists(
    st.builds(
        Finding,
        node=st.sampled_from(["", "n0", "n1", "n2"]),
        check=st.sampled_from(["disk", "clock"]),
        status=st.sampled_from(["ok", "warn", "fail"]),
        what=st.sampled_from(["a", "b"]),
        advice=st.sampled_from(["", "c"]),
    )
)


@given(FINDINGS)
def test_every_finding_is_in_one_line(findings: list[Finding]) -> None:
    lines = lines_of(findings)
    again = [
        (node, line.check, line.status, line.what, line.advice) for line in lines for node in (line.nodes or ("",))
    ]
    told = {(f.node, f.check, f.status, f.what, f.advice) for f in findings}
    # A line with nodes says nothing of the cluster as a whole beside them.
    assert {entry for entry in told if entry[0]} == {entry for entry in again if entry[0]}
    assert len({(line.check, line.status, line.what, line.advice) for line in lines}) == len(lines)
    assert passes(findings) == all(line.status != "fail" for line in lines)


def test_nodes_that_agree_are_one_line_in_the_order_of_checks() -> None:
    found = [
        Finding("n0", "disk", "ok", "fine"),
        Finding("n0", "clock", "ok", "fine"),
        Finding("n1", "disk", "fail", "full", "empty it"),
        Finding("n2", "disk", "ok", "fine"),
    ]
    assert [(line.check, line.nodes, line.status) for line in lines_of(found)] == [
        ("disk", ("n0", "n2"), "ok"),
        ("disk", ("n1",), "fail"),
        ("clock", ("n0",), "ok"),
    ]


def test_the_head_has_the_last_word_where_two_values_are_equally_frequent() -> None:
    assert most_common({"head": 1, "n1": 2, "n2": 2}, ["head", "n1", "n2"]) == 2
    assert most_common({"head": 1, "n1": 2}, ["head", "n1"]) == 1


def test_many_names_are_shortened() -> None:
    assert named([f"n{i}" for i in range(8)]) == "n0, n1, n2, n3, n4 and 3 more"

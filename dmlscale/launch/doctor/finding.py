"""What a check says of a node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

Status = Literal["ok", "warn", "fail"]
T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """One check of one node.

    Args:
        node: its host name; "" where the check is of the cluster as a whole.
        check: what was looked at, e.g. "open files".
        status: "fail" where a run will not work, "warn" where it may not, or not well.
        what: was found.
        advice: what to do about it; "" if nothing.
    """

    node: str
    check: str
    status: Status
    what: str
    advice: str = ""


@dataclass(frozen=True)
class Line:
    """Findings that differ in nothing but their node."""

    nodes: tuple[str, ...]
    check: str
    status: Status
    what: str
    advice: str


def passes(findings: Iterable[Finding]) -> bool:
    """Whether nothing failed; warnings may be there."""
    return all(finding.status != "fail" for finding in findings)


def lines_of(findings: Iterable[Finding]) -> list[Line]:
    """Nodes that agree become one line; the checks keep the order of their first findings."""
    by_check: dict[str, dict[Finding, list[str]]] = {}
    for finding in findings:
        same = Finding("", finding.check, finding.status, finding.what, finding.advice)
        by_check.setdefault(finding.check, {}).setdefault(same, []).append(finding.node)
    return [
        Line(tuple(node for node in nodes if node), same.check, same.status, same.what, same.advice)
        for alike in by_check.values()
        for same, nodes in alike.items()
    ]


def most_common(values: Mapping[str, T], nodes: Sequence[str]) -> T:
    """The value that most nodes have; of several the first in the order of ``nodes``, which begin with the head."""
    have = [values[node] for node in nodes]
    return max(have, key=have.count)


def named(nodes: Sequence[str]) -> str:
    """Node names for a sentence, shortened after the fifth."""
    more = f" and {len(nodes) - 5} more" if len(nodes) > 5 else ""
    return ", ".join(nodes[:5]) + more

"""All of an evaluation in one HTML file that needs no other and asks the network for nothing."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined

_PNG = b"\x89PNG\r\n\x1a\n"
_LOWER_IS_BETTER = ("eer", "open_set_fpr_at_95")


class Section(NamedTuple):
    """A figure of the report."""

    heading: str
    text: str  # one sentence that says how to read it, as the figures' HOW_TO_READ
    figure: bytes  # a PNG file
    alt: str  # what it shows, for those who cannot see it


class _Row(NamedTuple):
    name: str
    value: str
    interval: str
    baseline: str


class _Figure(NamedTuple):
    heading: str
    text: str
    alt: str
    base64: str
    width: int
    height: int


def html_report(
    title: str,
    facts: Sequence[tuple[str, str]],
    metrics: Mapping[str, float],
    intervals: Mapping[str, tuple[float, float]],
    baseline: Mapping[str, float],
    sections: Sequence[Section],
) -> str:
    """The report as the text of an HTML file.

    Args:
        title: of the page.
        facts: (name, value) of what was evaluated: run, dataset, loss, checkpoint.
        metrics: value by name, shown in this order; names with ``num_`` are counts.
        intervals: 95 % interval by name, for some or none of the metrics; NaN where there is none.
        baseline: the raw pixels' metrics by name, for some or none.
        sections: the figures, from top to bottom.

    Raises:
        ValueError: a section's figure is not a PNG file.
    """
    environment = Environment(
        loader=PackageLoader("dmlscale.evaluation", "."),
        autoescape=True,  # names of classes and runs are the user's, and may hold anything
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    rows = [_row(name, value, intervals.get(name), baseline.get(name)) for name, value in metrics.items()]
    return environment.get_template("report.html.jinja").render(
        title=title,
        facts=facts,
        measured=rows,
        has_intervals=any(row.interval for row in rows),
        has_baseline=any(row.baseline for row in rows),
        sections=[_figure(section) for section in sections],
    )


def _row(name: str, value: float, interval: tuple[float, float] | None, baseline: float | None) -> _Row:
    def written(number: float) -> str:
        if not math.isfinite(number):
            return "none"
        return f"{number:,.0f}" if name.startswith("num_") else f"{number:.4f}"

    has_interval = interval is not None and all(math.isfinite(end) for end in interval)
    return _Row(
        name=f"{name} (lower is better)" if name in _LOWER_IS_BETTER else name,
        value=written(value),
        interval=" \N{EN DASH} ".join(map(written, interval)) if interval is not None and has_interval else "",
        baseline="" if baseline is None else written(baseline),
    )


def _figure(section: Section) -> _Figure:
    if not section.figure.startswith(_PNG):
        raise ValueError(f"the figure of section {section.heading!r} must be the bytes of a PNG file")
    # A PNG file begins with its size: the page keeps the place, so that nothing moves while it opens.
    width, height = (int.from_bytes(section.figure[start : start + 4], "big") for start in (16, 20))
    encoded = base64.b64encode(section.figure).decode("ascii")
    return _Figure(section.heading, section.text, section.alt, encoded, width, height)

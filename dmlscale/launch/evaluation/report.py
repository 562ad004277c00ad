"""The figures of an evaluation as files, and all of them in one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dmlscale.config.schema import Config
from dmlscale.data.index import Index
from dmlscale.data.reader import LostSampleError, Reader
from dmlscale.distributed.world import World
from dmlscale.evaluation.figures.picture import LoadImage
from dmlscale.evaluation.figures.style import png
from dmlscale.evaluation.report import Section, html_report
from dmlscale.evaluation.thumbnails import thumbnail
from dmlscale.launch.build import build_decoder
from dmlscale.launch.evaluation.bank_sample import BankSample
from dmlscale.launch.evaluation.evaluator import Evaluator, FinalEvaluation
from dmlscale.launch.evaluation.report_figures import Material, PlannedFigure, planned_figures
from dmlscale.launch.tracked import dataset_name, loss_name
from dmlscale.tracking.provenance import git_tags

REPORT_FILE = "report.html"
MOST_ON_MAP = 1000
"""Samples on the map: t-SNE of more takes longer than all the rest."""


class Written(NamedTuple):
    """What a report came to."""

    files: list[Path]  # PNG files, then the page
    left_out: dict[str, str]  # `figure <name>` -> why it is not there


def draw_report(
    evaluator: Evaluator,
    final: FinalEvaluation,
    banks: Sequence[BankSample],
    folder: Path,
    config: Config,
    index: Index,
    world: World,
    *,
    step: int,
) -> Written:
    """Brings together what is drawn, and draws it on rank 0; all ranks call this.

    Args:
        evaluator: that has measured.
        final: what it measured.
        banks: of the losses; needed on rank 0 alone.
        folder: to write into, on storage that rank 0 sees.
        config: of the run.
        index: the dataset.
        world: the ranks.
        step: that the model was trained to.

    Returns:
        What was written; nothing on other ranks. Nothing that fails here is raised on rank 0: what was measured is
        worth more than its pictures.
    """
    local = final.measured.local
    shown = evaluator.shown(local) if config.evaluation.gallery_queries else []
    on_map = evaluator.sample(local, MOST_ON_MAP)
    if world.rank != 0:
        return Written([], {})
    material = Material(
        measured=final.measured,
        baseline=final.baseline,
        shown=shown,
        on_map=on_map,
        banks=banks,
        metric=config.evaluation.metric,
        index=index,
        train_split=config.data.train_split,
        seed=config.run.seed,
    )
    try:
        return write_report(material, folder, config, facts_of(config, index, step=step, num_ranks=world.num_ranks))
    except Exception as error:  # a full disk, a folder that cannot be written
        return Written([], {"report": f"{type(error).__name__}: {error}"})


def write_report(material: Material, folder: Path, config: Config, facts: Sequence[tuple[str, str]]) -> Written:
    """Draws all figures into a folder, each as a PNG file, and writes ``report.html`` beside them.

    Args:
        material: to draw.
        folder: made if it is not there.
        config: says how samples are decoded.
        facts: (name, value) of what was evaluated.

    Returns:
        The files, and which figures could not be drawn.

    Raises:
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    reader = Reader(material.index, build_decoder(config, material.index))
    sections: list[Section] = []
    files: list[Path] = []
    left_out: dict[str, str] = {}
    try:
        for planned in planned_figures(material, pictures_of(reader)):
            file = folder / f"{planned.name}.png"
            drawn = _draw(planned)
            if isinstance(drawn, str):
                left_out[f"figure {planned.name}"] = drawn
                file.unlink(missing_ok=True)  # an earlier one would pass for this one
                continue
            file.write_bytes(drawn)
            files.append(file)
            sections.append(Section(planned.heading, planned.how_to_read, drawn, planned.alt))
    finally:
        reader.close()
    measured = material.measured
    title = f"{config.run.name}: {loss_name(config)} on {dataset_name(config)}"
    page = html_report(title, facts, measured.metrics, measured.intervals, material.baseline, sections)
    (folder / REPORT_FILE).write_text(page, encoding="utf-8")
    return Written([*files, folder / REPORT_FILE], left_out)


def pictures_of(reader: Reader) -> LoadImage:
    """What gives figures the pictures of samples, by their row in the index."""

    def load_image(row_id: int) -> NDArray[np.uint8] | None:
        try:
            return thumbnail(reader.decoded(row_id))
        except LostSampleError:  # another rank could read it
            return None

    return load_image


def facts_of(config: Config, index: Index, *, step: int, num_ranks: int) -> list[tuple[str, str]]:
    """What was evaluated, for the head of a report."""
    split = config.data.eval_split
    if config.data.gallery_split is not None:
        split += f", searched in {config.data.gallery_split}"
    facts = {
        "Run": str(config.run.name),
        "Loss": loss_name(config),
        "Backbone": config.model.backbone,
        "Dataset": f"{dataset_name(config)} (version {index.description['version']})",
        "Split": split,
        "Step": f"{step:,}",
        "Workers": f"{num_ranks}",
        "Commit": _commit(git_tags(Path.cwd())),
    }
    return [(name, value) for name, value in facts.items() if value]


def _commit(tags: Mapping[str, str]) -> str:
    """The commit that a run was made with; empty outside a repository."""
    found = tags.get("mlflow.source.git.commit", "")
    return f"{found} (and changes that are not committed)" if tags.get("git.dirty") == "true" else found


def _draw(planned: PlannedFigure) -> bytes | str:
    """The figure as a PNG file, or why it cannot be drawn."""
    try:
        return png(planned.draw())
    except Exception as error:  # of whatever kind: see `draw_report`
        return f"{type(error).__name__}: {error}"

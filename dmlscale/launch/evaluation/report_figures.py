"""Which figures a report has, with what is written beside each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from dmlscale.data.index import Index
from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.figures import (
    bank_neighbours,
    centers,
    distances,
    embedding_map,
    per_class,
    recall_curve,
    retrieval_gallery,
    roc,
)
from dmlscale.evaluation.figures.crowded_classes import bank_rows
from dmlscale.evaluation.figures.picture import LoadImage
from dmlscale.evaluation.figures.worst_classes import worst_classes
from dmlscale.evaluation.gallery import RetrievalRow
from dmlscale.evaluation.neighbors import Metric
from dmlscale.evaluation.projection import project
from dmlscale.launch.evaluation.bank_sample import BankSample
from dmlscale.launch.evaluation.evaluator import CURVE_KS, Measured

_NUM_COLOURED = 10  # classes on the map


class PlannedFigure(NamedTuple):
    """A figure that is not drawn yet."""

    name: str  # of its file, without the ending
    heading: str
    how_to_read: str
    alt: str  # what it shows, for those who cannot see it
    draw: Callable[[], Figure]


@dataclass(frozen=True)
class Material:
    """What figures are drawn from, on one rank.

    Args:
        measured: the figures in numbers.
        baseline: the raw pixels' metrics with all points of the curve; empty where they were not measured.
        shown: queries with their neighbours; empty leaves the gallery out.
        on_map: samples for the map.
        banks: of the losses that have one.
        metric: which neighbours are near.
        index: the dataset.
        train_split: where pictures of trained classes come from.
        seed: of the map.
    """

    measured: Measured
    baseline: Mapping[str, float]
    shown: Sequence[RetrievalRow]
    on_map: Embedded
    banks: Sequence[BankSample]
    metric: Metric
    index: Index
    train_split: str
    seed: int

    def class_name(self, label: int) -> str:
        """What a class is called."""
        return str(self.index.class_names[label])


def planned_figures(material: Material, load_image: LoadImage) -> Iterator[PlannedFigure]:
    """The figures of a report, from top to bottom."""
    if material.shown:
        yield PlannedFigure(
            "retrieval_gallery",
            "Queries and what was found for them",
            retrieval_gallery.HOW_TO_READ,
            f"{len(material.shown)} queries, each with its nearest neighbours",
            lambda: _gallery(material, load_image),
        )
    yield PlannedFigure(
        "recall_curve",
        "Recall@K",
        recall_curve.HOW_TO_READ,
        "Recall@K over the number of neighbours K",
        lambda: _recall_curve(material),
    )
    yield PlannedFigure(
        "per_class",
        "Classes that are found, and classes that are not",
        per_class.HOW_TO_READ,
        "Recall@1 of each class, and a table of the worst classes",
        lambda: _per_class(material),
    )
    yield from _verification(material)
    yield PlannedFigure(
        "embedding_map",
        "Map of the embeddings",
        embedding_map.HOW_TO_READ,
        f"Map of {len(material.on_map.ids):,} embedded samples",
        lambda: _map(material, load_image),
    )
    for bank in material.banks:
        yield from _bank(material, bank, load_image)


def _verification(material: Material) -> Iterator[PlannedFigure]:
    found = material.measured.verification
    if found is None:
        return
    name = "cosine similarity" if material.metric == "cosine" else "negative Euclidean distance"
    threshold, eer = found.values.get("eer_threshold"), found.values.get("eer")
    if len(found.same) and found.same.sum() + found.different.sum():
        yield PlannedFigure(
            "distances",
            "Pairs of the same class and of different classes",
            distances.HOW_TO_READ,
            f"Histograms of the {name} of pairs of the same class and of different classes",
            lambda: distances.distance_histogram(
                found.edges, found.same, found.different, threshold=threshold, closeness=name, eer=eer
            ),
        )
    curve = found.roc
    if curve is not None:
        prefix = "tar_at_far_"
        marked = {
            float(key.removeprefix(prefix)): value for key, value in found.values.items() if key.startswith(prefix)
        }
        yield PlannedFigure(
            "roc",
            "Verification",
            roc.HOW_TO_READ,
            "True accept rate over the false accept rate",
            lambda: roc.roc_curve(curve.far, curve.tar, auc=found.values["auc"], eer=eer, marked=marked),
        )


def _bank(material: Material, bank: BankSample, load_image: LoadImage) -> Iterator[PlannedFigure]:
    several = len(material.banks) > 1
    suffix, of_loss = (f"_{bank.name}", f" ({bank.name})") if several else ("", "")
    per_class_rows = bank.weights.shape[1]
    if per_class_rows > 1 and len(bank.labels):
        yield PlannedFigure(
            f"centers_used{suffix}",
            f"Centers in use per class{of_loss}",
            centers.HOW_TO_READ,
            f"Histogram of how many of their {per_class_rows} centers the classes use",
            lambda: centers.centers_used(centers.effective_centers(bank.weights), per_class_rows),
        )
    if len(bank.labels) > 1:
        yield PlannedFigure(
            f"bank_neighbours{suffix}",
            f"Nearest classes in the class bank{of_loss}",
            bank_neighbours.HOW_TO_READ,
            "Some trained classes with those whose proxies or centers are nearest to theirs",
            lambda: _neighbourhoods(material, bank, load_image),
        )


def _gallery(material: Material, load_image: LoadImage) -> Figure:
    closeness = "cosine similarity" if material.metric == "cosine" else "Euclidean distance"
    return retrieval_gallery.retrieval_gallery(
        material.shown, load_image, class_name=material.class_name, closeness=closeness
    )


def _recall_curve(material: Material) -> Figure:
    found = material.measured.retrieval
    others = found.metrics["num_queries"] + found.metrics["num_lone_queries"] - 1
    ks = [k for k in CURVE_KS if k <= found.metrics.get("num_gallery", others)]
    names = [f"recall_at_{k}" for k in ks]
    has_intervals = "precision_at_1" in material.measured.intervals
    return recall_curve.recall_curve(
        ks,
        [found.metrics[name] for name in names],
        intervals=[found.intervals[name] for name in names] if has_intervals else None,
        baseline=[material.baseline[name] for name in names] if material.baseline else None,
    )


def _per_class(material: Material) -> Figure:
    classes = material.measured.retrieval.per_class
    right = classes.sums["precision_at_1"]
    names = [material.class_name(label) for label in classes.labels.tolist()]
    worst = worst_classes(
        classes.labels,
        classes.num_queries,
        right,
        material.measured.retrieval.confusions,
        class_name=material.class_name,
    )
    return per_class.per_class_recall(classes.mean("precision_at_1"), classes.num_queries, names, worst)


def _map(material: Material, load_image: LoadImage) -> Figure:
    embeddings, labels, ids = (values.numpy() for values in material.on_map)
    classes, sizes = np.unique(labels, return_counts=True)
    largest = classes[np.argsort(-sizes, kind="stable")[:_NUM_COLOURED]].tolist()
    return embedding_map.embedding_map(
        project(embeddings, seed=material.seed, metric=material.metric),
        labels,
        class_name=material.class_name,
        highlight=largest,
        images=load_image,
        ids=ids,
    )


def _neighbourhoods(material: Material, bank: BankSample, load_image: LoadImage) -> Figure:
    by_class = material.index.split(material.train_split).class_rows
    rows = bank_rows(
        bank.weights,
        class_name=lambda place: material.class_name(int(bank.labels[place])),
        sample_of=lambda place: int(by_class.rows[by_class.starts[bank.labels[place]]]),
        seed=material.seed,
    )
    return bank_neighbours.bank_neighbours(rows, load_image)

"""Evaluation of a model inside a worker: all ranks embed, search and sum."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn

from dmlscale.config.schema import Config
from dmlscale.data.index import Index
from dmlscale.data.types import Batch
from dmlscale.distributed.world import World
from dmlscale.evaluation.embed import Embedded, embed, raw_pixels
from dmlscale.evaluation.evaluate import Evaluation, evaluate
from dmlscale.evaluation.gallery import RetrievalRow, gallery_rows
from dmlscale.evaluation.neighbors import Metric
from dmlscale.evaluation.open_set import open_set
from dmlscale.evaluation.subsample import whole_classes
from dmlscale.evaluation.verification import FEWEST_CLASSES, Verification, verify
from dmlscale.launch.build import build_eval_batches
from dmlscale.launch.ranks import OverRanks

CURVE_KS = (1, 2, 4, 8, 16, 32, 64, 100)
"""For which K the curve of Recall@K has a point."""
_CHEAP, _ALL = ("retrieval", "clustering"), ("retrieval", "map", "clustering")

Intervals = dict[str, tuple[float, float]]
T = TypeVar("T")


@dataclass(frozen=True)
class Measured:
    """Figures of a model; the same on every rank but for ``local``.

    Args:
        metrics: value by name, counts (`num_...`) last.
        intervals: 95 % interval by name, of those metrics that have one.
        left_out: name -> why it was not measured.
        retrieval: what they come from; with more Recall@K than were asked for, for the curve.
        verification: likewise; None where only the cheap metrics were measured.
        local: this rank's embeddings, those of queries and gallery.
    """

    metrics: dict[str, float]
    intervals: Intervals
    left_out: dict[str, str]
    retrieval: Evaluation
    verification: Verification | None
    local: Embedded


@dataclass(frozen=True)
class FinalEvaluation:
    """What is told of a model in the end; the same on every rank.

    Args:
        measured: of the model.
        baseline: retrieval metrics of the raw pixels, with all points of the curve where everything was measured;
            empty where they were not asked for.
        ks: of the Recall@K that were asked for.
    """

    measured: Measured
    baseline: dict[str, float]
    ks: Sequence[int]

    def result(self) -> dict[str, Any]:
        """Plain values, for the driver."""
        return {
            "metrics": self.measured.metrics,
            "intervals": {name: list(ends) for name, ends in self.measured.intervals.items()},
            "raw_pixels": asked_for(self.baseline, self.ks),
            "left_out": dict(self.measured.left_out),
        }

    def logged(self, split: str) -> dict[str, float]:
        """What goes to the tracker beside the metrics, by its name there."""
        ends = ("low", "high")
        intervals = self.measured.intervals.items()
        pixels = asked_for(self.baseline, self.ks).items()
        return {f"eval/{split}/raw_pixels/{name}": value for name, value in pixels} | {
            f"interval/{split}/{name}_{end}": value
            for name, values in intervals
            for end, value in zip(ends, values, strict=True)
        }


class Evaluator:
    """Zero-shot retrieval of the evaluation split: among itself, or in the gallery split where the config names one.

    Args:
        config: of the run.
        index: the dataset.
        world: the ranks; all of them call every method.
        device: of the model.
    """

    def __init__(self, config: Config, index: Index, world: World, device: torch.device) -> None:
        self._config, self._index, self._world, self._device = config, index, world, device
        self._ranks = OverRanks(world, device)
        splits = (config.data.eval_split, config.data.gallery_split)
        self._splits = [split for split in splits if split is not None]

    def model(self, net: nn.Module) -> tuple[dict[str, float], Embedded]:
        """The cheap metrics by name, the same on every rank, and this rank's embeddings."""
        measured = self.measure(net, everything=False)
        return measured.metrics, measured.local

    def measure(self, net: nn.Module, *, everything: bool) -> Measured:
        """Embeds and measures.

        Args:
            net: images -> embeddings.
            everything: also the average precision over the whole ranking, verification and the detection of unknown
                classes. Pairs and unknown classes are of queries and gallery together.
        """
        local = embed(net, self._batches(), self._device)
        metric = self._config.evaluation.metric
        retrieval = self._evaluate(local, metric, _ALL if everything else _CHEAP, curve=everything)
        found = int(self._ranks.all_sum(torch.tensor([len(local.ids)])))
        expected = sum(len(self._index.split(name)) for name in self._splits)
        ks = self._config.evaluation.ks
        metrics = asked_for(retrieval.metrics, ks) | {"num_skipped": float(expected - found)}
        intervals, left_out = _finite(asked_for(retrieval.intervals, ks)), {}
        num_classes = int((retrieval.per_class.num_queries > 0).sum())
        if num_classes < FEWEST_CLASSES:  # as for the other intervals: of two classes, one may be "0.00 to 0.00"
            intervals = {}
            left_out["intervals"] = f"{num_classes} classes are too few to resample: it takes {FEWEST_CLASSES}"
        verification = None
        if everything:
            gather, rank, seed = self._ranks.gather, self._world.rank, self._config.run.seed
            verification = verify(local, gather=gather, rank=rank, metric=metric, seed=seed)
            unknown = open_set(local, gather=gather, rank=rank, metric=metric, seed=seed)
            metrics |= verification.metrics() | unknown.metrics()
            intervals |= _finite(verification.intervals) | _finite(unknown.intervals)
            reasons = verification.left_out
            left_out |= {f"verification_{name}" if name == "intervals" else name: reasons[name] for name in reasons}
            left_out |= unknown.left_out
        return Measured(_counts_last(metrics), intervals, left_out, retrieval, verification, local)

    def finish(self, net: nn.Module, *, everything: bool) -> FinalEvaluation:
        """`measure`, and the raw pixels where the config asks for them."""
        measured = self.measure(net, everything=everything)
        baseline = self.raw_pixels(curve=everything) if self._config.evaluation.raw_pixels else {}
        return FinalEvaluation(measured, baseline, self._config.evaluation.ks)

    def raw_pixels(self, *, curve: bool = False) -> dict[str, float]:
        """The same retrieval metrics for the pixels themselves: the line to beat; with ``curve`` all of its points."""
        measured = self._evaluate(raw_pixels(self._batches()), "cosine", ("retrieval",), curve=curve).metrics
        return {name: value for name, value in measured.items() if not name.startswith("num_")}

    def shown(self, local: Embedded) -> list[RetrievalRow]:
        """Queries and their nearest neighbours, to be drawn; the same on every rank."""
        return gallery_rows(
            *self._sides(local),
            num_queries=self._config.evaluation.gallery_queries,
            metric=self._config.evaluation.metric,
            seed=self._config.run.seed,
            gather=self._ranks.gather,
            rank=self._world.rank,
        )

    def sample(self, local: Embedded, most: int) -> Embedded:
        """At most so many samples of whole classes, on every rank."""
        return whole_classes(local, most, seed=self._config.run.seed, gather=self._ranks.gather, rank=self._world.rank)

    def _batches(self) -> Iterator[Batch]:
        """This rank's share of the queries, then that of the gallery."""
        shares = [build_eval_batches(self._config, self._index, split, self._world) for split in self._splits]
        return chain.from_iterable(shares)

    def _sides(self, local: Embedded) -> tuple[Embedded, Embedded | None]:
        """Queries and gallery, told apart by the splits of their rows; None where the queries are their own gallery."""
        if self._config.data.gallery_split is None:
            return local, None
        number = self._index.splits.index(self._config.data.eval_split)
        is_query = torch.from_numpy(self._index.columns.splits[local.ids.numpy()] == number)
        return Embedded(*(values[is_query] for values in local)), Embedded(*(values[~is_query] for values in local))

    def _evaluate(self, local: Embedded, metric: Metric, groups: Collection[str], *, curve: bool) -> Evaluation:
        ks: Sequence[int] = self._config.evaluation.ks
        return evaluate(
            *self._sides(local),
            gather=self._ranks.gather,
            all_sum=self._ranks.all_sum,
            rank=self._world.rank,
            ks=sorted({*ks, *CURVE_KS}) if curve else ks,
            metric=metric,
            groups=groups,
            seed=self._config.run.seed,
        )


def asked_for(named: Mapping[str, T], ks: Sequence[int]) -> dict[str, T]:
    """Without the Recall@K that only the curve needs."""
    extra = {f"recall_at_{k}" for k in CURVE_KS if k not in ks}
    return {name: value for name, value in named.items() if name not in extra}


def _finite(intervals: Mapping[str, tuple[float, float]]) -> Intervals:
    return {name: ends for name, ends in intervals.items() if all(map(math.isfinite, ends))}


def _counts_last(metrics: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(metrics.items(), key=lambda entry: entry[0].startswith("num_")))

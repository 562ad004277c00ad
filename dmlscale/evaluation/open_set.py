"""Does a query belong to a class that is enrolled at all? Detection of unknown classes by the nearest gallery item.

A query is accepted as known where its similarity to the nearest item of the gallery is at least a threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dmlscale.evaluation.closeness import FloatArray, IntArray, Metric, require_metric
from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.ranks import Gather, alone
from dmlscale.evaluation.roc import Roc, auc_of, num_accepted, roc_of
from dmlscale.evaluation.sharded_search import nearest_over_ranks
from dmlscale.evaluation.shares import Share, require_seed
from dmlscale.evaluation.subsample import checked_share, order_within_classes
from dmlscale.evaluation.verification import class_intervals

AREA, FALSE_ALARMS, FOUND = "open_set_auroc", "open_set_fpr_at_95", "open_set_dir_at_far_1"
FEWEST_UNKNOWN = 100
"""Unknown queries without which a false alarm rate of 1 % means none at all."""
_GRID = 2.0**-20
_KEY = 3  # hashes other than those of other choices
_GALLERY, _KNOWN, _UNKNOWN = 0, 1, 2


@dataclass(frozen=True)
class OpenSet:
    """How well unknown classes are told from known ones; the same on every rank.

    Args:
        values: `open_set_auroc`: the chance that a known query scores higher than an unknown one (half where they are
            equal); `open_set_fpr_at_95`: share of unknown queries accepted at the highest threshold that accepts 95 %
            of the known; `open_set_dir_at_far_1`: detection and identification rate, the share of known queries that
            are accepted and whose nearest item is of their class, at the lowest threshold that accepts at most 1 % of
            the unknown.
        intervals: 95 % intervals, of the same names.
        left_out: name -> why it is in neither of them.
        counts: `num_open_set_gallery` samples, `num_open_set_known` and `num_open_set_unknown` queries.
    """

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    left_out: dict[str, str]
    counts: dict[str, int]

    def metrics(self) -> dict[str, float]:
        """Values and counts."""
        return self.values | {name: float(count) for name, count in self.counts.items()}


@dataclass(frozen=True)
class _Queries:
    """All ranks' queries in the order of their ids."""

    scores: FloatArray  # (q,) similarity to the nearest item: higher is closer
    codes: IntArray  # (q,) classes, counted from 0
    is_known: NDArray[np.bool_]
    is_right: NDArray[np.bool_]  # whether the nearest item is of the query's class


def open_set(
    local: Embedded, *, gather: Gather = alone, rank: int = 0, metric: Metric = "cosine", seed: int = 0
) -> OpenSet:
    """Enroll half of the samples of half of the classes and look up all others.

    Of the classes with two samples or more, half (rounded down) are known, in the order of a hash of their label. Half
    of the samples of each (rounded down), by a hash of their ids, are the gallery; the others are known queries. All
    samples of all other classes are unknown queries. A score is the cosine similarity, rounded to 2^-20 so that scores
    which ought to be equal are, or the negative Euclidean distance. The intervals come from 200 resamplings of the
    classes with replacement, with the gallery as it is.

    Args:
        local: this rank's share, uneven or empty; an id that is there several times counts once.
        gather: concatenates over ranks.
        rank: this rank.
        metric: what close means.
        seed: of the choice and of the intervals, at least 0.

    Raises:
        ValueError: as `checked_share`, an unknown metric, or ``seed`` is negative.

    Communication: as `checked_share` and `nearest_over_ranks`; gather of 2 int64 and a float32 for each query, and of
        the replicates' values.

    Source: Phillips, Grother, Micheals 2011, "Evaluation methods in face recognition", in Handbook of Face Recognition
        (detection and identification rate); Scheirer et al. 2013, "Toward open set recognition" (known and unknown
        classes).
    """
    require_metric(metric)
    require_seed(seed)
    share = checked_share(local, gather, rank=rank, metric=metric)
    roles = _roles(share, seed)
    counts = np.bincount(roles, minlength=3).tolist()
    named = dict(zip(("num_open_set_gallery", "num_open_set_known", "num_open_set_unknown"), counts, strict=True))
    if not counts[_GALLERY]:
        reason = "it takes two classes with two samples each: one to know, one not to know"
        return OpenSet({}, {}, dict.fromkeys((AREA, FALSE_ALARMS, FOUND), reason), named)
    queries = _look_up(share, roles, metric, gather)
    known, unknown = (np.sort(queries.scores[queries.is_known == known]) for known in (True, False))
    values, left_out = {AREA: auc_of(known, unknown), FALSE_ALARMS: _false_positives(known, unknown, 0.95)}, {}
    if len(unknown) < FEWEST_UNKNOWN:
        left_out[FOUND] = f"it takes {FEWEST_UNKNOWN} queries of unknown classes, there are {len(unknown)}"
    else:
        is_found = queries.is_right & (queries.scores > unknown[-1 - num_accepted(unknown, 0.01)])
        values[FOUND] = float(is_found.sum() / len(known))  # only a known query can be right
    resampled = _resampled(queries, roc_of(known, unknown), list(values))
    num_classes = int(queries.codes.max()) + 1
    num_useful = min(len(np.unique(queries.codes[queries.is_known == known])) for known in (True, False))
    intervals, reasons = class_intervals(
        list(values),
        num_classes,
        resampled,
        num_useful=num_useful,
        useful="classes that are known, or that are not,",
        seed=seed,
        gather=gather,
        rank=rank,
    )
    if reasons:
        left_out["open_set_intervals"] = reasons["intervals"]
    return OpenSet(values, intervals, left_out, named)


def _roles(share: Share, seed: int) -> IntArray:
    """(n,) what each sample is; no gallery where there are not two classes of two."""
    classes, sizes, positions = order_within_classes(share, seed, _KEY)
    is_usable = sizes >= 2
    is_usable[np.cumsum(is_usable) > is_usable.sum() // 2] = False
    by_label = np.argsort(classes)
    halves = np.where(is_usable, sizes // 2, 0)[by_label]  # to enroll of each class; 0 of unknown ones
    half = halves[np.searchsorted(classes[by_label], share.labels)]
    roles = np.where(half > 0, _KNOWN, _UNKNOWN)
    roles[positions < half] = _GALLERY
    return roles


def _look_up(share: Share, roles: IntArray, metric: Metric, gather: Gather) -> _Queries:
    is_enrolled = roles[share.rows] == _GALLERY
    values, nearest = nearest_over_ranks(
        share.embeddings[~is_enrolled],
        share.embeddings[is_enrolled],
        share.rows[is_enrolled],
        1,
        metric=metric,
        gather=gather,
    )
    closeness = np.round(values[:, 0] / _GRID) * _GRID if metric == "cosine" else -values[:, 0]
    columns = share.rows[~is_enrolled], closeness.astype(np.float32), nearest[:, 0]
    rows, scores, nearest = (gather(torch.from_numpy(column)).cpu().numpy() for column in columns)
    order = np.argsort(rows)
    rows, scores, nearest = rows[order], scores[order], nearest[order]
    codes = np.unique(share.labels, return_inverse=True)[1]
    return _Queries(scores, codes[rows], roles[rows] == _KNOWN, codes[nearest] == codes[rows])


def _false_positives(known: FloatArray, unknown: FloatArray, accepted: float) -> float:
    """Share of the unknown at the threshold that accepts this share of the known; both ascending."""
    threshold = known[len(known) - int(np.ceil(accepted * len(known) - 1e-9))]
    return float((len(unknown) - np.searchsorted(unknown, threshold)) / len(unknown))


def _resampled(queries: _Queries, roc: Roc, names: Sequence[str]) -> Callable[[IntArray], Sequence[float]]:
    """The function that `class_intervals` asks for, with the points of the curve as bins."""
    bins, num_bins = roc.bins(queries.scores), len(roc.far) - 1
    groups = (queries.is_known, ~queries.is_known, queries.is_right)

    def resampled(drawn: IntArray) -> Sequence[float]:
        weights = drawn[queries.codes]
        known, unknown, right = (np.bincount(bins[group], weights[group], num_bins) for group in groups)
        if not (known.any() and unknown.any()):
            return [np.nan] * len(names)
        curve = roc.reweighted(known, unknown)
        found = np.append(0, np.cumsum(right) / known.sum())
        values = {
            AREA: curve.area(),
            FALSE_ALARMS: np.interp(0.95, curve.tar, curve.far),
            FOUND: np.interp(0.01, curve.far, found),
        }
        return [float(values[name]) for name in names]

    return resampled

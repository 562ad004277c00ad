"""Do two samples show the same class? How well a threshold on the similarity of a pair tells.

All pairs of the samples of some classes are looked at: P pairs of one class ("same") and N of two ("different"). A pair
is accepted where its score is at least the threshold. FAR (false acceptance rate) is the share of different pairs that
are accepted, TAR (true acceptance rate) that of same pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from dmlscale.data.hashing import key_of, random_bits
from dmlscale.evaluation.closeness import Metric, require_metric
from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.ranks import Gather, alone
from dmlscale.evaluation.roc import RATES, Floats, Ints, Roc, Scores, auc_of, num_accepted, roc_of
from dmlscale.evaluation.subsample import compare, pairs, whole_classes

FEWEST_CLASSES = 10  # of fewer, a resampling does not tell how others would differ
NUM_REPLICATES = 200
_FEWEST_ACCEPTED = 10  # different pairs that a FAR must stand for: fewer say nothing about it
_PAIRS_PER_BIN = 1_000
_NUM_BINS = 100


@dataclass(frozen=True)
class Verification:
    """What the scores of pairs tell; the same on every rank.

    Args:
        values: `auc`: area under the whole curve, the chance that a same pair scores higher than a different one (half
            where they are equal); `eer` and `eer_threshold`: equal error rate, as `Roc.equal_error_rate` of the whole
            curve; `tar_at_far_1e-1` to `1e-4`: the highest TAR of all thresholds at which the FAR is not higher.
        intervals: 95 % intervals, of the same names.
        left_out: name -> why it is in neither of them.
        roc: at most 2,000 points of the curve, among them those of TAR@FAR and both beside the EER; None without
            same or without different pairs.
        edges: (101,) of the histograms' bins, from the lowest to the highest score.
        same: (100,) number of same pairs in each bin.
        different: (100,) number of different pairs.
        num_samples: that the pairs are of.
        num_classes: that the samples belong to.
    """

    values: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    left_out: dict[str, str]
    roc: Roc | None
    edges: Floats
    same: Ints
    different: Ints
    num_samples: int
    num_classes: int

    def metrics(self) -> dict[str, float]:
        """The values, `num_same_pairs` and `num_different_pairs`."""
        counts = {"num_same_pairs": self.same.sum(), "num_different_pairs": self.different.sum()}
        return self.values | {name: float(count) for name, count in counts.items()}


def verify(
    local: Embedded,
    *,
    gather: Gather = alone,
    rank: int = 0,
    metric: Metric = "cosine",
    most: int = 5_000,
    seed: int = 0,
) -> Verification:
    """Compare all pairs of the samples of `whole_classes`.

    A score is the cosine similarity or the negative Euclidean distance, computed in float64 and rounded to a grid of
    2^-22 (times the longest vector), so that scores which ought to be equal are. The intervals come from 200
    resamplings of the classes with replacement: a pair of one class counts as often as the class was drawn, a pair of
    two classes the product of both. They use the thresholds of ``roc`` as bins, of each bin at most 1,000 different
    pairs (chosen by a hash, and weighted for all of the bin), and take TAR@FAR from the lines between the points.

    Args:
        local: this rank's share, uneven or empty; an id that is there several times counts once.
        gather: concatenates over ranks.
        rank: this rank.
        metric: what close means.
        most: samples to compare; memory and time grow with its square (5,000: 12.5 million pairs).
        seed: of the choice of classes and of the intervals, at least 0.

    Raises:
        ValueError: as `whole_classes`, or an unknown metric.

    Communication: as `whole_classes`, then gather of the replicates' values, of which each rank computes a part.

    Source: Bolle et al. 2004, "Error analysis of pattern recognition systems: the subsets bootstrap" (resampling of
        whole classes). Differs in: pairs of two classes weigh the product of both.
    """
    require_metric(metric)
    samples = whole_classes(local, most, seed=seed, gather=gather, rank=rank)
    classes, codes, sizes = np.unique(samples.labels.numpy(), return_inverse=True, return_counts=True)
    scores, is_same = compare(samples.embeddings.numpy(), codes, metric)
    same, different = np.sort(scores[is_same]), np.sort(scores[~is_same])
    extremes = np.concatenate([side[[0, -1]] for side in (same, different) if len(side)] or [scores])
    edges = np.histogram_bin_edges(extremes.astype(np.float64), _NUM_BINS)
    same_counts, different_counts = (np.histogram(side, edges)[0].astype(np.int64) for side in (same, different))
    intervals: dict[str, tuple[float, float]] = {}
    roc = roc_of(same, different) if len(same) and len(different) else None
    values, left_out = _measure(roc, same, different)
    if roc is not None:
        names = [name for name in values if name != "eer_threshold"]
        resampled = _resampled(roc, scores, is_same, codes, names, seed)
        options = {"num_useful": int((sizes > 1).sum()), "seed": seed, "rank": rank}
        intervals, reasons = class_intervals(
            names, len(classes), resampled, useful="classes with a same pair", gather=gather, **options
        )
        left_out |= reasons
    return Verification(
        values, intervals, left_out, roc, edges, same_counts, different_counts, len(codes), len(classes)
    )


def class_intervals(
    names: Sequence[str],
    num_classes: int,
    resampled: Callable[[Ints], Sequence[float]],
    *,
    num_useful: int,
    useful: str,
    seed: int,
    gather: Gather,
    rank: int,
) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
    """95 % percentile intervals from 200 resamplings of the classes; each rank computes a part of them.

    Args:
        names: of the values.
        num_classes: C, to draw C times from.
        resampled: how often each class was drawn (C,) -> the values, NaN where they are not defined.
        num_useful: how many of the classes the values rest on. What hundreds of others add does not tell how the values
            would move with one more class like these.
        useful: what to call them.
        seed: of the draws.
        gather: concatenates over ranks.
        rank: this rank.

    Returns:
        The intervals, and why there are none.
    """
    if num_useful < FEWEST_CLASSES:
        return {}, {"intervals": f"{num_useful} {useful} are too few to resample: it takes {FEWEST_CLASSES}"}
    num_ranks = len(gather(torch.zeros(1)))
    draws = np.random.default_rng(seed).multinomial(num_classes, np.full(num_classes, 1 / num_classes), NUM_REPLICATES)
    own = torch.tensor([list(resampled(drawn)) for drawn in draws[rank::num_ranks]], dtype=torch.float64)
    low, high = np.nanquantile(gather(own.reshape(-1, len(names))).cpu().numpy(), [0.025, 0.975], axis=0)
    return {name: (float(a), float(b)) for name, a, b in zip(names, low, high, strict=True)}, {}


def _measure(roc: Roc | None, same: Scores, different: Scores) -> tuple[dict[str, float], dict[str, str]]:
    """What `Verification` calls values and left_out."""
    if roc is None:
        reason = "all samples that are compared are of one class" if len(same) else "no class has two samples"
        return {}, dict.fromkeys(["auc", "eer", "eer_threshold", *(f"tar_at_far_{rate}" for rate in RATES)], reason)
    values, left_out = {"auc": auc_of(same, different)}, {}
    values["eer"], values["eer_threshold"] = roc.equal_error_rate()
    for rate in RATES:
        fewest = round(_FEWEST_ACCEPTED / float(rate))
        if len(different) < fewest:
            left_out[f"tar_at_far_{rate}"] = f"it takes {fewest} pairs of two classes, there are {len(different)}"
        else:
            allowed = num_accepted(different, float(rate)) / len(different)
            values[f"tar_at_far_{rate}"] = float(roc.tar[roc.far <= allowed].max())
    return values, left_out


def _resampled(
    roc: Roc, scores: Scores, is_same: NDArray[np.bool_], codes: Ints, names: Sequence[str], seed: int
) -> Callable[[Ints], Sequence[float]]:
    """The function that `class_intervals` asks for: how often each class was drawn -> the values of its pairs."""
    num_bins = len(roc.far) - 1
    totals = np.rint(np.diff(roc.far) * np.count_nonzero(~is_same))  # different pairs in each bin
    share = np.minimum(1, _PAIRS_PER_BIN / np.maximum(totals, 1))
    key, same, kept, start = key_of(seed), [], [], 0
    for a, b in pairs(len(codes)):
        part = slice(start, start + len(a))
        bins, start = roc.bins(scores[part]), start + len(a)
        same.append((codes[a] * num_bins + bins)[is_same[part]])
        is_kept = ~is_same[part] & (random_bits(key, a * len(codes) + b) < share[bins] * 2**32)
        kept.append(np.stack([codes[a], codes[b], bins]).astype(np.int32)[:, is_kept])
    cells, same_number = np.unique(np.concatenate(same), return_counts=True)
    same_class, same_bin = np.divmod(cells, num_bins)
    first, second, bins = np.concatenate(kept, axis=1)
    number = (totals / np.maximum(1, np.bincount(bins, minlength=num_bins)))[bins]

    def resampled(drawn: Ints) -> Sequence[float]:
        weights = (same_bin, drawn[same_class] * same_number), (bins, drawn[first] * drawn[second] * number)
        sides = [np.bincount(places, weight, num_bins) for places, weight in weights]
        if not all(side.any() for side in sides):
            return [np.nan] * len(names)
        curve = roc.reweighted(*sides)
        rates = [float(rate) for rate in RATES if f"tar_at_far_{rate}" in names]
        return [curve.area(), curve.equal_error_rate()[0], *np.interp(rates, curve.far, curve.tar)]

    return resampled

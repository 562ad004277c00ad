from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from dmlscale.distributed.world import World
from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.neighbors import Metric
from dmlscale.evaluation.open_set import OpenSet, _roles, open_set
from dmlscale.evaluation.subsample import checked_share
from dmlscale.launch.ranks import OverRanks
from tests.distributed.pool import GlooPool
from tests.evaluation.oracles import random_samples, split

NOTHING = Embedded(torch.empty(0, 0), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))
GALLERY, KNOWN, UNKNOWN = 0, 1, 2


def open_set_on_rank(world: World, shares: list[Embedded], options: dict[str, Any]) -> OpenSet:
    gather = OverRanks(world, torch.device("cpu")).gather
    return open_set(shares[world.rank], gather=gather, rank=world.rank, **options)


def in_order(samples: Embedded) -> Embedded:
    return Embedded(*(values[samples.ids.argsort()] for values in samples))


def brute_force(samples: Embedded, roles: np.ndarray, metric: Metric) -> dict[str, float]:
    """One query at a time, one threshold at a time."""
    points, labels = samples.embeddings.double().numpy(), samples.labels.numpy()
    if metric == "cosine":
        points = points / np.linalg.norm(points, axis=1, keepdims=True)
    gallery = np.flatnonzero(roles == GALLERY)
    scores, right = [], []
    for query in np.flatnonzero(roles != GALLERY):
        apart = points[gallery] - points[query]
        closeness = points[gallery] @ points[query] if metric == "cosine" else -np.sqrt((apart**2).sum(1))
        closeness = np.round(closeness, 6)
        scores.append(closeness.max())
        right.append(labels[gallery[closeness.argmax()]] == labels[query])  # the first of equal ones
    scored, is_right, known = np.array(scores), np.array(right), roles[roles != GALLERY] == KNOWN
    thresholds = [np.inf, *np.unique(scored)[::-1]]
    accepted = [threshold for threshold in thresholds if (scored[known] >= threshold).mean() >= 0.95]
    quiet = [threshold for threshold in thresholds if (scored[~known] >= threshold).mean() <= 0.01]
    return {
        "open_set_auroc": float(roc_auc_score(known, scored)),
        "open_set_fpr_at_95": float((scored[~known] >= max(accepted)).mean()),
        "open_set_dir_at_far_1": float(((scored >= min(quiet)) & is_right)[known].mean()),
        "num_open_set_gallery": float(len(gallery)),
        "num_open_set_known": float(known.sum()),
        "num_open_set_unknown": float((~known).sum()),
    }


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_brute_force(metric: Metric, seed: int) -> None:
    samples = in_order(random_samples(300, num_classes=40, seed=seed, spread=0.6))
    roles = _roles(checked_share(samples), seed)
    result = open_set(samples, metric=metric, seed=seed)
    assert result.metrics() == pytest.approx(brute_force(samples, roles, metric), abs=1e-12)
    assert result.left_out == {}
    for name, (low, high) in result.intervals.items():
        assert low <= result.values[name] <= high


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_equals_brute_force_with_copies_and_ties(metric: Metric) -> None:
    samples = in_order(random_samples(400, num_classes=60, dim=3, spread=0.4))
    grid = samples.embeddings.round().clamp(-1, 1)
    grid[(grid == 0).all(1)] = 1
    powers = 2.0 ** torch.randint(-2, 3, (400, 1), generator=torch.Generator().manual_seed(0))
    samples = samples._replace(embeddings=grid * powers, labels=samples.labels + 2**24)
    roles = _roles(checked_share(samples), 5)
    assert open_set(samples, metric=metric, seed=5).metrics() == pytest.approx(
        brute_force(samples, roles, metric), abs=1e-12
    )


@settings(max_examples=80, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=12), seed=st.integers(0, 9))
def test_halves_of_half_of_the_classes_are_enrolled(sizes: list[int], seed: int) -> None:
    labels = torch.tensor([2**40 + label for label, size in enumerate(sizes) for _ in range(size)])
    samples = Embedded(torch.ones(len(labels), 1), labels, torch.arange(len(labels)) * 3)
    roles = _roles(checked_share(samples), seed)
    known = {int(label) for label in labels[roles != UNKNOWN]}
    assert len(known) == sum(size >= 2 for size in sizes) // 2
    for label, size in enumerate(sizes):
        counts = np.bincount(roles[labels.numpy() == 2**40 + label], minlength=3).tolist()
        assert counts == ([size // 2, size - size // 2, 0] if 2**40 + label in known else [0, 0, size])


def test_separate_classes_are_perfect_and_collapsed_ones_are_chance() -> None:
    labels = torch.arange(400) % 80
    perfect = open_set(Embedded(torch.eye(80)[labels], labels, torch.arange(400)))
    assert list(perfect.values.values()) == [1, 0, 1]
    assert perfect.intervals["open_set_auroc"] == (1, 1)
    collapsed = open_set(Embedded(torch.ones(400, 5), labels, torch.arange(400)))
    assert list(collapsed.values.values()) == [0.5, 1, 0]


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3, 3], [4]])
def test_fewer_than_two_usable_classes_are_left_out_with_a_reason(labels: list[int]) -> None:
    samples = Embedded(torch.randn(len(labels), 3), torch.tensor(labels), torch.arange(len(labels)))
    result = open_set(samples)
    assert result.values == result.intervals == {}
    assert len(result.left_out) == 3
    assert all("two classes with two samples" in why for why in result.left_out.values())
    assert result.metrics()["num_open_set_unknown"] == len(labels)


def test_few_unknown_queries_give_no_rate_and_few_classes_no_interval() -> None:
    samples = random_samples(40, num_classes=5)
    result = open_set(samples)
    assert set(result.values) == {"open_set_auroc", "open_set_fpr_at_95"}
    assert "100 queries of unknown classes" in result.left_out["open_set_dir_at_far_1"]
    assert "2 classes that are known, or that are not, are too few" in result.left_out["open_set_intervals"]


def false_alarms(scores: np.ndarray, known: np.ndarray, weights: np.ndarray) -> float:
    """Weighted share of the unknown at the highest threshold that accepts 95 % of the weight of the known."""
    order = np.argsort(-scores)
    accepted = np.cumsum((weights * known)[order]) / (weights * known).sum()
    threshold = scores[order][np.flatnonzero(accepted >= 0.95 - 1e-9)[0]]
    return float(weights[~known & (scores >= threshold)].sum() / weights[~known].sum())


@pytest.mark.parametrize(("num_pairs", "is_enough"), [(2, False), (19, False), (20, True)])
def test_a_few_known_classes_among_many_unknown_make_no_interval(num_pairs: int, is_enough: bool) -> None:
    labels = torch.tensor([*range(num_pairs), *range(num_pairs), *range(100, 220)])
    points = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(0))
    result = open_set(Embedded(points, labels, torch.arange(len(labels))))
    assert set(result.values) == {"open_set_auroc", "open_set_fpr_at_95", "open_set_dir_at_far_1"}
    assert set(result.intervals) == (set(result.values) if is_enough else set())
    assert ("open_set_intervals" in result.left_out) == (not is_enough)
    if not is_enough:
        assert result.left_out["open_set_intervals"].startswith(f"{num_pairs // 2} classes that are known, or")


def test_intervals_are_those_of_slow_resampling() -> None:
    samples = in_order(random_samples(300, num_classes=40, spread=1.0))
    points, labels = samples.embeddings.double().numpy(), samples.labels.numpy()
    points = points / np.linalg.norm(points, axis=1, keepdims=True)
    roles = _roles(checked_share(samples), 0)
    rest = np.flatnonzero(roles != GALLERY)
    scores = (points[rest] @ points[roles == GALLERY].T).max(axis=1)
    classes, codes = np.unique(labels, return_inverse=True)
    draws = np.random.default_rng(0).multinomial(len(classes), np.full(len(classes), 1 / len(classes)), 200)
    known = roles[rest] == KNOWN
    areas = [roc_auc_score(known, scores, sample_weight=drawn[codes[rest]]) for drawn in draws]
    expected = np.quantile(areas, [0.025, 0.975])
    intervals = open_set(samples).intervals
    assert intervals["open_set_auroc"] == pytest.approx(expected, abs=1e-6)
    alarms = [false_alarms(scores, known, drawn[codes[rest]]) for drawn in draws]
    assert intervals["open_set_fpr_at_95"] == pytest.approx(np.quantile(alarms, [0.025, 0.975]), abs=0.01)


def test_bad_options_are_clear_errors() -> None:
    samples = random_samples(20)
    with pytest.raises(ValueError, match="unknown metric 'cos'"):
        open_set(samples, metric="cos")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match="seed = -1: must be at least 0"):
        open_set(samples, seed=-1)
    with pytest.raises(ValueError, match=r"longer than 1e\+18: the training has diverged"):
        open_set(samples._replace(embeddings=samples.embeddings * 1e18), metric="euclidean")


@pytest.mark.parametrize("sizes", [[100, 200], [300, 0], [0, 45, 255], [60, 1, 239]])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_same_at_any_number_of_ranks(gloo_pool: GlooPool, sizes: list[int], metric: Metric) -> None:
    samples = random_samples(300, num_classes=40)
    samples = samples._replace(embeddings=samples.embeddings.round(), labels=samples.labels + 2**60)
    samples.embeddings[(samples.embeddings == 0).all(1)] = 1
    expected = open_set(samples, metric=metric)
    shares = [share if len(share.ids) else NOTHING for share in split(samples, sizes)]
    shares.append(Embedded(*(values[5:9] for values in samples)))  # copies of what others hold
    for result in gloo_pool.run(len(shares), open_set_on_rank, shares, {"metric": metric}):
        assert result == expected

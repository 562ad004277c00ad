from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from sklearn.metrics import roc_auc_score, roc_curve

from dmlscale.distributed.world import World
from dmlscale.evaluation import roc as roc_module
from dmlscale.evaluation import verification
from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.neighbors import Metric
from dmlscale.evaluation.roc import RATES, auc_of, num_accepted, roc_of
from dmlscale.evaluation.verification import Verification, verify
from dmlscale.launch.ranks import OverRanks
from tests.distributed.pool import GlooPool
from tests.evaluation.oracles import random_samples, split

NOTHING = Embedded(torch.empty(0, 0), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))


def verify_on_rank(world: World, shares: list[Embedded], options: dict[str, Any]) -> Verification:
    gather = OverRanks(world, torch.device("cpu")).gather
    return verify(shares[world.rank], gather=gather, rank=world.rank, **options)


def samples_of(embeddings: Any, labels: Sequence[int]) -> Embedded:
    rows = torch.as_tensor(np.asarray(embeddings), dtype=torch.float32)
    return Embedded(rows, torch.tensor(labels), torch.arange(len(labels)))


def pairs_of(samples: Embedded, metric: Metric) -> tuple[np.ndarray, np.ndarray]:
    """Scores of all pairs in float64, to seven digits, and which are of one class."""
    rows, labels = samples.embeddings.double().numpy(), samples.labels.numpy()
    a, b = np.triu_indices(len(rows), 1)
    if metric == "cosine":
        lengths = np.linalg.norm(rows, axis=1)
        scores = (rows[a] * rows[b]).sum(1) / (lengths[a] * lengths[b])
    else:
        scores = -np.linalg.norm(rows[a] - rows[b], axis=1)
    return np.round(scores, 7), labels[a] == labels[b]


def crossing(far: np.ndarray, tar: np.ndarray) -> float:
    """EER of a polygon: the usual root of FAR = 1 - TAR."""
    return float(brentq(lambda rate: 1 - rate - np.interp(rate, far, tar), 0, 1, xtol=1e-14))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_sklearn_on_random_samples(metric: Metric, seed: int) -> None:
    samples = random_samples(120, num_classes=12, seed=seed, spread=1.5)
    scores, is_same = pairs_of(samples, metric)
    result = verify(samples, metric=metric)
    far, tar, _ = roc_curve(is_same, scores, drop_intermediate=False)
    metrics = result.metrics()
    assert metrics["auc"] == pytest.approx(roc_auc_score(is_same, scores), abs=1e-6)
    assert metrics["eer"] == pytest.approx(crossing(far, tar), abs=2e-4)
    for rate in (0.1, 0.01):
        assert metrics[f"tar_at_far_1e-{1 if rate == 0.1 else 2}"] == pytest.approx(tar[far <= rate].max(), abs=2e-3)
    assert metrics["num_same_pairs"] == is_same.sum() == result.same.sum()
    assert metrics["num_different_pairs"] == (~is_same).sum() == result.different.sum()
    assert result.edges[[0, -1]] == pytest.approx([scores.min(), scores.max()], abs=4e-6)
    assert (result.num_samples, result.num_classes) == (120, 12)
    assert list(result.left_out) == [name for name in ("tar_at_far_1e-3", "tar_at_far_1e-4") if name not in metrics]


@settings(max_examples=150, deadline=None)
@given(
    same=st.lists(st.integers(0, 12), min_size=1, max_size=40),
    different=st.lists(st.integers(-3, 9), min_size=1, max_size=40),
)
def test_curve_and_area_with_many_ties_are_exactly_those_of_sklearn(same: list[int], different: list[int]) -> None:
    scores = np.array(same + different, np.float32)
    is_same = np.arange(len(scores)) < len(same)
    ascending = np.sort(scores[is_same]), np.sort(scores[~is_same])
    roc = roc_of(*ascending)
    far, tar, thresholds = roc_curve(is_same, scores, drop_intermediate=False)
    np.testing.assert_array_equal(roc.thresholds, thresholds)
    np.testing.assert_allclose(roc.far, far, rtol=0, atol=1e-15)
    np.testing.assert_allclose(roc.tar, tar, rtol=0, atol=1e-15)
    assert auc_of(*ascending) == pytest.approx(roc_auc_score(is_same, scores), abs=1e-12)
    assert roc.area() == pytest.approx(roc_auc_score(is_same, scores), abs=1e-12)
    rate, threshold = roc.equal_error_rate()
    assert rate == pytest.approx(crossing(far, tar), abs=1e-9)
    assert thresholds[1:].min() <= threshold <= thresholds[1:].max()


def test_a_thinned_curve_has_exact_points_and_the_exact_figures() -> None:
    rng = np.random.default_rng(0)
    same = np.sort(rng.normal(2, 1, 30_000).astype(np.float32))
    different = np.sort(rng.normal(0, 1, 200_000).astype(np.float32))
    scores, is_same = np.concatenate([same, different]), np.arange(230_000) < 30_000
    far, tar, thresholds = roc_curve(is_same, scores, drop_intermediate=False)
    roc = roc_of(same, different)
    assert len(roc.far) <= 2_000
    places = len(thresholds) - 1 - np.searchsorted(thresholds[::-1], roc.thresholds)
    np.testing.assert_array_equal(thresholds[places], roc.thresholds)
    np.testing.assert_allclose(roc.far, far[places], atol=1e-15)
    np.testing.assert_allclose(roc.tar, tar[places], atol=1e-15)
    assert roc.equal_error_rate()[0] == pytest.approx(crossing(far, tar), abs=1e-9)
    for rate in map(float, RATES):
        assert roc.tar[roc.far <= rate].max() == pytest.approx(tar[far <= rate].max(), abs=1e-15)
    assert roc.area() == pytest.approx(auc_of(same, different), abs=1e-5)


def test_collapsed_embeddings_tell_nothing() -> None:
    point = torch.randn(1, 33, generator=torch.Generator().manual_seed(0)) + 3
    labels = [number % 20 for number in range(600)]
    for metric in ("cosine", "euclidean"):
        metrics = verify(samples_of(point.expand(600, 33), labels), metric=metric).metrics()
        assert (metrics["auc"], metrics["eer"], metrics["tar_at_far_1e-3"]) == (0.5, 0.5, 0.0)


def test_copies_score_alike_wherever_they_lie() -> None:
    points = torch.randn(7, 100, generator=torch.Generator().manual_seed(1))
    labels = [2**24 + number % 14 for number in range(700)]  # two classes at each point
    for metric in ("cosine", "euclidean"):
        samples = samples_of(points[torch.arange(700) % 7], labels)
        scores, is_same = pairs_of(samples, metric)
        result = verify(samples, metric=metric)
        assert result.roc is not None
        assert len(result.roc.thresholds) == 1 + len(np.unique(np.round(scores, 6)))
        assert result.metrics()["auc"] == pytest.approx(roc_auc_score(is_same, np.round(scores, 6)), abs=1e-12)


def test_far_apart_classes_are_told_apart() -> None:
    result = verify(samples_of(np.repeat(np.eye(150), 3, axis=0), np.repeat(np.arange(150), 3).tolist()))
    metrics = result.metrics()
    assert [metrics[name] for name in ("auc", "eer", "tar_at_far_1e-1", "tar_at_far_1e-3")] == [1, 0, 1, 1]
    assert result.intervals["auc"] == (1, 1)
    assert result.intervals["eer"] == (0, 0)
    assert 0 < metrics["eer_threshold"] <= 1


@pytest.mark.parametrize(
    ("labels", "reason"), [([3] * 5, "of one class"), ([0, 1, 2, 3, 4], "no class has two"), ([7], "no class has two")]
)
def test_what_cannot_be_told_is_left_out_with_a_reason(labels: list[int], reason: str) -> None:
    result = verify(samples_of(np.random.default_rng(0).normal(size=(len(labels), 4)), labels))
    assert set(result.metrics()) == {"num_same_pairs", "num_different_pairs"}
    assert set(result.left_out) == {
        "auc",
        "eer",
        "eer_threshold",
        *(f"tar_at_far_{rate}" for rate in RATES),
    }
    assert all(reason in why for why in result.left_out.values())
    assert result.roc is None
    assert result.intervals == {}


def test_few_pairs_give_no_small_rates_and_few_classes_no_intervals() -> None:
    result = verify(samples_of(np.random.default_rng(0).normal(size=(40, 4)), [number % 9 for number in range(40)]))
    assert result.left_out["intervals"] == "9 classes with a same pair are too few to resample: it takes 10"
    assert result.left_out["tar_at_far_1e-2"].startswith("it takes 1000 pairs of two classes, there are 710")
    assert "tar_at_far_1e-1" in result.metrics()


@pytest.mark.parametrize(("num_pairs", "is_enough"), [(2, False), (9, False), (10, True)])
def test_classes_without_a_same_pair_do_not_make_an_interval(num_pairs: int, is_enough: bool) -> None:
    """The values rest on the few classes that have one, however many others there are."""
    labels = [*range(num_pairs), *range(num_pairs), *range(100, 160)]
    result = verify(samples_of(np.random.default_rng(0).normal(size=(len(labels), 4)), labels))
    assert "auc" in result.values
    assert ("auc" in result.intervals) == is_enough
    told = None if is_enough else f"{num_pairs} classes with a same pair are too few to resample: it takes 10"
    assert result.left_out.get("intervals") == told


def test_bad_options_are_clear_errors() -> None:
    samples = random_samples(20)
    with pytest.raises(ValueError, match="unknown metric 'cos'"):
        verify(samples, metric="cos")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match="seed = -1: must be at least 0"):
        verify(samples, seed=-1)


def test_as_many_are_accepted_as_the_rate_says() -> None:
    """In floating point, 0.29 * 100 is less than 29."""
    for count in range(1, 1_000):
        scores = np.zeros(count, np.float32)
        for percent in (1, 7, 10, 29, 57, 58):
            assert num_accepted(scores, percent / 100) == percent * count // 100, (count, percent)


def test_beside_the_even_points_there_are_those_that_the_figures_need(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roc_module, "_POINTS_PER_SIDE", 2)
    rng = np.random.default_rng(0)
    for _ in range(300):
        same, different = (np.sort(rng.integers(0, 40, rng.integers(2, 30)).astype(np.float32)) for _ in range(2))
        scores = np.unique(np.concatenate([same, different]))
        far = np.array([(different >= score).mean() for score in scores])
        refused = np.array([(same < score).mean() for score in scores])
        crossing = scores[far >= refused - 1e-12].max()
        highest_refused = [different[-1 - int(np.floor(float(rate) * len(different) + 1e-9))] for rate in RATES]
        higher = [scores[scores > score].min(initial=np.inf) for score in (crossing, *highest_refused)]
        expected = {np.inf, crossing, *higher, *same[[0, -1]], *different[[0, -1]]}
        assert set(roc_of(same, different).thresholds) == {float(score) for score in expected}


@pytest.mark.parametrize("sizes", [[90, 110], [200, 0], [0, 45, 155], [60, 1, 139]])
def test_the_same_at_any_number_of_ranks(gloo_pool: GlooPool, sizes: list[int]) -> None:
    samples = random_samples(200, num_classes=25)
    samples = samples._replace(embeddings=samples.embeddings.round(decimals=1), labels=samples.labels + 2**60)
    expected = verify(samples, most=150)
    shares = [share if len(share.ids) else NOTHING for share in split(samples, sizes)]
    shares.append(Embedded(*(values[5:9] for values in samples)))  # copies of what others hold
    for result in gloo_pool.run(len(shares), verify_on_rank, shares, {"most": 150}):
        assert result.metrics() == expected.metrics()
        assert result.intervals == expected.intervals
        assert result.roc is not None
        assert expected.roc is not None
        np.testing.assert_array_equal(result.roc.tar, expected.roc.tar)
        np.testing.assert_array_equal(result.different, expected.different)


def slow_replicates(samples: Embedded) -> list[float]:
    """AUC of resampled classes from the definition: every pair with its weight, sklearn's weighted area."""
    scores, is_same = pairs_of(samples, "cosine")
    classes, codes = np.unique(samples.labels.numpy(), return_inverse=True)
    a, b = np.triu_indices(len(codes), 1)
    draws = np.random.default_rng(0).multinomial(len(classes), np.full(len(classes), 1 / len(classes)), 200)
    weights = (np.where(is_same, drawn[codes[a]], drawn[codes[a]] * drawn[codes[b]]) for drawn in draws)
    return [float(roc_auc_score(is_same, scores, sample_weight=weight)) for weight in weights]


def test_intervals_are_those_of_slow_resampling() -> None:
    samples = random_samples(120, num_classes=15, spread=2)
    expected = np.quantile(slow_replicates(samples), [0.025, 0.975])
    assert verify(samples).intervals["auc"] == pytest.approx(expected, abs=1e-3)


def test_the_weights_of_all_pairs_give_back_the_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chosen pairs stand for all of their bin, so a resampling that draws each class once is the data itself."""
    monkeypatch.setattr(roc_module, "_POINTS_PER_SIDE", 30)
    monkeypatch.setattr(verification, "_PAIRS_PER_BIN", 20)
    asked = []

    def note(names: Sequence[str], num_classes: int, resampled: Any, **_: Any) -> tuple[dict, dict]:
        asked.append(dict(zip(names, resampled(np.ones(num_classes, np.int64)), strict=True)))
        return {}, {}

    monkeypatch.setattr(verification, "class_intervals", note)
    result = verify(random_samples(150, num_classes=15, spread=2))
    assert asked[0]["eer"] == pytest.approx(result.values["eer"], abs=1e-12)
    assert asked[0]["auc"] == pytest.approx(result.values["auc"], abs=2e-3)
    for rate in ("1e-1", "1e-2"):
        assert asked[0][f"tar_at_far_{rate}"] == pytest.approx(result.values[f"tar_at_far_{rate}"], abs=0.02)


def test_intervals_cover_what_other_classes_would_give() -> None:
    """Of 60 draws of classes from one world, the interval of nearly each holds the value of many classes."""

    def drawn(num_classes: int, seed: int) -> Embedded:
        generator = torch.Generator().manual_seed(seed)
        means = torch.randn(num_classes, 6, generator=generator).repeat_interleave(4, 0)
        spread = torch.rand(num_classes, 1, generator=generator).repeat_interleave(4, 0)  # classes differ in difficulty
        points = means + 2 * spread * torch.randn(len(means), 6, generator=generator)
        return samples_of(points, torch.arange(num_classes).repeat_interleave(4).tolist())

    truth = verify(drawn(1_000, 1), most=4_000).values
    for name in ("auc", "eer"):
        covered = []
        for seed in range(60):
            low, high = verify(drawn(30, 10 + seed)).intervals[name]
            covered.append(low <= truth[name] <= high)
        assert np.mean(covered) >= 0.87, name


def test_twelve_million_pairs_take_little_memory() -> None:
    labels = torch.arange(5_000) % 100
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(100, 64, generator=generator)[labels] + 2 * torch.randn(5_000, 64, generator=generator)
    tracemalloc.start()  # numpy tells it of its arrays
    try:
        result = verify(Embedded(points, labels, torch.arange(5_000)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert 50_000_000 < peak < 400_000_000
    assert result.metrics()["num_same_pairs"] + result.metrics()["num_different_pairs"] == 5_000 * 4_999 / 2
    assert result.roc is not None
    assert len(result.roc.far) <= 2_000

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from torch import Tensor

from dmlscale.evaluation import retrieval, sharded_search
from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.evaluate import evaluate, gather_embedded
from tests.evaluation.on_ranks import evaluate_on_ranks
from tests.evaluation.oracles import brute_force, random_samples, sorted_neighbors, split


@pytest.mark.parametrize("sizes", [[60], [30, 30], [7, 53], [60, 0], [20, 25, 15], [0, 1, 59]])
def test_every_rank_gets_the_result_of_one_process(sizes: list[int]) -> None:
    samples = random_samples(60)
    expected = evaluate(samples).metrics
    for result in evaluate_on_ranks(split(samples, sizes)):
        assert result == pytest.approx(expected, abs=1e-12)


def test_a_rank_with_no_batches_does_not_know_the_dimension() -> None:
    samples = random_samples(40)
    nothing = Embedded(torch.empty(0, 0), *[torch.empty(0, dtype=torch.int64)] * 2)
    assert evaluate_on_ranks([nothing, samples])[1] == pytest.approx(evaluate(samples).metrics, abs=1e-12)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_result_does_not_depend_on_the_order_of_samples_even_with_ties(metric: str) -> None:
    samples = random_samples(80, spread=0.5)
    grid = samples.embeddings.round()  # many exact ties between samples of different classes
    grid[(grid == 0).all(1)] = 1
    samples = samples._replace(embeddings=grid)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    shuffled = Embedded(*(tensor[order] for tensor in samples))
    expected = evaluate(samples, metric=metric).metrics  # type: ignore[arg-type]
    for result in evaluate_on_ranks(split(shuffled, [13, 40, 27]), metric=metric):
        assert result == pytest.approx(expected, abs=1e-12)


def test_equals_brute_force_and_counts() -> None:
    samples = random_samples(70, num_classes=40)
    result = evaluate(samples, ks=(1, 3)).metrics
    expected = brute_force(samples.embeddings.numpy(), samples.labels.numpy(), (1, 3))
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    sizes = np.unique(samples.labels.numpy(), return_counts=True)[1]
    assert result["num_classes"] == len(sizes)
    assert result["num_lone_queries"] == (sizes == 1).sum() > 0
    assert result["num_queries"] == 70 - (sizes == 1).sum()
    assert set(result) == {
        *expected,
        "nmi",
        "ami",
        "f1",
        "num_clustered",
        "num_queries",
        "num_lone_queries",
        "num_classes",
    }


def test_a_sample_embedded_twice_counts_once() -> None:
    samples = random_samples(31)
    padded = Embedded(*(torch.cat([tensor, tensor[:1]]) for tensor in samples))  # a sampler that pads the last rank
    for result in evaluate_on_ranks(split(padded, [16, 16])):
        assert result == pytest.approx(evaluate(samples).metrics, abs=1e-12)


def test_a_rank_may_hold_nothing_but_copies_of_what_others_hold() -> None:
    samples, gallery = random_samples(30), random_samples(40, seed=1)
    shares, galleries = (
        [*split(side, [len(side.ids) - 9, 9]), Embedded(*(values[:2] for values in side))]
        for side in (samples, gallery)
    )
    expected = evaluate(samples, gallery).metrics
    for result in evaluate_on_ranks(shares, galleries=galleries):
        assert result == pytest.approx(expected, abs=1e-12)


def test_gathered_samples_are_in_the_order_of_ids() -> None:
    samples = random_samples(20)
    everything, owners = gather_embedded(samples, rank=0)
    assert everything.ids.tolist() == sorted(samples.ids.tolist())
    position = samples.ids.argsort()
    assert torch.equal(everything.embeddings, samples.embeddings[position])
    assert torch.equal(everything.labels, samples.labels[position])
    assert owners.tolist() == [0] * 20


def test_perfect_embeddings_score_one_with_huge_labels_and_k_beyond_the_gallery() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, 2]) + 2**24
    embeddings = torch.eye(3)[labels - 2**24]
    result = evaluate(Embedded(embeddings, labels, torch.arange(6)), ks=(1, 100)).metrics
    for name in ("recall_at_1", "recall_at_100", "precision_at_1", "r_precision", "map_at_r", "nmi"):
        assert result[name] == pytest.approx(1.0), name


def test_large_classes_are_searched_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = random_samples(120, num_classes=2)
    expected = evaluate(samples).metrics
    monkeypatch.setattr(retrieval, "queries_per_chunk", lambda k: 11)
    assert evaluate(samples).metrics == pytest.approx(expected, abs=1e-12)


def test_lengths_do_not_matter_to_the_cosine() -> None:
    samples = random_samples(60)
    groups = ("map", "clustering")
    expected = evaluate(samples, groups=groups).metrics
    for power in (-120, -80, 64, 100, 120):  # powers of two: the directions are the same to the last bit
        scaled = samples._replace(embeddings=samples.embeddings * 2.0**power)
        assert evaluate(scaled, groups=groups).metrics == expected, power


def test_clustering_costs_no_more_than_the_search_or_the_least_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = random_samples(200, num_classes=60)
    num_classes = len(samples.labels.unique())
    assert evaluate(samples).metrics["num_clustered"] == 200
    monkeypatch.setattr("dmlscale.evaluation.evaluate.MOST_DISTANCES", 0)
    some = evaluate(samples).metrics  # 200 * 200 / 20 distances in each of 20 iterations
    assert 0.5 * 2_000 < some["num_clustered"] ** 2 * num_classes / 200 < 1.5 * 2_000
    assert some["num_classes"] == num_classes
    monkeypatch.setattr("dmlscale.evaluation.evaluate.MOST_DISTANCES", 200 * num_classes)
    assert evaluate(samples).metrics == evaluate(samples, seed=0).metrics
    assert evaluate(samples).metrics["num_clustered"] == 200


def test_groups_choose_what_is_computed() -> None:
    samples = random_samples(40)
    for groups, name, is_there in (
        ((), "recall_at_1", True),
        (("retrieval",), "nmi", False),
        (("clustering",), "nmi", True),
        (("retrieval", "clustering"), "mean_average_precision", False),
        (("map",), "mean_average_precision", True),
        (("map",), "nmi", False),
    ):
        assert (name in evaluate(samples, groups=groups).metrics) == is_there, groups
    with pytest.raises(
        ValueError, match=r"unknown groups of metrics \['speed'\]: there are retrieval, map, clustering"
    ):
        evaluate(samples, groups=("speed",))


def test_figures_by_class_add_up_to_the_whole() -> None:
    samples = random_samples(70, num_classes=30)
    evaluation = evaluate(samples, ks=(1, 3), groups=("map",), most_map_queries=40)
    per_class = evaluation.per_class
    assert per_class.labels.tolist() == sorted(set(samples.labels.tolist()))
    names = {"recall_at_1", "recall_at_3", "precision_at_1", "r_precision", "map_at_r", "mean_average_precision"}
    assert set(per_class.sums) == set(evaluation.intervals) == names
    assert set(per_class.sums) == {name for name in evaluation.metrics if not name.startswith("num_")}
    sizes = np.unique(samples.labels.numpy(), return_counts=True)[1]
    assert per_class.num_queries.tolist() == np.where(sizes > 1, sizes, 0).tolist()
    assert np.isnan(per_class.mean("recall_at_1")).tolist() == (sizes == 1).tolist()
    assert evaluation.metrics["num_map_queries"] == per_class.counts["mean_average_precision"].sum() == 40
    for name in names:
        lower, upper = evaluation.intervals[name]
        assert 0 <= lower <= evaluation.metrics[name] <= upper <= 1
        total = per_class.sums[name].sum() / per_class.counts[name].sum()
        assert evaluation.metrics[name] == pytest.approx(total, abs=1e-12)
    label = int(samples.labels.mode().values)
    of_class = np.flatnonzero(samples.labels == label)
    unit = torch.nn.functional.normalize(samples.embeddings)
    hits = [int(samples.labels[(unit @ unit[query]).argsort()[-2]]) == label for query in of_class]
    place = per_class.labels.tolist().index(label)
    assert per_class.sums["recall_at_1"][place] == sum(hits)


def test_confusions_are_the_wrong_nearest_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = random_samples(70, num_classes=20)
    order = samples.ids.argsort()
    similarity = torch.nn.functional.normalize(samples.embeddings) @ torch.nn.functional.normalize(samples.embeddings).T
    nearest = samples.labels[similarity.fill_diagonal_(-2).argmax(dim=1)]
    sizes = torch.bincount(samples.labels)
    wrong = order[(nearest != samples.labels)[order] & (sizes[samples.labels] > 1)[order]]
    expected = torch.stack([samples.labels[wrong], nearest[wrong]], dim=1).tolist()
    assert len(expected) > 10
    assert evaluate(samples).confusions.tolist() == expected
    monkeypatch.setattr(retrieval.confusions, "__kwdefaults__", {"most": 8})
    fewer = evaluate(samples).confusions.tolist()
    assert 0 < len(fewer) <= 8
    assert all(pair in expected for pair in fewer)


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(2, 40),
    num_classes=st.integers(1, 20),
    spread=st.sampled_from([0.0, 0.5, 2.0, 30.0]),
    shift=st.sampled_from([0, 2**24, 2**62]),
    metric=st.sampled_from(["cosine", "euclidean"]),
    k=st.sampled_from([2, 50]),
    seed=st.integers(0, 999),
)
def test_integer_embeddings_equal_sorting_all_pairs(
    num_samples: int, num_classes: int, spread: float, shift: int, metric: str, k: int, seed: int
) -> None:
    """Exact ties, duplicates, all at one place, one class, classes of one, k beyond the gallery, huge labels."""
    rng = np.random.default_rng(seed)
    points = np.round(spread * rng.normal(size=(num_samples, 3))).astype(np.float32)
    labels = shift + rng.integers(0, num_classes, num_samples)
    ids = rng.permutation(1000)[:num_samples]
    samples = Embedded(*(torch.from_numpy(values) for values in (points, labels, ids)))
    order = ids.argsort()  # of equally near ones the one with the lower id is first
    _, rows = sorted_neighbors(points[order], points[order], 50, metric, np.arange(num_samples))
    found = np.where(rows >= 0, labels[order][rows], -1)
    hits = found == labels[order][:, None]
    num_relevant = hits.sum(axis=1)
    if not num_relevant.any():
        with pytest.raises(ValueError, match="no class has two samples"):
            evaluate(samples, metric=metric)  # type: ignore[arg-type]
        return
    expected: dict[str, list[float]] = {"recall_at_1": [], f"recall_at_{k}": [], "r_precision": [], "map_at_r": []}
    for own, count in zip(hits[num_relevant > 0], num_relevant[num_relevant > 0], strict=True):
        expected["recall_at_1"].append(own[0])
        expected[f"recall_at_{k}"].append(own[:k].any())
        expected["r_precision"].append(own[:count].mean())
        expected["map_at_r"].append(sum(own[: i + 1].mean() * own[i] for i in range(count)) / count)
    result = evaluate(samples, ks=(1, k), metric=metric, groups=("retrieval",)).metrics  # type: ignore[arg-type]
    for name, values in expected.items():
        assert result[name] == pytest.approx(np.mean(values), abs=1e-12), name


def test_equals_pytorch_metric_learning() -> None:
    samples = random_samples(200, num_classes=60, dim=16)
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r", "mean_average_precision")
    calculator = AccuracyCalculator(include=names, k=199, device=torch.device("cpu"))
    theirs = calculator.get_accuracy(torch.nn.functional.normalize(samples.embeddings), samples.labels)
    ours = evaluate(samples, groups=("map",)).metrics
    for our_name, their_name in zip(("precision_at_1", "r_precision", "map_at_r", names[3]), names, strict=True):
        assert ours[our_name] == pytest.approx(theirs[their_name], abs=1e-6), our_name


def test_embeddings_are_not_gathered() -> None:
    """No collective hands a rank more than a slice of the gallery."""
    samples = random_samples(3000, num_classes=100, dim=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded_search, "NUMBERS_PER_SLICE", 8000)
        largest, results = watched(split(samples, [1000, 1500, 500]), groups=("map",), most_map_queries=50)
    assert largest <= 8000
    expected = evaluate(samples, groups=("map",), most_map_queries=50).metrics
    assert results == [pytest.approx(expected, abs=1e-12)] * 3


def watched(shares: list[Embedded], **options: Any) -> tuple[int, list[Mapping[str, float]]]:
    """The largest gathered tensor in numbers, and the figures of each rank."""
    real, sizes = torch.cat, [0]

    def cat(parts: list[Tensor]) -> Tensor:
        together = real(parts)
        sizes.append(together.numel())
        return together

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "cat", cat)
        results = evaluate_on_ranks(shares, **options)
    return max(sizes), results

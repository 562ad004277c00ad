import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from sklearn.metrics import normalized_mutual_info_score

from dmlscale.evaluation.metrics import (
    NO_NEIGHBOR,
    count_relevant,
    map_at_r,
    means,
    nmi,
    precision_at_1,
    query_scores,
    r_precision,
    recall_at_k,
    retrieval_sums,
)
from dmlscale.evaluation.neighbors import nearest
from tests.evaluation.oracles import brute_force, query_and_gallery, random_samples

KS = (1, 2, 4, 8)


def _neighbor_labels(embeddings: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    _, rows = nearest(embeddings, embeddings, k, exclude=np.arange(len(labels)))
    return np.where(rows >= 0, labels[rows], NO_NEIGHBOR)


@pytest.mark.parametrize("seed", range(4))
def test_all_metrics_equal_brute_force(seed: int) -> None:
    samples = random_samples(num_samples=50 + 7 * seed, num_classes=5 + 4 * seed, seed=seed)
    embeddings, labels = samples.embeddings.numpy(), samples.labels.numpy()
    sums = retrieval_sums(_neighbor_labels(embeddings, labels, 49), labels, count_relevant(labels), KS)
    assert means(sums) == pytest.approx(brute_force(embeddings, labels, KS), abs=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_pytorch_metric_learning(seed: int) -> None:
    samples = random_samples(num_samples=200, num_classes=60, dim=16, seed=seed)  # some classes have one sample
    embeddings, labels = samples.embeddings.numpy(), samples.labels.numpy()
    relevant = count_relevant(labels)
    assert (relevant == 0).any()
    ours = means(retrieval_sums(_neighbor_labels(embeddings, labels, 12), labels, relevant, KS))
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    unit = torch.nn.functional.normalize(samples.embeddings)  # its own search is Euclidean
    theirs = AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu")).get_accuracy(
        unit, samples.labels
    )
    assert ours["precision_at_1"] == pytest.approx(theirs["precision_at_1"], abs=1e-7)
    assert ours["r_precision"] == pytest.approx(theirs["r_precision"], abs=1e-7)
    assert ours["map_at_r"] == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_in_a_gallery_equal_pytorch_metric_learning(seed: int) -> None:
    queries, gallery = query_and_gallery(seed)
    relevant = count_relevant(queries.labels, gallery.labels)
    _, rows = nearest(queries.embeddings.numpy(), gallery.embeddings.numpy(), int(relevant.max()))
    ours = means(retrieval_sums(gallery.labels.numpy()[rows], queries.labels, relevant, ks=(1,)))
    names = ("precision_at_1", "r_precision", "mean_average_precision_at_r")
    calculator = AccuracyCalculator(include=names, k="max_bin_count", device=torch.device("cpu"))
    unit = [torch.nn.functional.normalize(side.embeddings) for side in (queries, gallery)]
    theirs = calculator.get_accuracy(unit[0], queries.labels, unit[1], gallery.labels, ref_includes_query=False)
    assert ours["precision_at_1"] == pytest.approx(theirs["precision_at_1"], abs=1e-7)
    assert ours["r_precision"] == pytest.approx(theirs["r_precision"], abs=1e-7)
    assert ours["map_at_r"] == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-7)


@given(
    labels=st.lists(st.integers(-3, 6), max_size=12),
    gallery_labels=st.lists(st.integers(-3, 6), max_size=12),
    shift=st.sampled_from([0, 2**40]),
)
def test_relevant_items_are_counted_in_the_gallery(labels: list[int], gallery_labels: list[int], shift: int) -> None:
    queries, gallery = (np.array(values, np.int64) + shift for values in (labels, gallery_labels))
    assert count_relevant(queries, gallery).tolist() == [gallery_labels.count(label) for label in labels]
    assert count_relevant(queries).tolist() == [labels.count(label) - 1 for label in labels]


def test_label_ids_above_float32_stay_apart() -> None:
    base = 2**24
    neighbors = np.array([[base + 1], [base]])
    assert precision_at_1(neighbors, np.array([base, base + 1]), np.array([1, 1])) == 0.0
    assert count_relevant(np.array([base, base + 1, base + 1])).tolist() == [0, 1, 1]


def test_lone_queries_are_left_out_of_the_mean_and_of_the_count() -> None:
    neighbors, labels, relevant = np.array([[5], [7]]), np.array([5, 6]), np.array([1, 0])
    assert retrieval_sums(neighbors, labels, relevant, ks=(1,))["recall_at_1"] == (1.0, 1)
    assert np.isnan(query_scores(neighbors, labels, relevant, ks=(1,))["map_at_r"][1])


def test_only_lone_queries_is_an_error() -> None:
    with pytest.raises(ValueError, match="no query has a relevant item"):
        precision_at_1(np.array([[1], [0]]), np.array([0, 1]), np.array([0, 0]))


def test_too_few_neighbours_is_an_error_and_padding_is_not() -> None:
    labels = np.array([3, 3])
    with pytest.raises(ValueError, match="need 2"):
        map_at_r(np.array([[3], [3]]), labels, np.array([2, 2]))
    padded = np.array([[3, NO_NEIGHBOR], [NO_NEIGHBOR, NO_NEIGHBOR]])
    assert recall_at_k(padded, labels, np.array([1, 1]), k=2) == 0.5


def test_single_functions_agree_with_the_sums_and_take_tensors() -> None:
    samples = random_samples(seed=5)
    embeddings, labels = samples.embeddings.numpy(), samples.labels.numpy()
    neighbors = torch.from_numpy(_neighbor_labels(embeddings, labels, 30))
    relevant = torch.from_numpy(count_relevant(labels))
    together = means(retrieval_sums(neighbors, samples.labels, relevant, KS))
    assert precision_at_1(neighbors, samples.labels, relevant) == together["precision_at_1"]
    assert r_precision(neighbors, samples.labels, relevant) == together["r_precision"]
    assert map_at_r(neighbors, samples.labels, relevant) == together["map_at_r"]
    assert recall_at_k(neighbors[:, :4], samples.labels, relevant, k=4) == together["recall_at_4"]


def test_nmi_equals_sklearn_and_ignores_the_names_of_clusters() -> None:
    rng = np.random.default_rng(0)
    labels, clusters = rng.integers(0, 6, 100) + 2**40, rng.integers(0, 6, 100)
    assert nmi(clusters, labels) == normalized_mutual_info_score(labels, clusters)
    assert nmi(labels * 3 - 7, labels) == pytest.approx(1.0)
    assert nmi(np.zeros(100, np.int64), labels) == pytest.approx(0.0)

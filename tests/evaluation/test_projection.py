from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn.manifold import trustworthiness

from dmlscale.evaluation.neighbors import Metric
from dmlscale.evaluation.projection import project


def groups(num_classes: int = 6, per_class: int = 20, dim: int = 16) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = np.arange(num_classes).repeat(per_class)
    return 4 * rng.normal(size=(num_classes, dim))[labels] + rng.normal(size=(len(labels), dim)), labels


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_keeps_neighbourhoods_and_is_the_same_every_time(metric: Metric) -> None:
    embeddings, labels = groups()
    points = project(embeddings, seed=3, metric=metric)
    assert points.shape == (120, 2)
    assert trustworthiness(embeddings, points, n_neighbors=8, metric=metric) > 0.9
    distances = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert (labels[distances.argmin(1)] == labels).mean() > 0.98
    np.testing.assert_array_equal(points, project(embeddings, seed=3, metric=metric))


def test_cosine_does_not_look_at_lengths() -> None:
    embeddings, _ = groups()
    lengths = 2.0 ** np.random.default_rng(1).integers(-3, 4, (len(embeddings), 1))  # powers of two change no bit
    np.testing.assert_array_equal(project(embeddings * lengths), project(embeddings))


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (2, 3), (4, 1), (5, 1), (5, 8), (7, 2), (30, 1)])
def test_few_points_and_few_dimensions(shape: tuple[int, int]) -> None:
    points = project(np.random.default_rng(0).normal(size=shape), metric="euclidean")
    assert points.shape == (shape[0], 2)
    assert np.isfinite(points).all()
    assert len(np.unique(points, axis=0)) == shape[0]


@pytest.mark.parametrize("num_different", [1, 2, 3])
def test_duplicates(num_different: int) -> None:
    points = project(np.eye(3)[np.arange(60) % num_different])
    assert np.isfinite(points).all()


def test_refuses_what_has_no_map() -> None:
    with pytest.raises(ValueError, match="NaN or infinity"):
        project(np.array([[1.0, np.nan]] * 6))
    with pytest.raises(ValueError, match=r"\(n, d\)"):
        project(np.zeros(4))


def test_a_thousand_take_seconds() -> None:
    embeddings = np.random.default_rng(0).normal(size=(1000, 128))
    start = time.process_time()
    project(embeddings)
    assert time.process_time() - start < 20  # 2.5 on one core

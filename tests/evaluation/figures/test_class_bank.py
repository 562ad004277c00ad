"""Centers in use, and neighbourhoods in a class bank."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.patches import StepPatch
from numpy.typing import NDArray

import dmlscale
from dmlscale.evaluation.figures import crowded_classes
from dmlscale.evaluation.figures.bank_neighbours import bank_neighbours
from dmlscale.evaluation.figures.centers import centers_used, effective_centers
from dmlscale.evaluation.figures.crowded_classes import BankRow, bank_rows
from tests.evaluation.figures.drawn import require_legible, texts


def test_effective_centers_are_the_participation_ratio_of_the_eigenvalues() -> None:
    centers = np.random.default_rng(0).normal(size=(9000, 4, 6)) * np.arange(1, 5)[None, :, None]
    centers[:3, 1:] = centers[:3, :1] * 2  # merged, of any length
    centers[3] = np.eye(4, 6)
    found = effective_centers(centers)
    assert found[:4] == pytest.approx([1, 1, 1, 4])
    unit = centers / np.linalg.norm(centers, axis=2, keepdims=True)
    eigenvalues = np.linalg.eigvalsh(unit @ unit.transpose(0, 2, 1))
    np.testing.assert_allclose(found, eigenvalues.sum(1) ** 2 / (eigenvalues**2).sum(1), rtol=1e-9)


def test_their_mean_is_the_metric_of_training() -> None:
    loss = dmlscale.GlobalLoss("soft_triple", num_classes=7, embedding_dim=5, centers_per_class=3)
    centers = next(p for p in loss.parameters() if p.dim() == 3).detach()
    assert tuple(centers.shape) == (7, 3, 5)
    (metric,) = loss.metrics().values()
    assert effective_centers(centers.numpy()).mean() == pytest.approx(float(metric), rel=1e-5)


def test_centers_that_have_no_direction() -> None:
    assert effective_centers(np.zeros((3, 1, 2))).tolist() == [1, 1, 1]  # one center is one center
    for value in (0.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="finite and not zero"):
            effective_centers(np.full((2, 2, 2), value))
    with pytest.raises(ValueError, match=r"\(C, K, d\)"):
        effective_centers(np.ones((3, 2)))


@pytest.mark.parametrize(
    ("effective", "most"), [([1.0] * 50, 10), ([1.0], 1), ([1.0, 2.0], 2), (np.linspace(1, 20, 12345), 20)]
)
def test_centers_used(effective: list[float], most: int) -> None:
    figure = centers_used(np.array(effective), most)
    assert f"mean {np.mean(effective):.2f}" in texts(figure)
    bars = next(patch for patch in figure.axes[0].patches if isinstance(patch, StepPatch))
    assert bars.get_data()[0].sum() == len(effective)
    require_legible(figure)


def test_no_classes_no_figure() -> None:
    with pytest.raises(ValueError, match="at least one class"):
        centers_used(np.zeros(0), 3)
    with pytest.raises(ValueError, match="at least one class"):
        bank_neighbours([], lambda sample: None)


@settings(deadline=None)  # the first search loads faiss
@given(st.integers(2, 20), st.integers(1, 3), st.integers(1, 6), st.integers(0, 99))
def test_neighbourhoods_by_brute_force(num_classes: int, per_class: int, num_neighbors: int, seed: int) -> None:
    weights = np.random.default_rng(seed).normal(size=(num_classes, per_class, 8)).astype(np.float32)
    given_weights = weights[:, 0] if per_class == 1 else weights
    rows = bank_rows(given_weights, sample_of=lambda label: label + 100, num_rows=20, num_neighbors=num_neighbors)
    unit = weights / np.linalg.norm(weights, axis=2, keepdims=True)
    closest = np.einsum("ikd,jld->ijkl", unit, unit).max((2, 3))
    np.fill_diagonal(closest, -np.inf)
    assert sorted(int(row.name) for row in rows) == list(range(num_classes))
    crowding = []
    for row in rows:
        of_class = closest[int(row.name)]
        order = np.argsort(-of_class)[: min(num_neighbors, num_classes - 1)]
        assert [int(name) for name, _ in row.neighbours] == order.tolist()
        assert [cosine for _, cosine in row.neighbours] == pytest.approx(of_class[order].tolist(), abs=1e-5)
        assert row.picture_ids == [int(row.name) + 100, *(int(name) + 100 for name, _ in row.neighbours)]
        crowding.append(np.mean([cosine for _, cosine in row.neighbours]))
    assert crowding[0] == pytest.approx(max(crowding))


def test_most_crowded_first_and_none_twice_while_there_are_others() -> None:
    """Classes 0 to 2 are one crowd, 3 to 5 a looser one, the others stand alone."""
    weights = np.eye(12)
    weights[[1, 2]] = weights[0] + 0.1 * weights[[1, 2]]
    weights[[4, 5]] = weights[3] + 0.5 * weights[[4, 5]]
    rows = bank_rows(weights, sample_of=lambda label: None, num_rows=3, num_neighbors=2)
    crowds = [{int(row.name), *(int(name) for name, _ in row.neighbours)} for row in rows]
    assert crowds[:2] == [{0, 1, 2}, {3, 4, 5}]
    assert int(rows[2].name) > 5


def test_a_large_bank_is_searched_for_a_few_classes_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0)).numpy()
    monkeypatch.setattr(crowded_classes, "MOST_COSINES", 3000 * 40)
    rows = bank_rows(weights, sample_of=lambda label: label, num_rows=100, num_neighbors=1)
    assert len(rows) == 100
    rows = bank_rows(weights, sample_of=lambda label: label, num_rows=5, num_neighbors=1, seed=1)
    again = bank_rows(weights, sample_of=lambda label: label, num_rows=5, num_neighbors=1, seed=1)
    assert rows == again
    other = bank_rows(weights, sample_of=lambda label: label, num_rows=5, num_neighbors=1, seed=2)
    assert {row.name for row in rows} != {row.name for row in other}


@pytest.mark.parametrize("weights", [np.ones((1, 3)), np.ones(3), np.full((3, 2), np.nan)])
def test_banks_without_neighbourhoods(weights: NDArray[np.float64]) -> None:
    with pytest.raises(ValueError, match=r"at least two classes|NaN"):
        bank_rows(weights, sample_of=lambda label: None)


def test_each_picture_with_its_class_and_cosine() -> None:
    names = [f"00{label}.Great_Crested $Flycatcher" if label % 2 else "漢字 <b>" for label in range(40)]
    weights = np.random.default_rng(0).normal(size=(40, 8))
    shapes = [(30, 30), (30, 90, 3), (90, 30, 1)]
    rows = bank_rows(weights, class_name=names.__getitem__, sample_of=lambda label: label if label % 5 else None)
    figure = bank_neighbours(rows, lambda sample: np.full(shapes[sample % 3], 99, np.uint8))
    written = texts(figure)
    for row in rows:
        assert all(f"{cosine:.2f}" in written for _, cosine in row.neighbours)
    missing = sum(sample is None for row in rows for sample in row.picture_ids)
    assert written.count("cannot\nbe read") == missing > 0
    require_legible(figure)
    require_legible(bank_neighbours([BankRow("a", [("b", -0.5)], [0, 1])], lambda sample: np.zeros((8, 8), np.uint8)))

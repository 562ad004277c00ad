"""The oracles that no library covers, beside values computed by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score
from torch import Tensor

from tests.losses import oracles


def line(*values: float) -> Tensor:
    """Points on a line -> (n, 1)."""
    return torch.tensor(values, dtype=torch.float64).unsqueeze(1)


def circle(*degrees: float) -> Tensor:
    """Points on the unit circle -> (n, 2); the chord of 60 degrees has length 1."""
    angles = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angles.cos(), angles.sin()], 1)


def random_batch(seed: int, size: int, num_classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, num_classes, (size,), generator=generator)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, 0.5 + 0.125),
        ({"average": "all"}, 0.5 + 0.125 / 2),
        ({"average": "pairs"}, 0.625 / 3),
        ({"squared": False, "positive_margin": 0.25}, 0.75 + 0.5),
    ],
    ids=str,
)
def test_contrastive(options: dict[str, Any], wanted: float) -> None:
    """One positive pair at 1, negative pairs at 1.5 and 0.5."""
    value = oracles.contrastive(line(0, 1, 1.5), torch.tensor([0, 0, 1]), **options)
    torch.testing.assert_close(value.item(), wanted)


def test_semi_hard_triplets() -> None:
    """From 0 the negative at 1.1 is beyond the positive at 1; from 1 none is, so the farthest, 0.1 away, is taken."""
    value = oracles.triplet(line(0, 1, 1.1), torch.tensor([0, 0, 1]), normalize=False, squared=False)
    torch.testing.assert_close(value.item(), ((1 - 1.1 + 0.2) + (1 - 0.1 + 0.2)) / 2)


def test_hard_lifted_structure() -> None:
    """The nearest negative of both pairs is 0.5 away; the pairs are 1 and 2.5 long."""
    value = oracles.lifted_structure(line(0, 1, 1.5, 4), torch.tensor([0, 0, 1, 1]), form="hard")
    torch.testing.assert_close(value.item(), ((0.5 + 1) ** 2 + (0.5 + 2.5) ** 2) / 4)


def test_smooth_lifted_structure_is_above_the_hard_one() -> None:
    for seed in range(5):
        x, y = random_batch(seed, 12, 3)
        assert oracles.lifted_structure(x, y) > oracles.lifted_structure(x, y, form="hard")


def test_n_pairs_penalises_length() -> None:
    """Of class 0 the first two samples count, of class 1 there are not two."""
    x, y = line(1, 5, 2, 7), torch.tensor([0, 1, 0, 0])
    torch.testing.assert_close(oracles.n_pairs(x, y, l2_weight=0.4).item(), 0.1 * (1 + 4))


def test_supervised_contrastive_has_the_factor_of_the_code() -> None:
    x, y = random_batch(0, 8, 3)
    torch.testing.assert_close(
        oracles.supervised_contrastive(x, y, 0.1, base_temperature=0.07),
        oracles.supervised_contrastive(x, y, 0.1) / 0.7,
    )


@pytest.mark.parametrize(("form", "below"), [("paper", 0.0), ("plus_plus", 1.0)])
def test_proxy_nca(form: str, below: float) -> None:
    """Squared distances 0, 2 and 4, with lengths that do not matter."""
    proxies = (3 * circle(0, 90, 180)).unsqueeze(1)
    value = oracles.proxy_nca(5 * circle(0), torch.tensor([0]), proxies, form=form, scale=1.0)
    torch.testing.assert_close(value.item(), math.log(below + math.exp(-2) + math.exp(-4)))


CENTERS = line(0, 4, 10).unsqueeze(1)
SAMPLES, OF_CLASS = line(1, 9, 3), torch.tensor([0, 2, 0])


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, (0.5 + 0.5 + 4.5) / 3),
        ({"average": "sum"}, 5.5),
        # of the present classes 0 and 2 the nearest centers are 4 and 6 away
        ({"average": "sum", "repulsion": 2.0, "repulsion_margin": 9.0}, 5.5 + 2 * ((9 - 8) + 0) / 2),
    ],
    ids=str,
)
def test_center(options: dict[str, Any], wanted: float) -> None:
    torch.testing.assert_close(oracles.center(SAMPLES, OF_CLASS, CENTERS, **options).item(), wanted)


def test_center_alpha_step() -> None:
    moved = oracles.center_alpha_step(SAMPLES, OF_CLASS, CENTERS, alpha=0.5)
    torch.testing.assert_close(moved, line(0 + 0.5 * (1 + 3) / 3, 4, 10 - 0.5 * 1 / 2).unsqueeze(1))


@pytest.mark.parametrize(("average", "wanted"), [("sum", 10.0), ("mean", 10 / 3)])
def test_triplet_center(average: str, wanted: float) -> None:
    """0.5 + 5 - 4.5, nothing where the other centers are far, 4.5 + 5 - 0.5."""
    x = SAMPLES.clone().requires_grad_()
    value = oracles.triplet_center(x, OF_CLASS, CENTERS, average=average)
    torch.testing.assert_close(value.item(), wanted)
    pulled = torch.autograd.grad(value, x)[0]  # towards the own center, away from the nearest other: their difference
    torch.testing.assert_close(pulled, line(4, 0, 4) * wanted / 10)


def test_triplet_center_of_a_single_class_is_zero() -> None:
    assert oracles.triplet_center(SAMPLES, 0 * OF_CLASS, CENTERS[:1]) == 0


def test_normalized_mutual_information_is_that_of_sklearn() -> None:
    generator = torch.Generator().manual_seed(0)
    for num_clusters in (1, 2, 3, 9):
        a = torch.randint(0, num_clusters, (9,), generator=generator).tolist()
        b = torch.randint(0, 3, (9,), generator=generator).tolist()
        wanted = normalized_mutual_info_score(a, b)
        assert oracles.normalized_mutual_information(a, b) == pytest.approx(wanted, abs=1e-14)
    assert oracles.normalized_mutual_information([0, 0], [5, 5]) == 1


def test_clustering() -> None:
    """Classes across two groups: F(S) = -1 - 1 with NMI 0, F~ = -2 - 2."""
    x, y = 7 * circle(0, 60, 180, 240), torch.tensor([0, 1, 0, 1])
    torch.testing.assert_close(oracles.clustering_score(x, y, [0, 2], margin=1.0).item(), -1.0)
    torch.testing.assert_close(oracles.clustering(x, y, margin=1.0).item(), 3.0)
    torch.testing.assert_close(oracles.clustering(x, y, margin=0.25).item(), 2.25)


def test_clustering_of_separated_classes_without_margin_is_zero() -> None:
    x, y = circle(0, 5, 9, 120, 128, 240, 243), torch.tensor([0, 0, 0, 1, 1, 2, 2])
    assert oracles.clustering(x, y, margin=0.0) < 1e-12


@pytest.mark.parametrize("seed", range(12))
def test_clustering_search_improves_and_stays_below_every_set_of_medoids(seed: int) -> None:
    x, y = random_batch(seed, 9, 3)
    scores = [
        oracles.clustering_score(x, y, oracles.clustering_medoids(x, y, refinements=rounds)).item()
        for rounds in (0, 1, 5)
    ]
    best = oracles.clustering_best(x, y).item()
    assert scores == sorted(scores)
    assert scores[-1] <= best + 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_gradient_of_clustering(seed: int) -> None:
    x, y = random_batch(seed, 9, 3)
    x.requires_grad_()
    assert oracles.clustering(x, y) > 0
    assert torch.autograd.gradcheck(lambda x: oracles.clustering(x, y), x)

"""The papers' formulas as slow, obvious loops over samples, pairs and classes. No tile, no mask, no rank."""

from __future__ import annotations

from tests.losses.oracles.centers import center, center_alpha_step, triplet_center
from tests.losses.oracles.classes import (
    am_softmax,
    arcface,
    circle_proxy,
    cosface,
    norm_softmax,
    proxy_anchor,
    proxy_nca,
    soft_triple,
    softmax,
)
from tests.losses.oracles.draws import triplet_distance_weighted, triplet_random
from tests.losses.oracles.facilities import (
    clustering,
    clustering_best,
    clustering_medoids,
    clustering_score,
    normalized_mutual_information,
)
from tests.losses.oracles.measures import Oracle
from tests.losses.oracles.pairs import (
    circle,
    contrastive,
    lifted_structure,
    multi_similarity,
    n_pairs,
    supervised_contrastive,
)
from tests.losses.oracles.triplets import triplet, triplet_batch_hard, triplet_semi_hard

__all__ = [
    "Oracle",
    "am_softmax",
    "arcface",
    "center",
    "center_alpha_step",
    "circle",
    "circle_proxy",
    "clustering",
    "clustering_best",
    "clustering_medoids",
    "clustering_score",
    "contrastive",
    "cosface",
    "lifted_structure",
    "multi_similarity",
    "n_pairs",
    "norm_softmax",
    "normalized_mutual_information",
    "proxy_anchor",
    "proxy_nca",
    "soft_triple",
    "softmax",
    "supervised_contrastive",
    "triplet",
    "triplet_batch_hard",
    "triplet_center",
    "triplet_distance_weighted",
    "triplet_random",
    "triplet_semi_hard",
]

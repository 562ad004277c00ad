"""Average precision over the whole ranking, against scikit-learn, query by query."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from dmlscale.distributed.world import World
from dmlscale.evaluation import average_precision, sharded_search
from dmlscale.evaluation.average_precision import average_precisions, choose_queries
from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.metrics import count_relevant
from dmlscale.evaluation.neighbors import Metric
from dmlscale.evaluation.shares import share_of
from dmlscale.launch.ranks import OverRanks
from tests.distributed.pool import GlooPool
from tests.evaluation.oracles import query_and_gallery, random_samples, split

NOTHING = Embedded(torch.empty(0, 0), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))


def by_sklearn(queries: Embedded, gallery: Embedded | None, metric: Metric) -> dict[int, float]:
    """Query id -> average precision, for those with something to find."""
    there = queries if gallery is None else gallery
    found = {}
    for place, (query, label, number) in enumerate(zip(*queries, strict=True)):
        far = there.embeddings.double() - query.double()
        closeness = (unit(there.embeddings).double() @ unit(query).double()) if metric == "cosine" else -far.norm(dim=1)
        keep = torch.arange(len(there.labels)) != (place if gallery is None else -1)
        is_relevant = (there.labels == label)[keep]
        if is_relevant.any():
            found[int(number)] = average_precision_score(is_relevant.numpy(), closeness.float()[keep].numpy())
    return found


def unit(vectors: torch.Tensor) -> torch.Tensor:
    """Of unit length as far as float32 goes: which of the vectors are equally close depends on the last bits."""
    lengths = torch.from_numpy(np.linalg.norm(vectors.double().numpy(), axis=-1, keepdims=True))
    return (vectors / torch.where(lengths > 0, lengths, torch.ones_like(lengths))).float()


def ours(
    queries: Embedded, gallery: Embedded | None, metric: Metric, ranks: OverRanks | None = None, rank: int = 0
) -> dict[int, float]:
    options = {} if ranks is None else {"gather": ranks.gather}
    here = share_of(queries, **options, rank=rank)
    there = None if gallery is None else share_of(gallery, **options, rank=rank)
    num_relevant = count_relevant(here.labels, None if there is None else there.labels)
    chosen = choose_queries(here.ids, num_relevant, 10**6)
    values, rows = average_precisions(here, there, chosen, num_relevant, metric=metric, **options)
    return dict(zip(here.ids[rows].tolist(), values.tolist(), strict=True))


def on_rank(
    world: World, shares: list[tuple[Embedded, Embedded | None]], metric: Metric, sizes: tuple[int, int, int]
) -> dict[int, float]:
    """For the gloo pool, with small blocks, tiles and slices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(average_precision, "_RELEVANT_AT_ONCE", sizes[0])
        patch.setattr(average_precision, "_ITEMS_PER_TILE", sizes[1])
        patch.setattr(sharded_search, "NUMBERS_PER_SLICE", sizes[2])
        return ours(*shares[world.rank], metric, OverRanks(world, torch.device("cpu")), world.rank)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_sklearn(metric: Metric, seed: int) -> None:
    queries, gallery = query_and_gallery(seed)
    assert ours(queries, gallery, metric) == pytest.approx(by_sklearn(queries, gallery, metric), abs=1e-12)
    samples = random_samples(70, num_classes=30, seed=seed)  # some classes have one sample
    assert ours(samples, None, metric) == pytest.approx(by_sklearn(samples, None, metric), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(
    num_samples=st.integers(2, 30),
    num_classes=st.integers(1, 5),
    spread=st.sampled_from([0.0, 0.7, 3.0]),
    shift=st.sampled_from([0, 2**24, 2**62]),
    metric=st.sampled_from(["cosine", "euclidean"]),
    seed=st.integers(0, 999),
)
def test_ties_are_one_threshold(
    num_samples: int, num_classes: int, spread: float, shift: int, metric: Metric, seed: int
) -> None:
    """Few different integer vectors, zeros and duplicates among them; labels that float32 and float64 confuse."""
    rng = np.random.default_rng(seed)
    points = np.round(spread * rng.normal(size=(num_samples, 3))).astype(np.float32)
    labels = shift + rng.integers(0, num_classes, num_samples)
    samples = Embedded(torch.from_numpy(points), torch.from_numpy(labels), torch.from_numpy(rng.permutation(90)))
    samples = samples._replace(ids=samples.ids[:num_samples])
    expected = by_sklearn(samples, None, metric)
    assert ours(samples, None, metric) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=6, deadline=None)
@given(
    cuts=st.lists(st.integers(0, 60), min_size=1, max_size=3),
    metric=st.sampled_from(["cosine", "euclidean"]),
    sizes=st.tuples(st.integers(200, 600), st.integers(1, 40), st.integers(150, 600)),
    has_gallery=st.booleans(),
)
def test_the_same_at_any_number_of_ranks(
    gloo_pool: GlooPool, cuts: list[int], metric: Metric, sizes: tuple[int, int, int], has_gallery: bool
) -> None:
    samples = random_samples(60)
    samples = samples._replace(embeddings=samples.embeddings.round())
    gallery = Embedded(*(values.flip(0)[:50] for values in samples)) if has_gallery else None
    edges = [0, *sorted(cuts), 60]
    counts = np.diff(edges).tolist()
    queries = [part if len(part.ids) else NOTHING for part in split(samples, counts)]
    galleries: list[Embedded | None] = [None] * len(queries)
    if gallery is not None:
        there = np.diff([0, *(min(cut, 50) for cut in sorted(cuts)), 50]).tolist()
        galleries = [part if len(part.ids) else NOTHING for part in split(gallery, there)]
    found = gloo_pool.run(len(queries), on_rank, list(zip(queries, galleries, strict=True)), metric, sizes)
    together = {number: value for part in found for number, value in part.items()}
    assert sum(map(len, found)) == len(together)
    assert together == pytest.approx(by_sklearn(samples, gallery, metric), abs=1e-12)


def test_a_few_queries_are_chosen_by_their_ids_alone() -> None:
    ids, num_relevant = np.arange(1000), np.arange(1000) % 3
    chosen = choose_queries(ids, num_relevant, 50)
    assert len(set(chosen.tolist())) == 50
    assert (num_relevant[chosen] > 0).all()
    assert np.array_equal(chosen, np.sort(chosen))
    order = np.random.default_rng(0).permutation(1000)
    assert set(order[choose_queries(ids[order], num_relevant[order], 50)].tolist()) == set(chosen.tolist())
    assert 350 < np.median(chosen) < 650  # from all over
    assert set(choose_queries(ids, num_relevant, 50, seed=1).tolist()) != set(chosen.tolist())
    assert len(choose_queries(ids, num_relevant, 10**6)) == 666

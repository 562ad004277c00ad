from __future__ import annotations

import dataclasses
import time
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dmlscale.data.errors import DataError
from dmlscale.data.planning.mined_plan import MinedOptions, MinedSampling, NeighborTable, check_mined_plan, plan_round
from dmlscale.data.planning.plan import ListedPlan, streams_of_rank

Case = tuple[np.ndarray, NeighborTable, MinedOptions]


def table_of(labels: np.ndarray, num_candidates: int, seed: int = 0) -> NeighborTable:
    """The true table of random points on a line."""
    points = np.random.default_rng(seed).normal(size=len(labels))
    distances = np.abs(points[:, None] - points)
    is_own = labels[:, None] == labels
    negatives = np.argsort(np.where(is_own, np.inf, distances), axis=1)[:, :num_candidates]
    np.fill_diagonal(is_own, False)
    positives = np.argmax(np.where(is_own, distances, -1), axis=1)
    return NeighborTable(negatives, np.where(is_own.any(axis=1), positives, -1))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Labels in any order and options that ``check_mined_plan`` accepts; classes of one among them."""
    counts = np.array(draw(st.lists(st.integers(1, 9), min_size=3, max_size=15)))
    counts[:2] += 1
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.random.default_rng(draw(st.integers(0, 99))).permutation(labels)
    sampling: MinedSampling = draw(st.sampled_from(get_args(MinedSampling)))
    num_candidates = draw(st.integers(1, len(labels) - int(counts.max())))
    num_negatives = draw(st.integers(1, min(3, num_candidates)))
    units = draw(st.integers(1, int(counts[counts > 1].sum()) // 2))
    num_streams, num_steps = draw(st.integers(1, units)), draw(st.integers(1, 7))
    options = MinedOptions(sampling, 0, num_streams, num_steps, num_candidates, num_negatives)
    batch_size = units * options.unit_size + draw(st.integers(0, options.unit_size - 1))
    return labels, table_of(labels, num_candidates), dataclasses.replace(options, batch_size=batch_size)


def plans(case: Case, rounds: int, seed: int = 5) -> list[ListedPlan]:
    labels, table, options = case
    check_mined_plan(labels, options)
    return [plan_round(labels, table, options, seed=seed, round_number=number) for number in range(rounds)]


def anchors_of(case: Case, rounds: int) -> list[np.ndarray]:
    """Anchors by batch, from plans of a table in which every unit can be told apart.

    The table names, instead of neighbours, numbers beyond the samples: no unit repeats another's samples then.
    """
    labels, _, options = case
    n = len(labels)
    options = dataclasses.replace(options, sampling="hard_triplets", num_streams=1, num_candidates=1, num_negatives=1)
    options = dataclasses.replace(options, batch_size=case[2].units_per_batch * options.unit_size)
    marked = NeighborTable(2 * n + np.arange(n)[:, None], n + np.arange(n))
    batches = [plan.batch(step) for plan in plans((labels, marked, options), rounds) for step in range(plan.num_steps)]
    return [batch[batch < n] for batch in batches]


@given(cases())
def test_batches_are_made_of_units(case: Case) -> None:
    """Reads each batch from its front as units in which what stood in it before is left out."""
    labels, table, options = case
    for plan in plans(case, 2):
        for step in range(plan.num_steps):
            batch = plan.batch(step)
            members, allowed = set(batch.tolist()), set()
            for anchor in batch:
                if (labels == labels[anchor]).sum() == 1:
                    continue
                own = np.flatnonzero(labels == labels[anchor])
                positives = table.farthest_positive[[anchor]] if options.sampling == "hard_triplets" else own
                ends = [anchor] if options.sampling == "hard_triplets" else own
                allowed |= {anchor, *positives, *table.nearest_negatives[ends].ravel()}
            assert members <= allowed
            assert len(members) == len(batch) <= options.units_per_batch * options.unit_size


@given(cases())
def test_a_batch_of_one_unit_has_its_roles_in_order(case: Case) -> None:
    labels, table, options = case
    per_end = options.num_negatives
    options = dataclasses.replace(options, batch_size=options.unit_size, num_streams=1)
    for plan in plans((labels, table, options), 3):
        for step in range(plan.num_steps):
            anchor, positive, *negatives = plan.batch(step).tolist()
            assert labels[anchor] == labels[positive]
            assert len(set(negatives)) == len(negatives) >= per_end
            assert set(negatives[:per_end]) <= set(table.nearest_negatives[anchor].tolist())
            if options.sampling == "hard_triplets":
                assert positive == table.farthest_positive[anchor]
                assert len(negatives) == per_end
            else:
                assert set(negatives[per_end:]) <= set(table.nearest_negatives[positive].tolist())
                assert len(negatives) <= 2 * per_end


@given(cases())
def test_streams_are_even_and_never_empty(case: Case) -> None:
    for plan in plans(case, 2):
        assert plan.num_streams == case[2].num_streams
        assert plan.bounds[0] == 0
        assert plan.bounds[-1] == len(plan.order)
        sizes = np.diff(plan.bounds).reshape(plan.num_steps, plan.num_streams)
        assert sizes.min() >= 1
        assert (sizes.max(axis=1) - sizes.min(axis=1) <= 1).all()


@given(cases(), st.integers(1, 4))
def test_any_number_of_ranks_shares_the_same_batches(case: Case, num_ranks: int) -> None:
    plan = plans(case, 1)[0]
    num_ranks = min(num_ranks, plan.num_streams)
    for step in range(plan.num_steps):
        served = [
            plan.sub_batch(stream, step)
            for rank in range(num_ranks)
            for stream in streams_of_rank(rank, num_ranks, plan.num_streams)
        ]
        assert np.array_equal(np.sort(np.concatenate(served)), np.sort(plan.batch(step)))


@given(cases())
def test_every_sample_with_a_positive_is_an_anchor_equally_often(case: Case) -> None:
    labels, _, options = case
    batches = anchors_of(case, 4)
    assert all(len(batch) == options.units_per_batch == len(set(batch.tolist())) for batch in batches)
    times = np.bincount(np.concatenate(batches), minlength=len(labels))
    has_positive = np.bincount(labels)[labels] > 1
    assert (times[~has_positive] == 0).all()
    assert times[has_positive].max() - times[has_positive].min() <= 1


@given(cases())
def test_rounds_continue_the_passes(case: Case) -> None:
    """Two rounds have the anchors of one round of twice as many steps."""
    labels, table, options = case
    twice = dataclasses.replace(options, num_steps=2 * options.num_steps)
    assert np.array_equal(np.concatenate(anchors_of(case, 2)), np.concatenate(anchors_of((labels, table, twice), 1)))


def test_plan_depends_on_seed_and_round_alone() -> None:
    labels = np.repeat(np.arange(20), 6)
    case = labels, table_of(labels, 5), MinedOptions("hard_neighbors", 48, 4, 10, 5, 1)
    first, second = plans(case, 2)
    assert np.array_equal(first.order, plans(case, 1)[0].order)
    assert not np.array_equal(first.order, second.order)
    assert not np.array_equal(first.order, plans(case, 1, seed=6)[0].order)


@given(cases())
def test_a_plan_in_row_ids_has_the_same_samples(case: Case) -> None:
    labels, table, options = case
    row_ids = 100 + 3 * np.arange(len(labels))
    (plan,) = plans(case, 1)
    in_rows = plan_round(labels, table, options, seed=5, round_number=0, row_ids=row_ids)
    for step in range(plan.num_steps):
        assert np.array_equal(in_rows.batch(step), row_ids[plan.batch(step)])


@pytest.mark.parametrize("sampling", ["hard_triplets", "hard_neighbors"])
def test_draws_are_spread_evenly(sampling: Any) -> None:
    labels = np.repeat(np.arange(10), 4)
    table = NeighborTable(100 + np.arange(40 * 5).reshape(40, 5), table_of(labels, 1).farthest_positive)
    plan = plan_round(labels, table, MinedOptions(sampling, 16, 1, 5000, 5, 1), seed=1, round_number=0)
    times = np.bincount(plan.order[plan.order >= 100] - 100)
    assert len(times) == 200
    assert times.min() > 0.7 * times.mean()
    assert times.max() < 1.3 * times.mean()


def test_a_round_of_a_million_samples_is_planned_in_seconds() -> None:
    labels = np.random.default_rng(0).integers(0, 50_000, 1_000_000)
    table = NeighborTable(np.tile(np.arange(10), (len(labels), 1)), np.arange(len(labels)))
    options = MinedOptions("hard_neighbors", 1024, 32, 500, 10, 1)
    start = time.process_time()
    plan_round(labels, table, options, seed=0, round_number=3)
    assert time.process_time() - start < 3.0


@pytest.mark.parametrize(
    ("labels", "changes", "message"),
    [
        ([0, 1, 2, 3], {}, r"sampling=hard_triplets: no class has two samples.*use sampling=classes"),
        ([0, 0, 0, 0], {}, "one class only"),
        ([], {}, "no samples"),
        ([0, 0, 0, 1, 1], {"num_candidates": 3}, r"mine_candidates=3.*only 2 samples of other classes.*at most 2"),
        ([0, 0, 1, 1], {"num_negatives": 2}, r"mine_negatives=2.*mine_candidates=1: must be from 1 to 1"),
        ([0, 0, 1, 1], {"num_streams": 3}, r"holds 2 units of 3, fewer than num_streams=3: raise classes_per_batch"),
        ([0, 0, 1, 2], {}, r"holds 2 units of 3, but the data has 2 samples in classes of two or more.*lower"),
    ],
)
def test_what_cannot_be_mined_is_one_clear_error(labels: list[int], changes: dict[str, Any], message: str) -> None:
    options = dataclasses.replace(MinedOptions("hard_triplets", 6, 2, 10, 1, 1), **changes)
    with pytest.raises(DataError, match=message):
        check_mined_plan(np.array(labels, np.int64), options)

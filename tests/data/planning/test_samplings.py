from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from dmlscale.data.errors import DataError
from dmlscale.data.planning import hierarchy, positives
from dmlscale.data.planning.checks import check_plan
from dmlscale.data.planning.class_rows import ClassRows
from dmlscale.data.planning.plan import EpochPlan
from dmlscale.data.planning.planner import EpochPlanner
from dmlscale.data.planning.quotas import quotas_of
from dmlscale.data.planning.sampling import Sampling

IntArray = NDArray[np.int64]
Case = tuple[IntArray, Sampling]  # samples of each class, options


@st.composite
def counts_of_classes(draw: st.DrawFn) -> IntArray:
    """Some classes large, some without samples."""
    sizes = st.one_of(st.integers(0, 12), st.integers(1, 40))
    return np.array(draw(st.lists(sizes, min_size=2, max_size=15).filter(lambda sizes: sum(map(bool, sizes)) > 1)))


@st.composite
def cases_by_group(draw: st.DrawFn) -> Case:
    """Samplings that differ in quotas alone."""
    counts = draw(counts_of_classes())
    classes_per_batch = draw(st.integers(1, int(np.count_nonzero(counts))))
    divisors = [n for n in range(1, classes_per_batch + 1) if classes_per_batch % n == 0]
    per_class = draw(st.integers(1, min(9, counts.max())))
    return counts, Sampling(
        classes_per_batch,
        per_class,
        draw(st.sampled_from(divisors)),
        draw(st.sampled_from(["classes", "balanced", "by_frequency"])),
        frequency_power=draw(st.sampled_from([0.0, 0.3, 0.5, 0.99, 1.0])),
        max_samples_per_class=draw(st.one_of(st.none(), st.integers(per_class, 40))),
    )


def labels_of(counts: IntArray) -> IntArray:
    return np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))


def planner_for(counts: IntArray, sampling: Sampling, **more: Any) -> EpochPlanner:
    class_rows = ClassRows.from_labels(labels_of(counts))
    missing = len(counts) - len(class_rows.counts)
    class_rows = replace(class_rows, starts=np.pad(class_rows.starts, (0, missing), mode="edge"))
    return EpochPlanner(class_rows, sampling, seed=3, **more)


def batches_of(plan: EpochPlan) -> list[IntArray]:
    return [plan.batch(step) for step in range(plan.num_steps)]


@settings(deadline=None, max_examples=60)
@given(cases_by_group(), st.integers(1, 6))
def test_passes_follow_each_other_whatever_the_quota(case: Case, num_epochs: int) -> None:
    """After q groups of the m of a class, each sample was in floor(q / m) passes, or in one more."""
    counts, sampling = case
    planner = planner_for(counts, sampling)
    seen = np.concatenate([batch for epoch in range(num_epochs) for batch in batches_of(planner.plan(epoch))])
    times = np.bincount(seen, minlength=counts.sum())
    groups = -(-counts // sampling.samples_per_class)
    complete = num_epochs * quotas_of(counts, sampling) // np.maximum(groups, 1)
    complete = complete[labels_of(counts)]
    assert ((times == complete) | (times == complete + 1)).all()


@settings(deadline=None, max_examples=40)
@given(cases_by_group())
def test_no_sample_is_forgotten_once_the_groups_have_come_round(case: Case) -> None:
    counts, sampling = case
    groups = -(-counts // sampling.samples_per_class)
    num_epochs = int((-(-groups // np.maximum(quotas_of(counts, sampling), 1))).max())
    assume(num_epochs <= 12)
    planner = planner_for(counts, sampling)
    seen = [batch for epoch in range(num_epochs) for batch in batches_of(planner.plan(epoch))]
    assert len(np.unique(np.concatenate(seen))) == counts.sum()


@settings(deadline=None)
@given(cases_by_group(), st.integers(0, 3))
def test_batches_are_even_and_no_class_is_twice_in_one(case: Case, epoch: int) -> None:
    counts, sampling = case
    planner = planner_for(counts, sampling)
    plan, labels = planner.plan(epoch), labels_of(counts)
    quotas = quotas_of(counts, sampling)
    assert plan.num_steps == planner.num_steps(0)
    for step in range(plan.num_steps):
        per_class = np.bincount(labels[plan.batch(step)], minlength=len(counts))
        is_once = quotas <= plan.num_steps
        assert (per_class[is_once] <= sampling.samples_per_class).all()
        assert (per_class[is_once] <= counts[is_once]).all()
        streams = plan.sub_batches(range(plan.num_streams), step)
        assert min(map(len, streams)) >= 1
        if is_once.all():
            in_stream = [len(np.unique(labels[rows])) for rows in streams]
            assert max(in_stream) - min(in_stream) <= 1
            assert len(np.unique(plan.batch(step))) == len(plan.batch(step))
            lowest = quotas.sum() // plan.num_steps
            assert sum(in_stream) in (lowest, lowest + 1)


@given(cases_by_group())
def test_quotas_share_the_groups_of_classes(case: Case) -> None:
    counts, sampling = case
    quotas = quotas_of(counts, sampling)
    of_classes = quotas_of(counts, replace(sampling, name="classes"))
    assert quotas.sum() == of_classes.sum()
    assert ((quotas >= 1) == (counts > 0)).all()
    assert quotas.max() <= of_classes.max()
    if sampling.max_samples_per_class is not None:
        assert (quotas * sampling.samples_per_class <= sampling.max_samples_per_class).all()
    by_size = quotas[np.argsort(of_classes, kind="stable")]
    by_size = by_size[by_size > 0]
    assert (np.diff(by_size) >= -1).all()  # equal shares may be rounded up or down
    if sampling.name == "balanced":
        assert np.ptp(quotas[counts > 0]) <= 1
    power = {"balanced": 0.0, "classes": 1.0}.get(sampling.name)
    if power is not None:
        as_power = replace(sampling, name="by_frequency", frequency_power=power)
        assert np.array_equal(quotas, quotas_of(counts, as_power))


def test_frequency_power_evens_out() -> None:
    counts = np.array([1, 100, 10_000]) * 4
    sampling = Sampling(3, 4, 1, "by_frequency", frequency_power=0.5)
    assert quotas_of(counts, sampling).tolist() == [91, 910, 9100]
    # Equal remainders: the first classes are rounded up.
    assert quotas_of(np.array([4, 4, 12]), replace(sampling, frequency_power=0.0)).tolist() == [2, 2, 1]


@st.composite
def hierarchical_cases(draw: st.DrawFn) -> tuple[IntArray, IntArray, Sampling]:
    counts = draw(counts_of_classes())
    super_classes = np.array([draw(st.integers(0, 5)) for _ in counts])
    num_super = len(np.unique(super_classes[counts > 0]))
    super_per_batch = draw(st.integers(1, num_super))
    classes_per_batch = super_per_batch * draw(st.integers(1, 4))
    per_class = draw(st.integers(1, min(5, counts.max())))
    divisors = [n for n in range(1, classes_per_batch + 1) if classes_per_batch % n == 0]
    streams = draw(st.sampled_from(divisors))
    assume(classes_per_batch <= np.count_nonzero(counts))
    sampling = Sampling(classes_per_batch, per_class, 1, "hierarchical", super_classes_per_batch=super_per_batch)
    smallest = hierarchy.smallest_batch(quotas_of(counts, sampling), super_classes, sampling)
    return counts, super_classes, replace(sampling, num_streams=streams if streams <= smallest else 1)


@settings(deadline=None)
@given(hierarchical_cases(), st.integers(0, 2))
def test_hierarchical_batches_are_of_few_super_classes(case: tuple[IntArray, IntArray, Sampling], epoch: int) -> None:
    counts, super_classes, sampling = case
    labels = labels_of(counts)
    plan = planner_for(counts, sampling, super_classes=super_classes).plan(epoch)
    assert np.array_equal(np.sort(np.concatenate(batches_of(plan))), np.arange(counts.sum()))
    quotas = quotas_of(counts, sampling)
    smallest = hierarchy.smallest_batch(quotas, super_classes, sampling)
    groups_of_super = np.bincount(super_classes, weights=quotas).astype(np.int64)
    blocks_of_super = -(-groups_of_super // (sampling.classes_per_batch // sampling.super_classes_per_batch))
    does_repeat = bool((quotas > blocks_of_super[super_classes]).any() or (blocks_of_super > plan.num_steps).any())
    for step in range(plan.num_steps):
        batch = plan.batch(step)
        supers = np.unique(super_classes[labels[batch]])
        assert len(supers) <= sampling.super_classes_per_batch
        assert len(batch) <= sampling.batch_size
        streams = plan.sub_batches(range(plan.num_streams), step)
        assert min(map(len, streams)) >= 1
        if not does_repeat:
            lowest = blocks_of_super.sum() // plan.num_steps
            assert len(supers) in (lowest, lowest + 1)
            in_stream = [len(np.unique(labels[rows])) for rows in streams]
            assert sum(in_stream) >= smallest
            assert max(in_stream) - min(in_stream) <= 1
            assert (np.bincount(labels[batch]) <= sampling.samples_per_class).all()


@st.composite
def positive_cases(draw: st.DrawFn) -> Case:
    counts = draw(counts_of_classes())
    classes_per_batch, per_class = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    cap = draw(st.one_of(st.none(), st.integers(per_class, 40)))
    sampling = Sampling(classes_per_batch, per_class, 1, "all_positives", max_samples_per_class=cap)
    assume(sampling.batch_size <= counts.sum())
    smallest = positives.smallest_batch(quotas_of(counts, sampling), counts, sampling)
    divisors = [n for n in range(1, classes_per_batch + 1) if classes_per_batch % n == 0 and n <= smallest]
    return counts, replace(sampling, num_streams=draw(st.sampled_from(divisors)))


@settings(deadline=None)
@given(positive_cases(), st.integers(0, 2))
def test_all_positives_stand_in_one_batch(case: Case, epoch: int) -> None:
    counts, sampling = case
    labels = labels_of(counts)
    planner = planner_for(counts, sampling)
    plan = planner.plan(epoch)
    batches = batches_of(plan)
    quotas, groups = quotas_of(counts, sampling), -(-counts // sampling.group_size)
    assert sampling.max_samples_per_class or np.array_equal(np.sort(np.concatenate(batches)), np.arange(counts.sum()))
    in_batch = np.stack([np.bincount(labels[batch], minlength=len(counts)) for batch in batches])  # (T, C)
    is_whole = groups == 1
    assert np.array_equal(in_batch[:, is_whole].max(axis=0), counts[is_whole])
    assert np.array_equal(np.count_nonzero(in_batch, axis=0), np.minimum(quotas, plan.num_steps))
    is_once = quotas <= plan.num_steps
    assert (in_batch[:, is_once] <= sampling.group_size).all()
    sizes = np.array(list(map(len, batches)))
    smallest = positives.smallest_batch(quotas, counts, sampling)
    assert sizes.min() >= max(1, smallest)
    num_rows = -(-quotas.sum() // plan.num_steps)
    largest = int((-(-counts // np.maximum(groups, 1))).max())
    assert np.ptp(sizes) <= largest + (num_rows if (groups > 1).any() else 0)
    for step in range(plan.num_steps):
        streams = list(map(len, plan.sub_batches(range(plan.num_streams), step)))
        assert min(streams) >= 1
        assert max(streams) - min(streams) <= 1


def test_a_bounded_class_has_its_other_samples_in_later_epochs() -> None:
    counts = np.array([100, 6, 6, 6])
    planner = planner_for(counts, Sampling(2, 4, 2, "all_positives", max_samples_per_class=4))
    large = np.flatnonzero(labels_of(counts) == 0)
    seen = [np.intersect1d(large, np.concatenate(batches_of(planner.plan(epoch)))) for epoch in range(25)]
    assert [len(rows) for rows in seen] == [4] * 25
    assert np.array_equal(np.sort(np.concatenate(seen)), large)


SMALL = Sampling(4, 2, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frequency_power": 1.5}, r"frequency_power=1.5, must be from 0"),
        ({"max_samples_per_class": 1}, r"max_samples_per_class=1 is less than samples_per_class=2"),
        ({"super_classes_per_batch": 0}, r"super_classes_per_batch=0, must be at least 1"),
        ({"super_classes_per_batch": 3}, r"super_classes_per_batch=3 does not divide classes_per_batch=4: .* 1, 2, 4"),
        ({"name": "hierarchical", "super_classes_per_batch": 4}, r"super_classes_per_batch=4, but there are 3 super"),
        ({"name": "hierarchical", "num_streams": 4}, r"few as 1 groups, fewer than num_streams=4: lower num_streams"),
        ({"name": "all_positives", "classes_per_batch": 8}, r"larger than the data offers, 13 samples: lower classes"),
        ({"window_shards": -1}, r"window_shards=-1, must be 0"),
        ({"window_shards": 2}, r"window_shards=2, but the dataset is not in shards"),
        ({"window_shards": 2, "name": "balanced"}, r"window_shards=2 goes with sampling=classes alone.*=balanced"),
        ({"window_shards": 2, "max_samples_per_class": 4}, r"not with max_samples_per_class=4"),
    ],
)
def test_check_plan_names_option_and_value(changes: dict[str, Any], message: str) -> None:
    class_rows = ClassRows.from_labels(np.repeat(np.arange(6), [3, 2, 2, 2, 2, 2]))
    with pytest.raises(DataError, match=message):
        check_plan(class_rows, replace(SMALL, **changes), super_classes=np.array([0, 0, 0, 0, 1, 2]))


def test_hierarchical_needs_super_classes() -> None:
    class_rows = ClassRows.from_labels(np.repeat(np.arange(6), 2))
    with pytest.raises(DataError, match="needs super-classes, and the dataset has none"):
        check_plan(class_rows, replace(SMALL, name="hierarchical"))
    with pytest.raises(DataError, match="5 super-class numbers for 6 classes"):
        check_plan(class_rows, replace(SMALL, name="hierarchical"), super_classes=np.zeros(5, np.int64))


def test_all_positives_needs_a_sample_for_each_stream() -> None:
    class_rows = ClassRows.from_labels(np.repeat(np.arange(2), [17, 1]))
    with pytest.raises(DataError, match=r"sampling=all_positives: a batch may have as few as \d samples"):
        check_plan(class_rows, Sampling(8, 2, 8, "all_positives"))

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.distributed.world import World
from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.ranks import alone
from dmlscale.evaluation.subsample import checked_share, few_enough, gathered, hash_order, whole_classes
from dmlscale.launch.ranks import OverRanks
from tests.distributed.pool import GlooPool
from tests.evaluation.oracles import random_samples, split

NOTHING = Embedded(torch.empty(0, 0), torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.int64))


def chosen_on_rank(world: World, shares: list[Embedded], options: dict[str, Any]) -> Embedded | str:
    """For the gloo pool: the choice, or what the error says."""
    gather = OverRanks(world, torch.device("cpu")).gather
    try:
        return whole_classes(shares[world.rank], gather=gather, rank=world.rank, **options)
    except ValueError as error:
        return str(error)


def labelled(labels: list[int]) -> Embedded:
    """Samples whose embeddings tell which they are."""
    ids = torch.randperm(5 * len(labels), generator=torch.Generator().manual_seed(0))[: len(labels)]
    return Embedded(ids[:, None].float() + torch.tensor([0.0, 0.5]), torch.tensor(labels), ids)


def lone(embedding: list[float]) -> Embedded:
    return Embedded(torch.tensor([embedding]), torch.tensor([0]), torch.tensor([1000]))


def test_all_samples_where_there_are_no_more_than_wanted() -> None:
    samples = random_samples(60)
    chosen = whole_classes(samples, 60)
    order = samples.ids.argsort()
    assert all(torch.equal(got, wanted[order]) for got, wanted in zip(chosen, samples, strict=True))


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=12, max_size=30), most=st.integers(60, 100), seed=st.integers(0, 5))
def test_classes_are_whole_and_nearly_as_many_as_fit(sizes: list[int], most: int, seed: int) -> None:
    labels = [2**40 + label for label, size in enumerate(sizes) for _ in range(size)]
    samples = labelled(labels)
    chosen = whole_classes(samples, most, seed=seed)
    assert min(len(labels), most - 5) <= len(chosen.ids) <= most
    for label in set(chosen.labels.tolist()):
        assert (chosen.labels == label).sum() == labels.count(label)
    assert torch.equal(chosen.embeddings[:, 0].long(), chosen.ids)
    assert (chosen.ids.diff() > 0).all()


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=30), most=st.integers(1, 800), seed=st.integers(0, 5))
def test_of_whole_classes_the_most_that_are_few_enough(sizes: list[int], most: int, seed: int) -> None:
    labels = [2**40 + label for label, size in enumerate(sizes) for _ in range(size)]
    share = checked_share(labelled(labels))
    chosen = few_enough(share, most, seed=seed)
    order = hash_order(np.unique(labels), seed, 1)  # that of `whole_classes`
    by_class = np.array(sizes)[order]
    fits = [count for count in range(1, len(sizes) + 1) if by_class[:count].sum() * count <= most]
    taken = {2**40 + int(label) for label in order[: max(fits, default=1)]}
    assert set(chosen.labels.tolist()) == taken
    assert chosen.ids.tolist() == [i for i, label in zip(share.ids, share.labels, strict=True) if label in taken]
    assert chosen.embeddings[:, 0].tolist() == chosen.ids[chosen.rows].tolist()
    assert sorted(chosen.rows) == list(range(len(chosen.ids)))
    assert few_enough(share, 10**9, seed=seed) is share


def test_a_large_class_takes_part_with_a_tenth() -> None:
    samples = labelled([0] * 500 + list(range(1, 60)) * 2)
    taken = [whole_classes(samples, 100, seed=seed).labels for seed in range(30)]
    numbers = {int((labels == 0).sum()) for labels in taken}
    assert numbers == {0, 10}
    few = whole_classes(labelled([7] * 500 + [8] * 300), 100)
    assert [(few.labels == label).sum() for label in (7, 8)] == [50, 50]


def test_the_choice_is_random_over_classes_and_samples() -> None:
    labels = [label for label in range(40) for _ in range(5)]
    counts = torch.zeros(40)
    for seed in range(400):
        counts[whole_classes(labelled(labels), 50, seed=seed).labels.unique()] += 1
    assert ((counts - 100).abs() < 45).all()  # binomial: 8.7 is one standard deviation
    large = labelled([3] * 100 + [4] * 100)
    first, second = (set(whole_classes(large, 20, seed=seed).ids.tolist()) for seed in (0, 1))
    assert first != second


@pytest.mark.parametrize("sizes", [[90], [40, 50], [90, 0], [0, 45, 45], [20, 0, 1, 69]])
def test_every_rank_holds_the_choice_of_one_process(gloo_pool: GlooPool, sizes: list[int]) -> None:
    samples = random_samples(90, num_classes=30)
    samples = samples._replace(labels=samples.labels + 2**61)
    expected = whole_classes(samples, 40, seed=3)
    assert 25 < len(expected.ids) <= 40
    shares = [share if len(share.ids) else NOTHING for share in split(samples, sizes)]
    for chosen in gloo_pool.run(len(sizes), chosen_on_rank, shares, {"most": 40, "seed": 3}):
        assert all(torch.equal(got, wanted) for got, wanted in zip(chosen, expected, strict=True))


def test_a_sample_of_several_ranks_counts_once_and_the_first_rank_decides(gloo_pool: GlooPool) -> None:
    samples = labelled([0, 1, 2, 3, 4, 5])
    again = samples._replace(embeddings=-samples.embeddings)
    twice = Embedded(*(torch.cat([values, values]) for values in samples))
    for chosen in gloo_pool.run(3, chosen_on_rank, [NOTHING, twice, again], {"most": 100}):
        assert torch.equal(chosen.ids, samples.ids.sort().values)
        assert torch.equal(chosen.embeddings[:, 0].long(), chosen.ids)


def test_embeddings_come_in_the_order_asked_for() -> None:
    samples = labelled(list(range(20)))
    share = checked_share(samples)
    chosen = np.array([17, 3, 9, 0])
    assert gathered(share, chosen, alone)[:, 0].tolist() == share.ids[chosen].tolist()


def test_a_hash_belongs_to_a_number_and_not_to_its_neighbours() -> None:
    numbers = np.arange(100) - 50
    whole = numbers[hash_order(numbers, 3)]
    assert sorted(whole) == numbers.tolist()
    part = numbers[::3]
    assert part[hash_order(part, 3)].tolist() == [number for number in whole if number in part]


@pytest.mark.parametrize(
    ("shares", "said"),
    [
        ([NOTHING, NOTHING], "no samples to evaluate"),
        ([labelled([0, 1]), lone([0.0, float("nan")])], "NaN or infinity"),
        ([labelled([0, 1]), lone([1.0, 1.0, 1.0])], "[2, 3] dimensions"),
    ],
)
def test_bad_input_is_an_error_on_every_rank(gloo_pool: GlooPool, shares: list[Embedded], said: str) -> None:
    assert all(said in answer for answer in gloo_pool.run(2, chosen_on_rank, shares, {}))
    with pytest.raises(ValueError, match="most = 0 samples"):
        whole_classes(labelled([0]), 0)
    with pytest.raises(ValueError, match="seed = -1"):
        whole_classes(labelled([0]), seed=-1)

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from dmlscale.evaluation import evaluate as evaluate_module
from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.evaluate import evaluate, gather_embedded
from tests.evaluation.oracles import brute_force, random_samples, split


def evaluate_on_ranks(shares: list[Embedded], **options: object) -> list[dict[str, float]]:
    """One thread per rank, with real meeting points: a rank that leaves out a collective hangs the test."""
    barrier = threading.Barrier(len(shares))
    board: list[Tensor] = [torch.empty(0)] * len(shares)

    def meet(rank: int, tensor: Tensor, combine: Callable[[list[Tensor]], Tensor]) -> Tensor:
        board[rank] = tensor.clone()
        barrier.wait(timeout=20)
        result = combine(board)
        barrier.wait(timeout=20)
        return result

    def run(rank: int) -> dict[str, float]:
        return evaluate(
            shares[rank],
            gather=lambda tensor: meet(rank, tensor, torch.cat),
            all_sum=lambda tensor: meet(rank, tensor, lambda parts: torch.stack(parts).sum(0)),
            rank=rank,
            **options,  # type: ignore[arg-type]
        )

    with ThreadPoolExecutor(len(shares)) as pool:
        return list(pool.map(run, range(len(shares))))


@pytest.mark.parametrize("sizes", [[60], [30, 30], [7, 53], [60, 0], [20, 25, 15], [0, 1, 59]])
def test_every_rank_gets_the_result_of_one_process(sizes: list[int]) -> None:
    samples = random_samples(60)
    expected = evaluate(samples)
    for result in evaluate_on_ranks(split(samples, sizes)):
        assert result == pytest.approx(expected, abs=1e-12)


def test_a_rank_with_no_batches_does_not_know_the_dimension() -> None:
    samples = random_samples(40)
    nothing = Embedded(torch.empty(0, 0), *[torch.empty(0, dtype=torch.int64)] * 2)
    assert evaluate_on_ranks([nothing, samples])[1] == pytest.approx(evaluate(samples), abs=1e-12)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_result_does_not_depend_on_the_order_of_samples_even_with_ties(metric: str) -> None:
    samples = random_samples(80, spread=0.5)
    grid = samples.embeddings.round()  # many exact ties between samples of different classes
    grid[(grid == 0).all(1)] = 1
    samples = samples._replace(embeddings=grid)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    shuffled = Embedded(*(tensor[order] for tensor in samples))
    expected = evaluate(samples, metric=metric)  # type: ignore[arg-type]
    for result in evaluate_on_ranks(split(shuffled, [13, 40, 27]), metric=metric):
        assert result == pytest.approx(expected, abs=1e-12)


def test_equals_brute_force_and_counts() -> None:
    samples = random_samples(70, num_classes=40)
    result = evaluate(samples, ks=(1, 3))
    expected = brute_force(samples.embeddings.numpy(), samples.labels.numpy(), (1, 3))
    assert {name: result[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    sizes = np.unique(samples.labels.numpy(), return_counts=True)[1]
    assert result["num_classes"] == len(sizes)
    assert result["num_lone_queries"] == (sizes == 1).sum() > 0
    assert result["num_queries"] == 70 - (sizes == 1).sum()
    assert set(result) == {*expected, "nmi", "num_queries", "num_lone_queries", "num_classes"}


def test_a_sample_embedded_twice_counts_once() -> None:
    samples = random_samples(31)
    padded = Embedded(*(torch.cat([tensor, tensor[:1]]) for tensor in samples))  # a sampler that pads the last rank
    for result in evaluate_on_ranks(split(padded, [16, 16])):
        assert result == pytest.approx(evaluate(samples), abs=1e-12)


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
    result = evaluate(Embedded(embeddings, labels, torch.arange(6)), ks=(1, 100))
    for name in ("recall_at_1", "recall_at_100", "precision_at_1", "r_precision", "map_at_r", "nmi"):
        assert result[name] == pytest.approx(1.0), name


def test_large_classes_are_searched_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    samples = random_samples(120, num_classes=2)
    expected = evaluate(samples)
    monkeypatch.setattr(evaluate_module, "queries_per_chunk", lambda k: 11)
    assert evaluate(samples) == pytest.approx(expected, abs=1e-12)


def test_nan_raises_on_every_rank_instead_of_hanging_the_others() -> None:
    samples = random_samples(20)
    samples.embeddings[3, 0] = float("nan")
    with pytest.raises(ValueError, match="diverged"):
        evaluate_on_ranks(split(samples, [10, 10]))


def test_bad_input_is_a_clear_error() -> None:
    samples = random_samples(6)
    with pytest.raises(ValueError, match="no class has two samples"):
        evaluate(samples._replace(labels=torch.arange(6)))
    with pytest.raises(ValueError, match="no samples"):
        evaluate(Embedded(*(tensor[:0] for tensor in samples)))


def test_nmi_can_be_left_out() -> None:
    assert "nmi" not in evaluate(random_samples(20), with_nmi=False)

import re
from typing import Any

import pytest
import torch

from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.evaluate import evaluate
from tests.evaluation.on_ranks import evaluate_on_ranks
from tests.evaluation.oracles import random_samples, split


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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"metric": "cos"}, "unknown metric 'cos': there are cosine, euclidean"),
        ({"ks": (1, 0)}, "ks = [1, 0]: each must be at least 1"),
        ({"ks": (-3,)}, "ks = [-3]: each must be at least 1"),
        ({"most_map_queries": 0}, "most_map_queries = 0: must be at least 1"),
        ({"seed": -1}, "seed = -1: must be at least 0"),
    ],
)
def test_bad_options_are_clear_errors_on_every_rank(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        evaluate_on_ranks(split(random_samples(20), [12, 8]), groups=("map", "clustering"), **options)


FIT = "must be (n, d), (n,) and (n,) with d at least 1"
SECOND = random_samples(8, seed=1)


@pytest.mark.parametrize(
    ("second", "metric", "said"),
    [
        (SECOND._replace(labels=torch.arange(7)), "cosine", f"embeddings (8, 8), labels (7,) and ids (8,) {FIT}"),
        (SECOND._replace(ids=torch.arange(7)), "cosine", f"embeddings (8, 8), labels (8,) and ids (7,) {FIT}"),
        (SECOND._replace(labels=torch.zeros(8, 1).long()), "cosine", f"labels (8, 1) and ids (8,) {FIT}"),
        (SECOND._replace(embeddings=torch.zeros(8)), "cosine", "rank 1: embeddings (8,), labels (8,)"),
        (SECOND._replace(embeddings=torch.zeros(8, 0)), "cosine", "rank 1: embeddings (8, 0), labels (8,)"),
        (SECOND._replace(embeddings=torch.zeros(8, 2, 4)), "cosine", "rank 1: embeddings (8, 2, 4), labels (8,)"),
        (SECOND._replace(embeddings=torch.ones(8, 5)), "cosine", "ranks hold embeddings of [5, 8] dimensions"),
        (SECOND._replace(embeddings=torch.full((8, 8), 1e18)), "euclidean", "or are longer than 1e+18: the training"),
    ],
)
def test_what_one_rank_holds_wrongly_is_an_error_on_every_rank(second: Embedded, metric: str, said: str) -> None:
    """Also as a gallery; a rank alone would leave the others waiting, which ends in another error here."""
    shares = [random_samples(12), second]
    with pytest.raises(ValueError, match=re.escape(said)):
        evaluate_on_ranks(shares, metric=metric)
    with pytest.raises(ValueError, match=re.escape(said)):
        evaluate_on_ranks(split(random_samples(20), [12, 8]), galleries=shares, metric=metric)

"""What each loss divides by: counts of the global batch, by hand. A count per rank, or none, gives other numbers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import dmlscale
from dmlscale.distributed.world import World
from tests.distributed.pool import GlooPool


class Case(NamedTuple):
    """A loss on a batch, dealt to ranks in two ways, and its value by hand."""

    name: str
    loss: str
    options: dict[str, Any]
    x: list[list[float]]
    y: list[int]
    wanted: float
    proxies: list[list[float]] | None = None


def line(*values: float) -> list[list[float]]:
    """Points on a line in the plane."""
    return [[value, 0.0] for value in values]


def degrees(*angles: float) -> list[list[float]]:
    """Points on the unit circle; chords of 60, 90 and 180 degrees have the squared lengths 1, 2 and 4."""
    return [[math.cos(math.radians(a)), math.sin(math.radians(a))] for a in angles]


def log1pexp(x: float) -> float:
    return math.log1p(math.exp(x))


EAST, NORTH, WEST, SOUTH = degrees(0), degrees(90), degrees(180), degrees(270)

# Proxy-anchor, scale 2, margin 0: class 0 is met by one sample on its proxy, class 1 by two opposite to it; the two
# other proxies are absent.
ANCHOR_X, ANCHOR_Y = [*EAST, *EAST, *EAST], [0, 1, 1]
ANCHOR_PULL = (log1pexp(-2) + math.log(1 + 2 * math.exp(2))) / 2
ANCHOR_PUSH = (math.log(1 + 2 * math.exp(2)) + math.log(1 + math.exp(-2)) + 2 * math.log(1 + 3)) / 4
FOUR = [*EAST, *WEST, *NORTH, *SOUTH]
ABSENT = 3  # more proxies at a right angle

PROXY_ANCHOR = [
    Case("P+", "proxy_anchor", {"scale": 2.0, "margin": 0.0}, ANCHOR_X, ANCHOR_Y, ANCHOR_PULL + ANCHOR_PUSH, FOUR),
    Case(
        "more absent classes",
        "proxy_anchor",
        {"scale": 2.0, "margin": 0.0},
        ANCHOR_X,
        ANCHOR_Y,
        ANCHOR_PULL + (4 * ANCHOR_PUSH + ABSENT * math.log(4)) / (4 + ABSENT),
        [*FOUR, *NORTH * ABSENT],
    ),
]

# Hard lifted structure: the pairs (0, 1) and (1.5, 4) with the nearest negative 0.5 away; a lone sample far off.
LIFTED = [
    Case("2P", "lifted_structure", {"form": "hard"}, line(0, 1, 1.5, 4), [0, 0, 1, 1], (1.5**2 + 3.0**2) / 4),
    Case(
        "lone samples",
        "lifted_structure",
        {"form": "hard"},
        line(0, 1, 1.5, 4, 90, 99),
        [0, 0, 1, 1, 2, 3],
        (1.5**2 + 3.0**2) / 4,
    ),
    # A class of three on one spot, and its negative a margin away: each of its 3 pairs has J = log(2 exp(0)).
    Case("smooth, 3 pairs", "lifted_structure", {}, line(0, 0, 0, 1), [0, 0, 0, 1], 3 * math.log(2) ** 2 / (2 * 3)),
    # The pair at 60 is far from all its negatives: nothing in the sum, one in the count.
    Case(
        "smooth, 4 pairs",
        "lifted_structure",
        {},
        line(0, 0, 0, 1, 60, 60),
        [0, 0, 0, 1, 2, 2],
        3 * math.log(2) ** 2 / (2 * 4),
    ),
    # Two anchors of three are above zero; the lone one has no pair.
    Case(
        "per anchor",
        "lifted_structure",
        {"form": "per_anchor"},
        line(0, 0.25, 1.0),
        [0, 0, 1],
        (0.25 + 0.0 + 0.25 + 0.25) / 2,
    ),
]

# Semi-hard on a line, D = |x - y|: (0, 1) meets 1.1, (1, 0) only the farthest, 0.1 away, unless there are others: two
# more pairs lie far apart.
FAR = [1e3, 1e3 + 1, 2e3, 2e3 + 1]
PLAIN = {"normalize": False, "squared": False}
BEYOND = 1 - 1.1 + 0.2
SEMI = BEYOND + (1 - 0.1 + 0.2)
TRIPLETS = [
    Case("semi-hard pairs", "triplet", PLAIN, line(0, 1, 1.1), [0, 0, 1], SEMI / 2),
    Case("semi-hard with easy pairs", "triplet", PLAIN, line(0, 1, 1.1, *FAR), [0, 0, 1, 2, 2, 3, 3], BEYOND / 6),
    Case(
        "semi-hard, active",
        "triplet",
        {**PLAIN, "average": "active"},
        line(0, 1, 1.1, *FAR),
        [0, 0, 1, 2, 2, 3, 3],
        BEYOND / 1,
    ),
    # all: 2 pairs x 5 negatives of class 0, and 4 pairs x 5 negatives that are all easy
    Case("all", "triplet", {**PLAIN, "mining": "all"}, line(0, 1, 1.1, *FAR), [0, 0, 1, 2, 2, 3, 3], SEMI / (6 * 5)),
    Case(
        "all, active",
        "triplet",
        {**PLAIN, "mining": "all", "average": "active"},
        line(0, 1, 1.1, *FAR),
        [0, 0, 1, 2, 2, 3, 3],
        SEMI / 2,
    ),
    Case("batch hard", "triplet", {"mining": "batch_hard"}, line(0, 1, 1.1, *FAR), [0, 0, 1, 2, 2, 3, 3], SEMI / 6),
    Case(
        "batch hard, active",
        "triplet",
        {"mining": "batch_hard", "average": "active"},
        line(0, 1, 1.1, *FAR),
        [0, 0, 1, 2, 2, 3, 3],
        SEMI / 2,
    ),
    Case(
        "hardest negative",
        "triplet",
        {**PLAIN, "mining": "all_positives_hardest_negative"},
        line(0, 1, 1.1, *FAR),
        [0, 0, 1, 2, 2, 3, 3],
        SEMI / 6,
    ),
    Case(
        "hardest negative, active",
        "triplet",
        {**PLAIN, "mining": "all_positives_hardest_negative", "average": "active"},
        line(0, 1, 1.1, *FAR),
        [0, 0, 1, 2, 2, 3, 3],
        SEMI / 2,
    ),
    # only (0, 1) has a negative beyond its positive and within the margin
    Case(
        "all semi-hard",
        "triplet",
        {**PLAIN, "mining": "all_semi_hard"},
        line(0, 1, 1.1, *FAR),
        [0, 0, 1, 2, 2, 3, 3],
        BEYOND / 1,
    ),
]

# Contrastive on a line: positives 1 and 0.5 apart, of which 0.5 is close enough; of 13 negatives three within the
# margin.
CLOSE_X, CLOSE_Y = line(0, 1, 1.5, 7, 7.5, 7.75), [0, 0, 1, 2, 2, 3]
ENOUGH = {"squared": False, "positive_margin": 0.5}
CONTRASTIVE = [
    Case("active", "contrastive", ENOUGH, CLOSE_X, CLOSE_Y, 0.5 / 1 + (0.5 + 0.25 + 0.75) / 3),
    Case("all", "contrastive", {**ENOUGH, "average": "all"}, CLOSE_X, CLOSE_Y, 0.5 / 2 + 1.5 / 13),
    Case("pairs", "contrastive", {**ENOUGH, "average": "pairs"}, CLOSE_X, CLOSE_Y, (0.5 + 1.5) / 15),
]

# All on one spot: a sample's softmax over the n - 1 others is even, whatever |P(i)|; class 2 is alone.
SPOT = {n: [*EAST * n] for n in (4, 7)}
# Cosines 1 within a class and 0 across: each of 2, 3 and 1 samples.
ROUND_X, ROUND_Y = [*EAST * 2, *NORTH * 3, *WEST], [0, 0, 1, 1, 1, 2]
CONTRAST = [
    Case("one spot", "supervised_contrastive", {}, SPOT[4], [0, 0, 1, 1], math.log(3)),
    Case("|P(i)| and lone samples", "supervised_contrastive", {}, SPOT[7], [0, 0, 1, 1, 1, 1, 2], math.log(6)),
    Case(
        "two sizes",
        "supervised_contrastive",
        {"temperature": 1.0},
        ROUND_X,
        ROUND_Y,
        (2 * (math.log(math.e + 3 + math.exp(-1)) - 1) + 3 * (math.log(2 * math.e + 3) - 1)) / 5,
    ),
    # base and cosine 1: log(1 + |P|) / 2 of pull; B counts the lone sample too.
    Case(
        "B",
        "multi_similarity",
        {"miner_margin": None, "base": 1.0, "positive_scale": 2.0, "negative_scale": 1.0},
        ROUND_X,
        ROUND_Y,
        (
            2 * (math.log(2) / 2 + math.log(1 + 3 * math.exp(-1) + math.exp(-2)))
            + 3 * (math.log(3) / 2 + math.log(1 + 3 * math.exp(-1)))
            + math.log(1 + 2 * math.exp(-2) + 3 * math.exp(-1))
        )
        / 6,
    ),
    # Mined: only anchors with another class on their own spot keep anything.
    Case(
        "B with anchors that keep nothing",
        "multi_similarity",
        {"base": 1.0},
        [*EAST * 3, *WEST * 2, *NORTH],
        [0, 0, 1, 2, 2, 3],
        (2 * (math.log(2) / 2 + math.log(2) / 50)) / 6,
    ),
    Case(
        "circle",
        "circle",
        {"margin": 0.0, "scale": 1.0},
        ROUND_X,
        ROUND_Y,
        (2 * log1pexp(math.log(3 + 1) + 0) + 3 * log1pexp(math.log(3) + math.log(2))) / 5,
    ),
]

CASES = [*PROXY_ANCHOR, *LIFTED, *TRIPLETS, *CONTRASTIVE, *CONTRAST]


def run_rank(world: World, case: Case, dealt: list[list[int]]) -> Tensor:
    x, y = torch.tensor(case.x, dtype=torch.float64), torch.tensor(case.y)
    num_classes = 3 if case.proxies is None else len(case.proxies)
    loss = dmlscale.GlobalLoss(
        case.loss, num_classes=num_classes, embedding_dim=2, group=world.group, **case.options
    ).double()
    if loss.bank is not None and case.proxies is not None:
        rows = torch.tensor(case.proxies, dtype=torch.float64)[loss.bank.start : loss.bank.stop, None]
        loss.bank.weight.data.copy_(rows)
    mine = torch.tensor(dealt[world.rank], dtype=torch.int64)
    value: Tensor = loss(x[mine], y[mine]).detach()
    return value


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.loss}: {case.name}")
def test_counts_are_those_of_the_whole_batch(gloo_pool: GlooPool, case: Case) -> None:
    everyone = list(range(len(case.y)))
    ways = [
        [everyone],
        [everyone[:1], everyone[1:]],  # a pair is split
        [everyone[2:], everyone[:2]],  # a class is whole on its rank
        [everyone[::3], everyone[1::3], everyone[2::3]],
        [everyone[:2], [], everyone[2:4], everyone[4:]],
    ]
    for dealt in ways:
        for value in gloo_pool.run(len(dealt), run_rank, case, dealt):
            assert value.item() == pytest.approx(case.wanted, rel=1e-5)  # equal points are 1e-6 apart


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        ("triplet", {}),
        ("triplet", {"mining": "batch_hard"}),
        ("triplet", {"mining": "all"}),
        ("triplet", {"mining": "all", "average": "active"}),
        ("contrastive", {}),
        ("lifted_structure", {"form": "hard"}),
        ("circle", {}),
        ("norm_softmax", {}),
        ("soft_triple", {}),
        ("proxy_nca", {}),
        ("arcface", {}),
        ("center", {}),
        ("triplet_center", {}),
    ],
)
def test_a_rank_with_more_samples_weighs_more(gloo_pool: GlooPool, loss: str, options: dict[str, Any]) -> None:
    """A mean of the ranks' means would give every rank the same weight: 9 samples and 1 are not 5 and 5."""
    x = torch.randn(10, 2, generator=torch.Generator().manual_seed(0)).tolist()
    case = Case("", loss, options, x, [0, 1, 2, 0, 1, 2, 0, 1, 2, 0], 0.0)
    ways = [[[*range(9)], [9]], [[*range(5)], [*range(5, 10)]], [[*range(10)], []]]
    values = torch.stack([value for dealt in ways for value in gloo_pool.run(2, run_rank, case, dealt)])
    torch.testing.assert_close(values, values[0].expand(len(values)))

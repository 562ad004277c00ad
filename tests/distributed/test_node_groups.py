from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dmlscale.distributed.by_node import gather_by_node, scatter_sum_by_node, sum_by_node
from dmlscale.distributed.node_groups import NodeGroups, node_mesh
from dmlscale.distributed.world import World
from dmlscale.distributed.wrap import data_parallel
from tests.distributed.pool import GlooPool

# Names of the nodes of four ranks: even, even and dealt in turn, three and one, a pair apart, all on one, each alone.
LAYOUTS = ["aabb", "abab", "aaab", "abca", "aaaa", "abcd"]
# Rows of each rank.
SIZES = [[3, 3, 3, 3], [0, 5, 1, 2], [4, 0, 0, 1]]
Members = tuple[tuple[tuple[int, ...], ...], list[int], list[int] | None]


def members(world: World, layout: str) -> Members:
    groups = NodeGroups.of(world, layout[world.rank])
    between = None if groups.between is None else dist.get_process_group_ranks(groups.between)
    return groups.nodes, dist.get_process_group_ranks(groups.within), between


def test_ranks_find_their_nodes(gloo_pool: GlooPool) -> None:
    nodes: tuple[tuple[int, ...], ...] = ((0, 2), (1, 3))
    assert gloo_pool.run(4, members, "abab") == [
        (nodes, [0, 2], [0, 1]),
        (nodes, [1, 3], [0, 1]),
        (nodes, [0, 2], [2, 3]),
        (nodes, [1, 3], [2, 3]),
    ]
    nodes = ((0, 3), (1,), (2,))
    assert gloo_pool.run(4, members, "abca") == [
        (nodes, [0, 3], [0, 1, 2]),
        (nodes, [1], [0, 1, 2]),
        (nodes, [2], [0, 1, 2]),
        (nodes, [0, 3], None),
    ]


def of_this_machine(world: World) -> tuple[tuple[tuple[int, ...], ...], bool, bool]:
    groups = NodeGroups.of(world)
    return groups.nodes, groups.useful, NodeGroups.of(world) is groups


def test_ranks_on_one_machine_share_a_node_and_are_asked_once(gloo_pool: GlooPool) -> None:
    assert gloo_pool.run(4, of_this_machine) == [(((0, 1, 2, 3),), False, True)] * 4


def terms(num_rows: int) -> list[Tensor]:
    """What each of four ranks holds; every rank can compute it, so that each can compare."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(num_rows, 5, generator=generator, dtype=torch.float64) for _ in range(4)]


def compare_sums(world: World, layout: str) -> list[Tensor]:
    groups = NodeGroups.of(world, layout[world.rank])
    sums = []
    for num_rows in (0, 1, 3, 8):  # 5, 15 and 40 numbers: a node's ranks can share the last only evenly
        tensor = terms(num_rows)[world.rank].clone()
        sum_by_node(tensor, groups)
        torch.testing.assert_close(tensor, torch.stack(terms(num_rows)).sum(0), rtol=1e-12, atol=1e-12)
        flat = terms(num_rows)[world.rank].clone()
        dist.all_reduce(flat, group=world.group)
        torch.testing.assert_close(tensor, flat, rtol=1e-12, atol=1e-12)
        sums.append(tensor)
    return sums


@pytest.mark.parametrize("layout", LAYOUTS)
def test_sums_are_those_by_rank_and_the_same_bits_everywhere(gloo_pool: GlooPool, layout: str) -> None:
    first, *others = gloo_pool.run(4, compare_sums, layout)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def compare_rows(world: World, layout: str) -> None:
    groups = NodeGroups.of(world, layout[world.rank])
    for sizes in SIZES:
        blocks = [block[:size] for block, size in zip(terms(8), sizes, strict=True)]
        assert torch.equal(gather_by_node(blocks[world.rank], sizes, groups), torch.cat(blocks))
        by_rank = terms(sum(sizes))
        kept = by_rank[world.rank].clone()
        mine = scatter_sum_by_node(kept, sizes, groups)
        assert torch.equal(kept, by_rank[world.rank])  # a gradient must not be written to
        wanted = torch.stack(by_rank).sum(0).split(sizes)[world.rank]
        torch.testing.assert_close(mine, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", ["aabb", "abab", "abba", "aaaa", "abcd"])
def test_rows_come_in_rank_order_and_gradients_go_back(gloo_pool: GlooPool, layout: str) -> None:
    gloo_pool.run(4, compare_rows, layout)


def train(world: World, layout: str | None) -> list[Tensor]:
    """Parameters after three steps on uneven batches."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 7)).double()
    node = None if layout is None else layout[world.rank]
    model = data_parallel(net, world, by_node=layout is not None, node=node)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x = torch.randn(3, 20, 6, dtype=torch.float64)
    start, stop = [0, 3, 4, 11, 20][world.rank : world.rank + 2]
    for batch in x:
        optimizer.zero_grad()
        model(batch[start:stop] if world.num_ranks > 1 else batch).square().sum().div(20).backward()
        optimizer.step()
    return [parameter.detach() for parameter in net.parameters()]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_training_by_node_is_training(gloo_pool: GlooPool, layout: str) -> None:
    alone = gloo_pool.run(1, train, None)[0]
    by_rank = gloo_pool.run(4, train, None)[0]
    for parameters in gloo_pool.run(4, train, layout):
        torch.testing.assert_close(parameters, by_rank, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(parameters, alone, rtol=1e-12, atol=1e-12)


def mesh(world: World, layout: str) -> tuple[list[list[int]], int, int, tuple[str, ...] | None]:
    made = node_mesh(world, layout[world.rank])
    in_node = torch.tensor([world.rank])
    dist.all_reduce(in_node, group=made.get_group("local"))
    return made.mesh.tolist(), made.get_local_rank("node"), int(in_node), made.mesh_dim_names


def test_a_mesh_has_a_row_for_each_node(gloo_pool: GlooPool) -> None:
    names = ("node", "local")
    ranks = [[0, 2], [1, 3]]
    assert gloo_pool.run(4, mesh, "abab") == [(ranks, node, total, names) for node, total in [(0, 2), (1, 4)] * 2]


def test_uneven_nodes_make_no_mesh(gloo_pool: GlooPool) -> None:
    with pytest.raises(RuntimeError, match=r"ValueError: sharding within nodes .*, but 2 nodes have 3, 1"):
        gloo_pool.run(4, mesh, "aaab")

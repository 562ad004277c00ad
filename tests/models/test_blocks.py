"""The blocks of a backbone: found in every family, computed again or compiled without another result."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from dmlscale.models.backbone import FrozenBatchNorm, backbone
from dmlscale.models.blocks import find_blocks
from dmlscale.models.checkpointing import recompute_activations
from dmlscale.models.compilation import compile_blocks, require_compiler
from dmlscale.models.embedder import Embedder
from dmlscale.models.errors import ModelError

NUM_BLOCKS = {
    "resnet50": 16,  # 3 + 4 + 6 + 3
    "vit_tiny_patch16_224": 12,
    "convnext_atto": 15,  # 2 + 2 + 6 + 2, and three downsamplings
    "swin_tiny_patch4_window7_224": 15,  # 2 + 2 + 6 + 2, and three downsamplings
    "efficientnet_b0": 16,
    "regnetx_002": 13,
    "densenet121": 61,  # 6 + 12 + 24 + 16, and three transitions
}


@pytest.mark.parametrize("name", NUM_BLOCKS)
def test_finds_the_blocks_of_a_family(name: str) -> None:
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=0)
    blocks = find_blocks(net)
    assert len(blocks) == NUM_BLOCKS[name]
    inside = [id(module) for block in blocks for module in block.modules()]
    assert len(inside) == len(set(inside))  # none within another
    held = sum(p.numel() for block in blocks for p in block.parameters())
    assert held > 0.85 * sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("name", "at_least"), [("cait_xxs24_224", 24), ("inception_v3", 1), ("inception_resnet_v2", 40)]
)
def test_finds_blocks_where_a_network_names_depths_but_no_blocks(name: str, at_least: int) -> None:
    with torch.device("meta"):
        net = timm.create_model(name, num_classes=0)
    blocks = find_blocks(net)
    assert len(blocks) >= at_least
    calls: Counter[int] = Counter()
    for n, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, n=n: calls.update([n]))
    net(torch.empty(2, *net.default_cfg["input_size"], device="meta"))
    assert calls == Counter(range(len(blocks)))  # what no pass calls would not be fetched


def test_finds_blocks_elsewhere() -> None:
    net, _ = backbone("mlp", options={"in_features": 6, "hidden": [8, 9]})
    assert [type(block) for block in find_blocks(net)] == [nn.Linear, nn.Linear]
    frozen = FrozenBatchNorm(timm.create_model("resnet10t", num_classes=0))
    assert find_blocks(frozen) == find_blocks(frozen.net)
    whole = nn.Linear(3, 3)
    assert find_blocks(whole) == [whole]


CASES: dict[str, dict[str, Any]] = {
    "resnet10t": {},  # batch normalisation moves statistics
    "densenet121": {},  # its blocks are given lists that grow
    "convnext_atto": {"drop_path_rate": 0.5},
    "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 2, "proj_drop_rate": 0.5},
}


def embedder(name: str) -> Embedder:
    torch.manual_seed(0)
    return Embedder(*backbone(name, options=CASES[name]), 4)


def outcome(net: Embedder, images: Tensor) -> dict[str, Tensor]:
    """Embeddings, gradients and buffers."""
    torch.manual_seed(1)
    embeddings = net(images)
    (embeddings * torch.arange(4)).sum().backward()
    gradients = {f"gradient of {name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {"embeddings": embeddings.detach(), **gradients, **dict(net.named_buffers())}


@pytest.mark.parametrize("name", CASES)
def test_computing_again_changes_no_bit_and_no_name(name: str) -> None:
    images = torch.randn(3, 3, 32, 32)
    plain, again = embedder(name), embedder(name)
    recompute_activations(find_blocks(again.backbone))
    assert list(again.state_dict()) == list(plain.state_dict())
    wanted, found = outcome(plain, images), outcome(again, images)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[key], wanted[key]) for key in wanted)


def test_computing_again_keeps_less() -> None:
    def kept(net: Embedder) -> int:
        sizes: list[int] = []

        def keep(tensor: Tensor) -> Tensor:
            sizes.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            net(torch.randn(2, 3, 64, 64)).sum()
        return sum(sizes)

    plain, again = embedder("resnet10t"), embedder("resnet10t")
    recompute_activations(find_blocks(again.backbone))
    assert kept(again) < 0.6 * kept(plain)


@pytest.mark.parametrize("is_checkpointed", [False, True])
@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_an_empty_batch_passes_all_layers_and_changes_nothing(name: str, is_checkpointed: bool) -> None:
    net = embedder(name)
    if is_checkpointed:
        recompute_activations(find_blocks(net.backbone))
    before = {key: buffer.clone() for key, buffer in net.named_buffers()}
    embeddings = net(torch.empty(0, 3, 32, 32))
    assert embeddings.shape == (0, 4)
    embeddings.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())
    assert all(torch.equal(buffer, before[key]) for key, buffer in net.named_buffers())


def test_compiled_blocks_give_the_same_for_all_sizes_of_batches() -> None:
    def made() -> Embedder:
        torch.manual_seed(0)
        layers = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Dropout(0.5), nn.Linear(8, 8))
        return Embedder(nn.Sequential(nn.Identity(), nn.ModuleDict({"inner": layers})["inner"]), 8, 4)

    plain, compiled = made(), made()
    compile_blocks([compiled.backbone])
    assert list(compiled.state_dict()) == list(plain.state_dict())
    sizes = (9, 4, 7, 5)
    for size in sizes:
        images = torch.randn(size, 6)
        for net in (plain, compiled):
            net.zero_grad()
        wanted, found = outcome(plain, images), outcome(compiled, images)
        for key in wanted:
            torch.testing.assert_close(found[key], wanted[key], rtol=1e-4, atol=1e-5)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 0 < graphs < len(sizes)


def test_without_a_compiler_one_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    require_compiler()
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(ModelError, match=r"train\.compile=true needs a C\+\+ compiler"):
        compile_blocks([nn.Linear(2, 2)])

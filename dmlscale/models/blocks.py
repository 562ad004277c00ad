"""The blocks of a backbone: what is fetched, compiled and computed again as one."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from torch import nn

from dmlscale.models.backbone import FrozenBatchNorm

_Containers = nn.Sequential | nn.ModuleList


def find_blocks(net: nn.Module) -> list[nn.Module]:
    """The blocks of a network, in its order, none inside another; the network itself if it has none.

    A timm network says itself which its blocks are, for learning rates by depth: residual blocks of a ResNet or a
    ConvNeXt, transformer layers, and so on. Elsewhere (mlp) they are the modules with parameters in its sequences.

    Args:
        net: of `dmlscale.models.backbone`, or any other.
    """
    if isinstance(net, FrozenBatchNorm):
        net = net.net
    return _named_by_timm(net) or list(_in_sequences(net, False)) or [net]


def _named_by_timm(net: nn.Module) -> list[nn.Module]:
    matcher: Any = getattr(net, "group_matcher", None)
    if matcher is None:
        return []
    groups = matcher(coarse=False)
    if not isinstance(groups, dict):  # a function from a parameter's name to a depth (Inception-v3, CaiT)
        return []
    patterns = groups.get("blocks") or ()
    # One pattern, or pairs of a pattern and what orders it. One without a number is no block but a norm at the end.
    patterns = [patterns] if isinstance(patterns, str) else [pattern for pattern, _ in patterns]
    numbered = [pattern for pattern in map(re.compile, patterns) if pattern.groups]
    found: dict[str, nn.Module] = {}
    for name, module in net.named_modules():
        is_inside = any(name.startswith(f"{outer}.") for outer in found)
        if not is_inside and any(p.fullmatch(name) for p in numbered) and _has_parameters(module):
            found[name] = module
    return list(found.values())


def _in_sequences(module: nn.Module, is_in_sequence: bool) -> Iterator[nn.Module]:
    if is_in_sequence and not isinstance(module, _Containers):
        if _has_parameters(module):
            yield module
        return
    for child in module.children():
        yield from _in_sequences(child, isinstance(module, _Containers))


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None

"""What a piece of torch code takes: memory alive, floating-point operations, bytes moved."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_ATEN = torch.ops.aten
_IN_PLACE = {_ATEN.addmm_: _ATEN.addmm, _ATEN.baddbmm_: _ATEN.baddbmm}  # torch counts only their originals
_VIEWS = {_ATEN.detach, _ATEN.alias}


class Meter(TorchDispatchMode):
    """Watches every operation inside ``with``, the backward pass included.

    Works on real tensors and on fake ones (`torch._subclasses.FakeTensorMode`), which take no memory themselves.
    Memory that a kernel takes and gives back inside of one operation is not seen.

    Attributes:
        live: bytes of the tensors made here that are still held.
        peak: most bytes that were alive at a time; may be set back to `live`.
        flops: of matrix products, convolutions and attention; a multiplication and an addition count as two.
        moved: bytes read and written by all other operations.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.flops = self.moved = 0
        self._held: dict[int, int] = {}

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Calls the operation and notes what it took."""
        result = operation(*args, **(kwargs or {}))
        given, made = _tensors((args, kwargs or {})), _tensors(result)
        known = {_key(tensor) for tensor in given}
        for tensor in made:
            if _key(tensor) not in known:  # a view, or a result written into what was given, takes no memory
                self._hold(tensor)
        count = _counter_of(operation)
        if count is not None:
            self.flops += count(*args, **(kwargs or {}), out_val=result)
        elif not operation.is_view and operation.overloadpacket not in _VIEWS:
            self.moved += sum(tensor.numel() * tensor.element_size() for tensor in (*given, *made))
        return result

    def _hold(self, tensor: Tensor) -> None:
        key = _key(tensor)
        if key is None or key in self._held:
            return
        storage = tensor.untyped_storage()
        self._held[key] = storage.nbytes()
        self.live += self._held[key]
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._release, key)

    def _release(self, key: int) -> None:
        self.live -= self._held.pop(key)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _key(tensor: Tensor) -> int | None:
    """Of the tensor's memory; a sparse tensor has none but that of its parts, which were made before."""
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else None


def _counter_of(operation: Any) -> Callable[..., int] | None:
    packet = operation.overloadpacket
    counter: Callable[..., int] | None = flop_registry.get(_IN_PLACE.get(packet, packet))
    return counter

"""A loss over the global batch as one `nn.Module`, for any torch program, distributed or not."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dmlscale.distributed.batch import LocalBatch, places_in_batch
from dmlscale.distributed.class_bank import ClassBank
from dmlscale.distributed.class_block import ClassBlock, ClassRange
from dmlscale.distributed.class_sampling import ClassSampling, SampledClassBlock
from dmlscale.distributed.memory_bank import MemoryBank
from dmlscale.distributed.memory_block import MemoryBlock
from dmlscale.distributed.node_groups import grouped_by_node
from dmlscale.distributed.pair_block import PairBlock
from dmlscale.distributed.support import check_batch, require_memory_support, require_sampling_support
from dmlscale.distributed.unit import unit_rows
from dmlscale.distributed.world import World
from dmlscale.losses import LOSSES, Loss
from dmlscale.losses.draws import Chance
from dmlscale.losses.hyper_parameters import make


class GlobalLoss(nn.Module):
    """A metric-learning loss whose value and gradients are those of one process on the concatenated batch.

    Works in any ``torch.distributed`` program, and with no process group at all. Class losses keep one row (or K)
    per class in ``bank.weight``, of which each rank holds and updates its own range of classes: give it to the
    optimizer, but do not wrap this module in DDP. A bank that moves by its loss's own rule (center) has no gradient:
    call `step_bank` after the optimizer's step.

    Example:
        >>> loss = GlobalLoss("proxy_anchor", num_classes=100, embedding_dim=64, margin=0.1)
        >>> value = loss(torch.randn(8, 64, requires_grad=True), torch.arange(8))
        >>> value.backward()

    Args:
        name: a registered loss: "lifted_structure", "norm_softmax", "triplet", ...; `dmlscale losses` lists them.
        num_classes: C; needed by class losses, ignored by pair losses.
        embedding_dim: d.
        data_parallel: how the caller combines the backbone's gradients over ranks. "sum": they are summed.
            "mean": they are averaged, as torch's DDP does; the gradient handed to the embeddings is then multiplied
            by the number of ranks, so that the average comes out exact. The bank's gradient is exact either way.
        seed: of the bank's random start and of random choices; neither depends on the number of ranks.
        group: the process group; the default group if None.
        by_node: gather and sum within each node first, then between nodes; for slow links between nodes.
        memory_size: samples of past batches, over all ranks, that a pair loss compares with (cross-batch memory).
        memory_start: steps before the memory is used; it is filled from the beginning.
        class_sampling: look at a part of the classes at each step; a number is the rate of `ClassSampling`. The bank's
            gradient is then sparse: give it to an optimizer for sparse gradients, which touches the state of these
            rows only (`torch.optim.SparseAdam`).
        **hyper_parameters: the loss's own, e.g. ``margin=0.1``; unknown ones are an error.

    Raises:
        ValueError: unknown name or hyper-parameter, a value out of range, a class loss without ``num_classes``, or a
            loss that cannot work with a memory or with class sampling.

    Communication: see `PairBlock`, `ClassBlock` and `MemoryBlock`.
    """

    def __init__(
        self,
        name: str,
        *,
        num_classes: int | None = None,
        embedding_dim: int,
        data_parallel: Literal["sum", "mean"] = "sum",
        seed: int = 0,
        group: dist.ProcessGroup | None = None,
        by_node: bool = False,
        memory_size: int = 0,
        memory_start: int = 0,
        class_sampling: ClassSampling | float | None = None,
        **hyper_parameters: Any,
    ) -> None:
        super().__init__()
        if data_parallel not in ("sum", "mean"):
            raise ValueError(f"data_parallel must be 'sum' or 'mean', got {data_parallel!r}")
        self.name = name
        self.loss: Loss = make(LOSSES[name], name, hyper_parameters)
        self.world = grouped_by_node(World.current(group)) if by_node else World.current(group)
        self.embedding_dim = embedding_dim
        self._averaged = data_parallel == "mean"
        self._seed = seed
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.bank: ClassBank | None = None
        if self.loss.block == "classes":
            if num_classes is None:
                raise ValueError(f"{name} keeps a row per class: pass num_classes")
            rows = self.loss.rows_per_class
            self.bank = ClassBank(num_classes, rows, embedding_dim, seed=seed, world=self.world)
            self.bank.weight.requires_grad_(self.loss.bank_has_gradient)
        if isinstance(class_sampling, int | float):
            class_sampling = ClassSampling(class_sampling)
        self.class_sampling = class_sampling
        if class_sampling is not None:
            require_sampling_support(name, self.loss)
        self.memory: MemoryBank | None = None
        self._memory_start = memory_start
        if memory_size:
            require_memory_support(name, self.loss)
            self.memory = MemoryBank(memory_size, embedding_dim, world=self.world)
        self._bank_step: tuple[Tensor, Tensor] | None = None

    def forward(
        self, embeddings: Tensor, labels: Tensor, *, ids: Tensor | None = None, step: int | None = None
    ) -> Tensor:
        """The loss of the global batch.

        Args:
            embeddings: (b, d) this rank's; b may differ between ranks, also be 0. Half precision is computed in fp32.
            labels: (b,) int64 class ids, below ``num_classes`` for class losses.
            ids: (b,) int64 identities, unique in the global batch. Ties, random choices and the places in a memory
                follow them; without, they follow the place in the batch, rank after rank.
            step: optimizer steps done before, for random choices and the start of a memory; None counts the calls
                in training mode, which is part of the state_dict.

        Returns:
            () the same scalar on every rank.

        Raises:
            ValueError: shapes that do not fit, or a label outside the bank.
        """
        num_classes = None if self.bank is None else self.bank.num_classes
        check_batch(self.name, embeddings, labels, ids, self.embedding_dim, num_classes)
        step = int(self.steps) if step is None else step
        with torch.autocast(embeddings.device.type, enabled=False):
            if torch.is_grad_enabled() and not embeddings.requires_grad:
                # All ranks must take part in the backward collectives, also one without samples or trainable backbone.
                embeddings = embeddings.detach().requires_grad_()
            if embeddings.dtype in (torch.float16, torch.bfloat16):
                embeddings = embeddings.float()
            if self._averaged and self.world.num_ranks > 1:
                embeddings = _ScaledGradient.apply(embeddings, self.world.num_ranks)
            if self.loss.on_sphere:
                embeddings = unit_rows(embeddings)
            ids = places_in_batch(labels, self.world) if ids is None else ids
            block = self._block(LocalBatch(embeddings, labels, ids), step)
            # Comparisons hide nan from miners and empty sums; the probe is zero, or nan if any embedding is not finite.
            value: Tensor = self.loss(block) + block.probe
        if self.training:
            self.steps.fill_(step + 1)
            if isinstance(block, MemoryBlock) and self.memory is not None:
                block.enter(self.memory)
            if isinstance(block, ClassBlock) and self.loss.steps_bank:
                self._prepare_bank_step(block)
        return value

    def _block(self, batch: LocalBatch, step: int) -> PairBlock | ClassBlock | MemoryBlock:
        chance, on_sphere = Chance(self._seed, step), self.loss.on_sphere
        if self.memory is not None:
            used = step >= self._memory_start
            return MemoryBlock(batch, self.memory, self.world, on_sphere=on_sphere, use_memory=used)
        if self.bank is None:
            return PairBlock(batch, self.world, on_sphere=on_sphere, chance=chance)
        where = ClassRange(self.bank.start, self.bank.stop, self.bank.num_classes)
        if self.class_sampling is not None:
            return SampledClassBlock(
                batch, self.bank.weight, where, self.class_sampling, chance, world=self.world, on_sphere=on_sphere
            )
        return ClassBlock(batch, self.bank.weight, where, world=self.world, on_sphere=on_sphere)

    @torch.no_grad()
    def _prepare_bank_step(self, block: ClassBlock) -> None:
        assert self.bank is not None
        if self._bank_step is not None:
            warnings.warn(
                f"{self.name}: step_bank() was not called after the last batch, so its centers have not moved for it",
                stacklevel=3,
            )
        place, sums, counts = block.class_sums()
        rows = self.bank.weight[place, 0].to(sums.dtype)
        self._bank_step = place, self.loss.bank_step(rows, sums, counts)

    @torch.no_grad()
    def step_bank(self) -> None:
        """Moves the bank by the loss's own rule for the last batch, if it has one; call it after the optimizer."""
        if self._bank_step is not None and self.bank is not None:
            place, step = self._bank_step
            self.bank.weight[place, 0] += step.to(self.bank.weight.dtype)
            self._bank_step = None

    @torch.no_grad()
    def undoer(self) -> Callable[[], None]:
        """What brings back the present state, but for parameters: as if later batches had never been seen.

        Hold on to it no longer than for one step: until it is gone, a memory is kept twice.
        """
        steps, bank_step, memory = self.steps.clone(), self._bank_step, self.memory
        # Entering makes new tensors, so the old ones need no copies.
        held = None if memory is None else (memory.embeddings, memory.labels, memory.entered.clone())

        @torch.no_grad()
        def undo() -> None:
            self.steps.copy_(steps)
            self._bank_step = bank_step
            if memory is not None and held is not None:
                memory.embeddings, memory.labels = held[:2]
                memory.entered.copy_(held[2])

        return undo

    @torch.no_grad()
    def metrics(self) -> dict[str, Tensor]:
        """What the loss has to say of its bank, e.g. SoftTriple's effective number of centers; () each.

        Communication: a few scalars. All ranks call it together.
        """
        if self.bank is None or type(self.loss).metrics is Loss.metrics:
            return {}
        weight = self.bank.weight
        nothing = torch.zeros(0, dtype=torch.int64, device=weight.device)
        block = ClassBlock(
            LocalBatch(weight.new_zeros(0, self.embedding_dim), nothing, nothing),
            weight,
            ClassRange(self.bank.start, self.bank.stop, self.bank.num_classes),
            world=self.world,
            on_sphere=self.loss.on_sphere,
        )
        return dict(self.loss.metrics(block))

    def start_at_class_means(self, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Sets the bank to the class means of the given (embeddings, labels) batches; see `ClassBank`.

        Raises:
            ValueError: the loss has no bank.
        """
        if self.bank is None:
            raise ValueError(f"{self.name} has no rows per class that could start at class means")
        self.bank.start_at_class_means(batches, directions=not self.loss.rows_are_points)


class _ScaledGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied: undoes the averaging of the caller's data parallelism."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, factor: int) -> Tensor:
        ctx.factor = factor
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None

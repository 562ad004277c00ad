"""Evaluation of a model inside a worker: all ranks embed, search and sum; rank 0 draws."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from dmlscale.config.schema import Config
from dmlscale.data.index import Index
from dmlscale.data.reader import LostSampleError, Reader
from dmlscale.data.types import Batch
from dmlscale.distributed.world import World
from dmlscale.evaluation.embed import Embedded, embed, raw_pixels
from dmlscale.evaluation.evaluate import evaluate, gather_embedded
from dmlscale.evaluation.figures import retrieval_gallery
from dmlscale.evaluation.gallery import gallery_rows
from dmlscale.evaluation.neighbors import Metric
from dmlscale.evaluation.thumbnails import thumbnail
from dmlscale.launch.build import build_decoder, build_eval_batches
from dmlscale.launch.ranks import OverRanks


class Evaluator:
    """Zero-shot retrieval of the evaluation split: among itself, or in the gallery split where the config names one.

    Args:
        config: of the run.
        index: the dataset.
        world: the ranks; all of them call every method.
        device: of the model.
    """

    def __init__(self, config: Config, index: Index, world: World, device: torch.device) -> None:
        self._config, self._index, self._world, self._device = config, index, world, device
        self._ranks = OverRanks(world, device)
        splits = (config.data.eval_split, config.data.gallery_split)
        self._splits = [split for split in splits if split is not None]

    def model(self, net: nn.Module) -> tuple[dict[str, float], Embedded]:
        """Metrics by name, the same on every rank, and this rank's embeddings: those of queries and gallery."""
        local = embed(net, self._batches(), self._device)
        metrics = self._measure(local, self._config.evaluation.metric, with_nmi=True)
        found = int(self._ranks.all_sum(torch.tensor([len(local.ids)])))
        expected = sum(len(self._index.split(name)) for name in self._splits)
        return metrics | {"num_skipped": float(expected - found)}, local

    def raw_pixels(self) -> dict[str, float]:
        """The same retrieval metrics for the pixels themselves: the line to beat."""
        measured = self._measure(raw_pixels(self._batches()), "cosine", with_nmi=False)
        return {name: value for name, value in measured.items() if not name.startswith("num_")}

    def gallery(self, local: Embedded) -> Figure | None:
        """Queries and their nearest neighbours; on rank 0, None elsewhere.

        Args:
            local: this rank's embeddings, as from `model`.
        """
        queries, gallery = self._sides(local)
        queries, gallery = self._of_all_ranks(queries), None if gallery is None else self._of_all_ranks(gallery)
        if self._world.rank != 0 or self._config.evaluation.gallery_queries == 0:
            return None
        rows = gallery_rows(
            queries,
            gallery,
            num_queries=self._config.evaluation.gallery_queries,
            metric=self._config.evaluation.metric,
            seed=self._config.run.seed,
        )
        reader = Reader(self._index, build_decoder(self._config, self._index))

        def load_image(row_id: int) -> Any:
            try:
                return thumbnail(reader.decoded(row_id))
            except LostSampleError:  # another rank could read it
                return np.zeros((8, 8), np.uint8)

        try:
            return retrieval_gallery(rows, load_image, class_name=lambda label: self._index.class_names[label])
        finally:
            reader.close()

    def _batches(self) -> Iterator[Batch]:
        """This rank's share of the queries, then that of the gallery."""
        shares = [build_eval_batches(self._config, self._index, split, self._world) for split in self._splits]
        return chain.from_iterable(shares)

    def _sides(self, local: Embedded) -> tuple[Embedded, Embedded | None]:
        """Queries and gallery, told apart by the splits of their rows; None where the queries are their own gallery."""
        if self._config.data.gallery_split is None:
            return local, None
        number = self._index.splits.index(self._config.data.eval_split)
        is_query = torch.from_numpy(self._index.columns.splits[local.ids.numpy()] == number)
        return Embedded(*(values[is_query] for values in local)), Embedded(*(values[~is_query] for values in local))

    def _of_all_ranks(self, local: Embedded) -> Embedded:
        return gather_embedded(local, self._ranks.gather, rank=self._world.rank)[0]

    def _measure(self, local: Embedded, metric: Metric, *, with_nmi: bool) -> dict[str, float]:
        return evaluate(
            *self._sides(local),
            gather=self._ranks.gather,
            all_sum=self._ranks.all_sum,
            rank=self._world.rank,
            ks=self._config.evaluation.ks,
            metric=metric,
            with_nmi=with_nmi,
            seed=self._config.run.seed,
        )

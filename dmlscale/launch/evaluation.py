"""Evaluation of a model inside a worker: all ranks embed, search and sum; rank 0 draws."""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from dmlscale.config.schema import Config
from dmlscale.data.index import Index
from dmlscale.data.reader import Reader
from dmlscale.distributed.world import World
from dmlscale.evaluation.embed import Embedded, embed, raw_pixels
from dmlscale.evaluation.evaluate import evaluate, gather_embedded
from dmlscale.evaluation.figures import retrieval_gallery
from dmlscale.evaluation.gallery import gallery_rows
from dmlscale.evaluation.thumbnails import thumbnail
from dmlscale.launch.build import build_decoder, build_eval_batches
from dmlscale.launch.ranks import OverRanks


class Evaluator:
    """Zero-shot retrieval of the evaluation split.

    Args:
        config: of the run.
        index: the dataset.
        world: the ranks; all of them call every method.
        device: of the model.
    """

    def __init__(self, config: Config, index: Index, world: World, device: torch.device) -> None:
        self._config, self._index, self._world, self._device = config, index, world, device
        self._split = config.data.eval_split
        self._ranks = OverRanks(world, device)

    def model(self, net: nn.Module) -> tuple[dict[str, float], Embedded]:
        """Metrics by name, the same on every rank, and this rank's embeddings."""
        local = embed(net, self._batches(), self._device)
        return self._measure(local, self._config.evaluation.metric, with_nmi=True), local

    def raw_pixels(self) -> dict[str, float]:
        """The same retrieval metrics for the pixels themselves: the line to beat."""
        measured = self._measure(raw_pixels(self._batches()), "cosine", with_nmi=False)
        return {name: value for name, value in measured.items() if not name.startswith("num_")}

    def gallery(self, local: Embedded) -> Figure | None:
        """Queries and their nearest neighbours; on rank 0, None elsewhere."""
        everything, _ = gather_embedded(local, self._ranks.gather, rank=self._world.rank)
        if self._world.rank != 0 or self._config.evaluation.gallery_queries == 0:
            return None
        rows = gallery_rows(
            everything,
            num_queries=self._config.evaluation.gallery_queries,
            metric=self._config.evaluation.metric,
            seed=self._config.run.seed,
        )
        reader = Reader(self._index, build_decoder(self._config))

        def load_image(row_id: int) -> Any:
            return thumbnail(reader.decoded(row_id))

        try:
            return retrieval_gallery(rows, load_image, class_name=lambda label: self._index.class_names[label])
        finally:
            reader.close()

    def _batches(self) -> Any:
        return build_eval_batches(self._config, self._index, self._split, self._world)

    def _measure(self, local: Embedded, metric: Any, *, with_nmi: bool) -> dict[str, float]:
        return evaluate(
            local,
            gather=self._ranks.gather,
            all_sum=self._ranks.all_sum,
            rank=self._world.rank,
            ks=self._config.evaluation.ks,
            metric=metric,
            with_nmi=with_nmi,
            seed=self._config.run.seed,
        )

"""Slow loops from the definitions, to compare the metrics with."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from dmlscale.evaluation.embed import Embedded


def random_samples(
    num_samples: int = 60, num_classes: int = 9, dim: int = 8, seed: int = 0, spread: float = 1.0
) -> Embedded:
    """Noisy class directions; ids in no particular order and with gaps."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (num_samples,), generator=generator)
    means = torch.randn(num_classes, dim, generator=generator)
    embeddings = means[labels] + spread * torch.randn(num_samples, dim, generator=generator)
    ids = torch.randperm(3 * num_samples, generator=generator)[:num_samples]
    return Embedded(embeddings, labels, ids)


def split(samples: Embedded, sizes: list[int]) -> list[Embedded]:
    assert sum(sizes) == len(samples.labels)
    return [Embedded(*parts) for parts in zip(*(tensor.split(sizes) for tensor in samples), strict=True)]


def query_and_gallery(seed: int = 0) -> tuple[Embedded, Embedded]:
    """Queries of the classes 0..8 and a gallery of the classes 3..11: some of either are missing on the other side."""
    samples = random_samples(150, num_classes=12, seed=seed)
    is_query = torch.arange(150) < 45
    queries = Embedded(*(tensor[is_query & (samples.labels < 9)] for tensor in samples))
    gallery = Embedded(*(tensor[~is_query & (samples.labels > 2)] for tensor in samples))
    assert 0 < len(set(queries.labels.tolist()) - set(gallery.labels.tolist())) < len(set(queries.labels.tolist()))
    return queries, gallery


def brute_force(
    embeddings: NDArray[np.floating],
    labels: NDArray[np.integer],
    ks: tuple[int, ...],
    gallery: tuple[NDArray[np.floating], NDArray[np.integer]] | None = None,
) -> dict[str, float]:
    """Cosine retrieval of each sample among the others or in a gallery, one query and one rank at a time."""
    unit = _directions(embeddings)
    there, there_labels = (unit, labels) if gallery is None else (_directions(gallery[0]), gallery[1])
    collected: dict[str, list[float]] = {name: [] for name in ("map_at_r", "r_precision", "precision_at_1")}
    collected |= {f"recall_at_{k}": [] for k in ks}
    for query in range(len(unit)):
        others = [row for row in range(len(there)) if gallery is not None or row != query]
        others.sort(key=lambda row: (-float(unit[query] @ there[row]), row))
        hits = [int(there_labels[row]) == int(labels[query]) for row in others]
        num_relevant = sum(hits)
        if num_relevant == 0:
            continue
        for k in ks:
            collected[f"recall_at_{k}"].append(float(any(hits[:k])))
        collected["precision_at_1"].append(float(hits[0]))
        collected["r_precision"].append(sum(hits[:num_relevant]) / num_relevant)
        precisions = [sum(hits[: i + 1]) / (i + 1) * hits[i] for i in range(num_relevant)]
        collected["map_at_r"].append(sum(precisions) / num_relevant)
    return {name: float(np.mean(values)) for name, values in collected.items()}


def _directions(embeddings: NDArray[np.floating]) -> NDArray[np.float64]:
    rows = embeddings.astype(np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def sorted_neighbors(
    queries: NDArray[np.floating],
    gallery: NDArray[np.floating],
    k: int,
    metric: str,
    exclude: NDArray[np.int64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All pairs sorted by closeness, equally close ones by row: (q, k) values and rows, -1 where there are too few."""
    far = -np.inf if metric == "cosine" else np.inf
    values, rows = np.full((len(queries), k), far), np.full((len(queries), k), -1)
    unit = (_directions_32(queries), _directions_32(gallery)) if metric == "cosine" else (queries, gallery)
    for number, query in enumerate(unit[0].astype(np.float64)):
        if metric == "cosine":
            closeness = np.array([float(query @ item) for item in unit[1].astype(np.float64)])
        else:
            closeness = -np.sqrt(((unit[1].astype(np.float64) - query) ** 2).sum(axis=1))
        candidates = np.arange(len(gallery))
        if exclude is not None:
            candidates = candidates[candidates != exclude[number]]
        single = closeness[candidates].astype(np.float32)
        order = candidates[np.lexsort((candidates, -single))][:k]
        rows[number, : len(order)] = order
        values[number, : len(order)] = closeness[order] if metric == "cosine" else -closeness[order]
    return values, rows


def _directions_32(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    """Of unit length as far as float32 goes, so that copies of a vector stay copies."""
    rows = rows.astype(np.float32).astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(lengths > 0, lengths, 1), np.float32)

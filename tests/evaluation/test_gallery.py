import numpy as np
import torch

from dmlscale.evaluation.embed import Embedded
from dmlscale.evaluation.gallery import gallery_rows, pick_queries
from tests.evaluation.oracles import query_and_gallery, random_samples


def test_a_third_each_of_worst_random_and_best() -> None:
    scores = np.linspace(0, 1, 100)
    picked = pick_queries(scores, 9, seed=1)
    assert [query.kind for query in picked] == ["worst"] * 3 + ["random"] * 3 + ["best"] * 3
    assert len({query.row for query in picked}) == 9
    random_rows = {query.row for query in picked if query.kind == "random"}
    worst = [row for row in range(100) if row not in random_rows][:3]
    assert [query.row for query in picked[:3]] == worst
    assert all(query.score == scores[query.row] for query in picked)
    assert picked == pick_queries(scores, 9, seed=1)
    assert picked != pick_queries(scores, 9, seed=2)


def test_fewer_queries_than_asked_for_and_none_without_an_answer() -> None:
    scores = np.array([np.nan, 0.5, np.nan, 0.25])
    picked = pick_queries(scores, 9)
    assert sorted(query.row for query in picked) == [1, 3]
    assert pick_queries(np.array([np.nan]), 3) == []
    assert [query.kind for query in pick_queries(np.arange(50.0), 7)] == ["worst"] * 3 + ["random"] * 2 + ["best"] * 2


def test_every_class_once_before_any_twice() -> None:
    labels = np.repeat(np.arange(5), 10)
    picked = pick_queries(labels / 5, 5, labels=labels)
    assert sorted(labels[query.row] for query in picked) == [0, 1, 2, 3, 4]
    assert len({query.row for query in pick_queries(labels / 5, 9, labels=labels)}) == 9


def test_rows_hold_the_nearest_others_by_id() -> None:
    samples = random_samples(50)
    rows = gallery_rows(samples, num_queries=6, num_neighbors=4, seed=2)
    assert len(rows) == 6
    label_of = dict(zip(samples.ids.tolist(), samples.labels.tolist(), strict=True))
    unit = torch.nn.functional.normalize(samples.embeddings)
    for row in rows:
        position = samples.ids.tolist().index(row.id)
        similarity = unit @ unit[position]
        similarity[position] = -2
        values, order = similarity.topk(4)
        assert [neighbor.id for neighbor in row.neighbors] == samples.ids[order].tolist()
        np.testing.assert_allclose([neighbor.closeness for neighbor in row.neighbors], values, atol=1e-6)
        assert row.label == label_of[row.id]
        assert all(neighbor.label == label_of[neighbor.id] for neighbor in row.neighbors)


def test_rows_hold_the_nearest_of_a_gallery() -> None:
    queries, gallery = query_and_gallery()
    gallery = gallery._replace(embeddings=torch.cat([queries.embeddings[:5], gallery.embeddings[5:]]))
    rows = gallery_rows(queries, gallery, num_queries=9, num_neighbors=4)
    assert len(rows) == 9
    answerable = set(gallery.labels.tolist())
    unit = [torch.nn.functional.normalize(side.embeddings) for side in (queries, gallery)]
    for row in rows:
        assert row.label in answerable
        values, order = (unit[1] @ unit[0][queries.ids.tolist().index(row.id)]).topk(4)
        assert [neighbor.id for neighbor in row.neighbors] == gallery.ids[order].tolist()
        assert [neighbor.label for neighbor in row.neighbors] == gallery.labels[order].tolist()
        np.testing.assert_allclose([neighbor.closeness for neighbor in row.neighbors], values, atol=1e-6)


def test_small_sets_give_what_they_have() -> None:
    two = Embedded(torch.eye(2), torch.tensor([4, 4]), torch.tensor([8, 9]))
    rows = gallery_rows(two, num_queries=9, num_neighbors=7)
    assert [[neighbor.id for neighbor in row.neighbors] for row in sorted(rows)] == [[9], [8]]
    assert gallery_rows(two._replace(labels=torch.tensor([0, 1]))) == []

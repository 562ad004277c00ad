from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmlscale.evaluation.figures.per_class import per_class_recall
from dmlscale.evaluation.figures.worst_classes import WorstClass, worst_classes
from tests.evaluation.figures.drawn import require_legible, texts

HOSTILE = ["<script>alert(1)</script>", "$x^2", "漢字", "x" * 70, "дятел", "a", "b", "c"]


@settings(deadline=None)  # a busy machine
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=0, max_size=60), st.integers(0, 5))
def test_worst_classes_by_hand(pairs: list[tuple[int, int]], most: int) -> None:
    """(class of the query, class of its nearest neighbour), against plain counting; labels are large and unordered."""
    labels = np.array([2**60 - 3 * c for c in range(8)])
    counts = np.array([sum(own == c for own, _ in pairs) for c in range(8)])
    hits = np.array([sum(own == found == c for own, found in pairs) for c in range(8)])
    confusions = np.array([(labels[own], labels[found]) for own, found in pairs if own != found]).reshape(-1, 2)
    worst = worst_classes(labels, counts, hits, confusions, most, class_name=lambda label: f"c{label}")

    wanted = []
    for c in range(8):
        if counts[c] and hits[c] < counts[c]:
            wanted.append((hits[c] / counts[c], -counts[c], labels[c], c))
    assert len(worst) == min(most, len(wanted))
    for row, (recall, minus_count, label, c) in zip(worst, sorted(wanted), strict=False):
        others = sorted((-sum(pair == (c, o) for pair in pairs), labels[o], o) for o in range(8) if o != c)
        expected = [(f"c{o}", -n / counts[c]) for n, o, _ in others if n][:2]
        assert (row.name, row.recall, row.count) == (f"c{label}", recall, -minus_count)
        assert [name for name, _ in row.confused_with] == [name for name, _ in expected]
        assert [share for _, share in row.confused_with] == pytest.approx([share for _, share in expected])


def test_a_part_of_the_confusions_estimates_the_shares() -> None:
    """Of 8 wrong queries among 10, four are known: three quarters of them to class 1."""
    known = np.array([(0, 1), (0, 1), (0, 2), (0, 1)])
    (worst,) = worst_classes(np.array([0]), np.array([10]), np.array([2]), known)
    assert (worst.name, worst.recall, worst.count) == ("0", 0.2, 10)
    assert dict(worst.confused_with) == pytest.approx({"1": 0.6, "2": 0.2})


def test_no_confusions_known() -> None:
    assert worst_classes(np.array([7]), np.array([3]), np.array([0]), np.zeros((0, 2)))[0].confused_with == []


def test_worst_classes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"must all be \(C,\)"):
        worst_classes(np.arange(3), np.arange(2), np.arange(3), np.zeros((0, 2)))


def test_names_recalls_and_confusions_are_written() -> None:
    worst = [WorstClass(name, 0.125, 1234, [("other", 0.5), (name, 0.25)]) for name in HOSTILE]
    recalls = np.linspace(0, 1, 500)
    figure = per_class_recall(recalls, np.full(500, 8), [str(c) for c in range(500)], worst)
    written = texts(figure)
    assert {"$x^2", "дятел", "12.5 %", "1,234"} <= set(written)
    assert any("500 classes, 4,000 queries" in text and "right in 1 classes, none in 1" in text for text in written)
    require_legible(figure)


@pytest.mark.parametrize(
    ("num_classes", "per_class", "recall"),
    [(2, 30, 0.5), (1, 1, 0.0), (12, 1, 0.0), (13, 1, 0.0), (40, 5, 1.0), (5000, 12, 0.7)],
)
def test_any_number_of_classes(num_classes: int, per_class: int, recall: float) -> None:
    rng = np.random.default_rng(0)
    hits = rng.binomial(per_class, recall, num_classes)
    counts = np.full(num_classes, per_class)
    names = [HOSTILE[c % len(HOSTILE)] for c in range(num_classes)]
    confusions = rng.integers(0, num_classes, (num_classes * per_class, 2))
    worst = worst_classes(np.arange(num_classes), counts, hits, confusions, class_name=names.__getitem__)
    figure = per_class_recall(hits / counts, counts, names, worst)
    assert ("The nearest neighbour of every query is of its class." in texts(figure)) == (recall == 1)
    require_legible(figure)


def test_classes_without_a_query_are_left_out() -> None:
    figure = per_class_recall(np.array([np.nan, 0.5]), np.array([0, 4]), ["unseen", "seen"], [])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["seen"]
    with pytest.raises(ValueError, match="needs a class with a query"):
        per_class_recall(np.array([np.nan]), np.array([0]), ["unseen"], [])
    with pytest.raises(ValueError, match="2 recalls, 1 counts"):
        per_class_recall(np.ones(2), np.ones(1), ["a", "b"], [])

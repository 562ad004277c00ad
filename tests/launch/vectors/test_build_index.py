"""``dmlscale index``: the folder that it writes, and what it says of it."""

from __future__ import annotations

import io
import json
import resource
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dmlscale.cli import main
from dmlscale.data.embeddings_file import EmbeddingsWriter, Provenance
from dmlscale.data.errors import DataError
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.vectors.build_index import build_index
from dmlscale.launch.vectors.index_folder import open_index_folder

MADE = Provenance("small at step 20", "ab12", "runs/small", "cosine", "data/glyphs", "image")


def write_embeddings(path: Path, vectors: np.ndarray, metric: str = "cosine") -> str:
    made = Provenance(**{**MADE.__dict__, "metric": metric})
    with EmbeddingsWriter(path, vectors.shape[1], made) as writer:
        ids = [f"id{n}" for n in range(len(vectors))]
        writer.append(ids, [f"class {n % 3}" for n in range(len(vectors))], [None] * len(vectors), vectors)
        writer.publish()
    return str(path)


def parquet_of(table: pa.Table) -> bytes:
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


@pytest.fixture
def embeddings(tmp_path: Path) -> str:
    vectors = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    return write_embeddings(tmp_path / "e.parquet", vectors)


@pytest.mark.parametrize(("kind", "size"), [("flat", 24), ("hnsw", 24 + 256)])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_a_folder_holds_index_names_and_what_was_measured(
    kind: str, size: int, metric: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vectors = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    given = write_embeddings(tmp_path / "e.parquet", vectors, metric)
    out = tmp_path / "index"
    assert main(["index", given, str(out), "--kind", kind, "--queries", "50"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["ids.parquet", "index.faiss", "index.json"]
    told = json.loads((out / "index.json").read_text())
    assert (told["kind"], told["num_vectors"], told["embedding_dim"]) == (kind, 300, 6)
    assert told["embeddings"] == {**MADE.__dict__, "metric": metric}
    assert told["recall"]["at"] == {"1": 1.0, "10": 1.0}
    assert told["recall"]["num_queries"] == 50
    assert told["bytes_per_vector"] == pytest.approx(size, rel=0.2)
    shown = capsys.readouterr().out
    assert "300 vectors of 6 dimensions by small at step 20" in shown
    assert "recall@1 1.0000, recall@10 1.0000 against exact search, of 50 vectors" in shown
    opened = open_index_folder(out)
    values, rows = opened.index.search(vectors[:7], 1)
    assert rows[:, 0].tolist() == list(range(7))
    np.testing.assert_allclose(values[:, 0], 1.0 if metric == "cosine" else 0.0, atol=1e-3)
    assert opened.names.column("id").to_pylist() == [f"id{n}" for n in range(300)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.parquet", "index"]


def test_too_few_vectors_and_no_vectors_to_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_embeddings(tmp_path / "one.parquet", np.ones((1, 3), np.float32))
    assert main(["index", one, str(tmp_path / "index"), "--kind", "ivf_pq"]) == 2
    assert "--kind ivf_pq: 1 vectors are too few to train ivf_pq" in capsys.readouterr().err
    assert not (tmp_path / "index").exists()
    assert build_index(one, str(tmp_path / "index")) == 0
    assert "recall is not measured" in capsys.readouterr().out
    assert json.loads((tmp_path / "index" / "index.json").read_text())["recall"] is None


def test_wrong_options(embeddings: str, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "empty").mkdir()
    for out in ("full", "full/file", "e.parquet"):
        with pytest.raises(LaunchError, match="is there already and is no empty folder"):
            build_index(embeddings, str(tmp_path / out))
    with pytest.raises(LaunchError, match=r"cannot write .*: Not a directory"):
        build_index(embeddings, str(tmp_path / "e.parquet" / "index"))
    with pytest.raises(LaunchError, match="--queries -1"):
        build_index(embeddings, str(tmp_path / "new"), num_queries=-1)
    with pytest.raises(DataError, match="there is no"):
        build_index(embeddings + "x", str(tmp_path / "new"))
    assert build_index(embeddings, str(tmp_path / "empty"), num_queries=0) == 0


def test_a_folder_that_does_not_fit_together_is_refused(embeddings: str, tmp_path: Path) -> None:
    for name in ("a", "b"):
        build_index(embeddings, str(tmp_path / name), num_queries=0)
    folder = tmp_path / "a"
    good = {path.name: path.read_bytes() for path in folder.iterdir()}
    other = write_embeddings(tmp_path / "other.parquet", np.ones((4, 5), np.float32))
    build_index(other, str(tmp_path / "other"), num_queries=0)
    told = json.loads(good["index.json"])
    table = pq.read_table(folder / "ids.parquet")
    without_ids, not_text = (
        parquet_of(table.set_column(0, "id", column))
        for column in (pa.nulls(300, pa.string()), pa.array([b"\xff"] * 300).view(pa.string()))
    )
    cases = [
        ("index.faiss", (tmp_path / "other" / "index.faiss").read_bytes(), "holds 1 vectors, 300 different ones are"),
        ("index.faiss", good["index.faiss"][:100], "is damaged"),
        ("index.faiss", None, "is damaged .there is no"),
        ("ids.parquet", (tmp_path / "other" / "ids.parquet").read_bytes(), "holds 300 vectors, 1 different ones"),
        ("ids.parquet", b"text", "is damaged"),
        ("ids.parquet", without_ids, "row 0 has no id"),
        ("ids.parquet", not_text, "no text in UTF-8"),
        ("index.json", b"{", r"index\.json is damaged"),
        ("index.json", b"[" * 200_000, r"index\.json is damaged"),
        ("index.json", b"[]", "does not describe an index"),
        ("index.json", json.dumps({**told, "format_version": 9}).encode(), "format_version 9"),
        ("index.json", json.dumps({k: v for k, v in told.items() if k != "embeddings"}).encode(), "'embeddings' is m"),
        ("index.json", json.dumps({**told, "embedding_dim": 5}).encode(), "tells 300 of 5"),
        ("index.json", json.dumps({**told, "num_vectors": 4}).encode(), "ids.parquet has 300 rows.* tells 4 of 6"),
        ("index.json", json.dumps({**told, "embeddings": {**told["embeddings"], "metric": "l1"}}).encode(), "'l1'"),
        ("index.json", None, r"a is no index \(it has no index\.json\)"),
    ]
    for name, content, message in cases:
        if content is None:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content)
        with pytest.raises(LaunchError, match=message):
            open_index_folder(folder)
        (folder / name).write_bytes(good[name])
    assert pq.read_table(folder / "ids.parquet").num_rows == len(open_index_folder(folder).names) == 300


def test_copies_share_a_place_and_are_all_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    vectors = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    vectors[100:] = vectors[7]
    given = write_embeddings(tmp_path / "e.parquet", vectors)
    assert build_index(given, str(tmp_path / "index"), kind="hnsw") == 0
    shown = capsys.readouterr().out
    assert "300 vectors (100 different) of 6 dimensions" in shown
    assert "of 100 vectors among all others" in shown
    told = json.loads((tmp_path / "index" / "index.json").read_text())
    assert (told["num_vectors"], told["num_different"]) == (300, 100)
    opened = open_index_folder(tmp_path / "index")
    _, rows = opened.index.search(vectors[150:151], 201)
    assert sorted(opened.names.take(rows[0]).column("id").to_pylist()) == sorted(
        f"id{n}" for n in [7, *range(100, 300)]
    )


def test_a_full_disk_leaves_no_index(embeddings: str, tmp_path: Path) -> None:
    build_index(embeddings, str(tmp_path / "whole"), num_queries=0)
    sizes = {file.stat().st_size for file in (tmp_path / "whole").iterdir()}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, *(size - 1 for size in sizes)):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        try:
            with pytest.raises(LaunchError, match=r"cannot write .*index.*: .*too large"):
                build_index(embeddings, str(tmp_path / "index"), num_queries=0)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["e.parquet", "whole"]

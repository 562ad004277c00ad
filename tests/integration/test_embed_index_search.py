"""From a training to neighbours of a picture, by the commands alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmlscale.cli import main
from dmlscale.data.embeddings_file import read_embeddings
from dmlscale.data.index import Index
from dmlscale.data.reader import Reader
from dmlscale.distributed.world import World
from dmlscale.launch.models.model_folder import load_model
from tests.integration.runs import task_of, work_on_rank


def test_from_a_training_to_neighbours(
    config_file: Path, glyphs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = task_of(config_file, "few", "train.steps=4", "evaluation.raw_pixels=false")
    work_on_rank(World(), task)
    model = load_model(task.folder)
    assert main(["embed", task.folder, str(glyphs), str(tmp_path / "test.parquet"), "--split", "test"]) == 0
    embedded = read_embeddings(tmp_path / "test.parquet")
    index = Index.load(glyphs)
    test = index.split("test")
    assert len(embedded.names) == len(test)
    assert embedded.names.column("id").to_pylist() == [index.key(row) for row in test.row_ids.tolist()]
    assert embedded.names.column("label").to_pylist() == [index.class_names[label] for label in test.labels.tolist()]
    reader = Reader(index, model.decoder)
    parts = [reader.read(row) for row in test.row_ids[:20].tolist()]
    np.testing.assert_allclose(embedded.vectors[:20], model.embed_parts(parts), atol=1e-5)

    # The same samples as files give the same vectors.
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, (content,) in enumerate(parts):
        (folder / f"{number:02d}.png").write_bytes(content)
    assert main(["embed", task.folder, str(folder), str(tmp_path / "files.parquet")]) == 0
    np.testing.assert_allclose(read_embeddings(tmp_path / "files.parquet").vectors, embedded.vectors[:20], atol=1e-5)

    assert main(["index", str(tmp_path / "test.parquet"), str(tmp_path / "index"), "--kind", "hnsw"]) == 0
    capsys.readouterr()
    query, drawn = folder / "07.png", tmp_path / "drawn.png"
    assert main(["search", str(query), str(tmp_path / "index"), "--pictures", str(drawn), "-k", "7"]) == 0
    out, err = capsys.readouterr()
    first = out.splitlines()[1].split()
    assert first[:3] == ["1", "1.0000", embedded.names.column("id")[7].as_py()]
    assert len(out.splitlines()) == 1 + 7 + 1
    assert err == ""
    assert Image.open(drawn).format == "PNG"

"""Every sample that can be read gets the vector that the model makes of it, under its own name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dmlscale.cli import main
from dmlscale.data.embeddings_file import read_embeddings
from dmlscale.data.errors import DataError
from dmlscale.data.index import Index
from dmlscale.data.packing.pack import pack
from dmlscale.data.packing.writing import PackOptions
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.models.export import export
from dmlscale.launch.vectors.embed import embed
from tests.data.damage import flip
from tests.data.listed import Listed, item
from tests.launch.test_every_input import CASES
from tests.launch.vectors.embedded import draw, vectors_of, write_model, write_pictures

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("runs") / "mine")


@pytest.fixture
def packed(tmp_path: Path) -> tuple[Path, dict[str, bytes]]:
    """Nine pictures of three classes, six to train."""
    pictures = {f"s{number}": draw(number) for number in range(9)}
    listed = tuple(
        item(key, "abc"[number % 3], "train" if number < 6 else "test", parts=[content])
        for number, (key, content) in enumerate(pictures.items())
    )
    pack(Listed(listed), tmp_path / "packed", PackOptions(num_processes=1))
    return tmp_path / "packed", pictures


def names_of(path: Path) -> dict[str, tuple[str | None, str | None]]:
    return {row["id"]: (row["label"], row["split"]) for row in read_embeddings(path).names.to_pylist()}


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_a_folder_of_pictures(model: str, batch_size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "pictures", tmp_path / "out.parquet"
    pictures = write_pictures(folder)
    assert embed(model, str(folder), str(out), batch_size=batch_size) == 0
    made = read_embeddings(out)
    ids = made.names.column("id").to_pylist()
    assert sorted(ids) == sorted(pictures)
    np.testing.assert_allclose(made.vectors, vectors_of(model, [pictures[name] for name in ids]), atol=1e-5)
    assert set(names_of(out).values()) == {(None, None)}
    told = made.provenance
    assert (told.source, told.model_path, told.metric, told.input) == (str(folder), model, "cosine", "image")
    shown = capsys.readouterr().out
    assert "7 embeddings of 5 dimensions by mine at step 7" in shown
    assert "passed over 2 files that are no samples by name, e.g. birds/list.csv" in shown


def test_one_file_whatever_its_name(model: str, tmp_path: Path) -> None:
    (tmp_path / "picture.of a bird").write_bytes(draw(3))
    assert embed(model, str(tmp_path / "picture.of a bird"), str(tmp_path / "out.parquet")) == 0
    made = read_embeddings(tmp_path / "out.parquet")
    assert made.names.column("id").to_pylist() == ["picture.of a bird"]
    np.testing.assert_allclose(made.vectors, vectors_of(model, [draw(3)]), atol=1e-5)


@pytest.mark.parametrize(("split", "expected"), [(None, range(9)), ("test", range(6, 9))])
def test_a_packed_dataset(
    model: str, packed: tuple[Path, dict[str, bytes]], split: str | None, expected: range, tmp_path: Path
) -> None:
    folder, pictures = packed
    out = tmp_path / "out.parquet"
    assert embed(model, str(folder), str(out), split=split, batch_size=4) == 0
    assert names_of(out) == {f"s{n}": ("abc"[n % 3], "train" if n < 6 else "test") for n in expected}
    made = read_embeddings(out)
    contents = [pictures[key] for key in made.names.column("id").to_pylist()]
    np.testing.assert_allclose(made.vectors, vectors_of(model, contents), atol=1e-5)


def test_classes_that_the_training_set_apart(packed: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    """Names of classes stay right though labels are numbered anew."""
    pictures = {f"t{number}": draw(number) for number in range(8)}
    listed = tuple(item(key, f"class {n % 4}", "train", parts=[c]) for n, (key, c) in enumerate(pictures.items()))
    pack(Listed(listed), tmp_path / "four", PackOptions(num_processes=1))
    model = write_model(tmp_path / "run", "data.validation_classes=0.5")
    assert embed(model, str(tmp_path / "four"), str(tmp_path / "v.parquet"), split="validation") == 0
    found = names_of(tmp_path / "v.parquet")
    assert len(found) == 4
    assert found == {f"t{n}": (f"class {n % 4}", "validation") for n in range(8) if f"t{n}" in found}
    # An exported folder knows them too.
    assert export(model, str(tmp_path / "exported"), onnx=False, register=None) == 0
    exported = str(tmp_path / "exported")
    assert embed(exported, str(tmp_path / "four"), str(tmp_path / "again.parquet"), split="validation") == 0
    assert names_of(tmp_path / "again.parquet") == found
    # A dataset that has a split of this name is taken as it is.
    own = tuple(
        item(key, "a", ("train", "validation")[n % 2], parts=[c]) for n, (key, c) in enumerate(pictures.items())
    )
    pack(Listed(own), tmp_path / "own", PackOptions(num_processes=1))
    assert embed(exported, str(tmp_path / "own"), str(tmp_path / "own.parquet"), split="validation") == 0
    assert names_of(tmp_path / "own.parquet") == {f"t{n}": ("a", "validation") for n in (1, 3, 5, 7)}


def test_what_cannot_be_read_is_left_out_and_told(
    model: str,
    packed: tuple[Path, dict[str, bytes]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "pictures"
    write_pictures(folder)
    (folder / "birds" / "b.PNG").write_bytes(b"no picture")
    (folder / "z.png").unlink()
    (folder / "z.png").symlink_to("nowhere")
    assert embed(model, str(folder), str(tmp_path / "out.parquet"), batch_size=2) == 0
    assert sorted(names_of(tmp_path / "out.parquet")) == [
        "a.png", "birds/d (2).png", "birds/small/c.png", "é/f.png", "é/g.jpg"
    ]  # fmt: skip
    assert "5 embeddings" in (shown := capsys.readouterr().out)
    assert "skipped 2 that cannot be read" in shown
    assert f"{folder}/birds/b.PNG: is no picture" in caplog.text
    assert f"{folder}/z.png: No such file" in caplog.text

    caplog.clear()
    index = Index.load(packed[0])
    lost = index.key(0)
    flip(packed[0], index.shards.names[0], int(index.columns.offsets[0]) + 30)
    assert embed(model, str(packed[0]), str(tmp_path / "packed.parquet")) == 0
    assert set(names_of(tmp_path / "packed.parquet")) == packed[1].keys() - {lost}
    assert "skipped 1 that cannot be read" in capsys.readouterr().out
    assert lost in caplog.text


def test_nothing_to_read(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "empty", tmp_path / "out.parquet"
    folder.mkdir()
    with pytest.raises(DataError, match=r"empty is neither a packed dataset nor a folder of files that end in avif"):
        embed(model, str(folder), str(out))
    (folder / "a.png").write_bytes(b"no picture")
    assert main(["embed", model, str(folder), str(out)]) == 1
    assert "no embeddings of" in capsys.readouterr().err
    assert not out.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_wrong_options(
    model: str, packed: tuple[Path, dict[str, bytes]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = str(tmp_path / "pictures"), str(tmp_path / "out.parquet")
    write_pictures(Path(folder))
    (packed[0] / "a.parquet").mkdir()
    cases = [
        ([model, folder, "out.csv"], "let its name end in .parquet"),
        ([model, folder, str(packed[0] / "a.parquet")], "a.parquet is a folder: name the Parquet file to write"),
        ([str(tmp_path / "no model"), folder, str(packed[0] / "a.parquet")], "is a folder"),  # told before the rest
        ([model, folder, out, "--split", "test"], "is no packed dataset, so it has no splits"),
        ([model, folder, out, "--batch-size", "0"], "--batch-size 0"),
        ([model, folder + "x", out], "there is no"),
        ([folder, folder, out], "holds no model"),
        ([model, str(packed[0]), out, "--split", "dev"], "no split 'dev'"),
    ]
    for arguments, message in cases:
        assert main(["embed", *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not Path(out).exists()


def test_samples_of_another_kind(model: str, packed: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    out = str(tmp_path / "out.parquet")
    views = write_model(tmp_path / "views", case="views")
    with pytest.raises(LaunchError, match=r"takes objects of several views.*dmlscale pack views"):
        embed(views, str(packed[0] / ".."), out)
    with pytest.raises(DataError, match=r"holds samples of the input 'image', views at step 7 takes 'views'"):
        embed(views, str(packed[0]), out)
    vectors = write_model(tmp_path / "vectors", case="vectors")
    (tmp_path / "arrays").mkdir()
    for number in range(2):
        (tmp_path / "arrays" / f"{number}.npy").write_bytes(CASES["vectors"][0][0])
    assert embed(vectors, str(tmp_path / "arrays"), out) == 0
    np.save(tmp_path / "arrays" / "2.npy", np.ones(3))
    with pytest.raises(DataError, match=r"0\.npy to 2\.npy: .*different sizes.*--batch-size 1$"):
        embed(vectors, str(tmp_path / "arrays"), out)
    for number in range(2):
        (tmp_path / "arrays" / f"{number}.npy").unlink()
    with pytest.raises(DataError, match=r"2\.npy to 2\.npy: samples of shape \(3,\) do not fit the network"):
        embed(vectors, str(tmp_path / "arrays"), out)
    assert len(read_embeddings(Path(out)).names) == 2  # of the run before


def test_the_models_own_batch_size_is_the_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Pictures of different sizes fit together where the evaluation takes one at a time."""
    as_is = "data.eval_transform=standardize"
    (tmp_path / "pictures").mkdir()
    listed = []
    for number in range(3):
        (tmp_path / "pictures" / f"\x1b[31m{number}.png").write_bytes(draw(number, (40, 40 + number)))
        listed.append(item(f"s{number}", "a", "test", parts=[draw(number, (40, 40 + number))]))
    (tmp_path / "pictures" / "\x1b[31mtext.png").write_bytes(b"text")
    pack(Listed(tuple(listed)), tmp_path / "packed", PackOptions(num_processes=1))
    one = write_model(tmp_path / "one", as_is, "evaluation.batch_size=1")
    many = write_model(tmp_path / "many", as_is)
    for source in ("pictures", "packed"):
        arguments = [str(tmp_path / source), str(tmp_path / "out.parquet")]
        assert main(["embed", one, *arguments]) == 0
        assert main(["embed", many, *arguments, "--batch-size", "1"]) == 0
        capsys.readouterr()
        assert main(["embed", many, *arguments]) == 2
        told = capsys.readouterr().err
        assert "different sizes" in told
        assert "--batch-size 1" in told
        assert "\x1b" not in told
    assert "?[31mtext.png" in caplog.text
    assert "\x1b" not in caplog.text

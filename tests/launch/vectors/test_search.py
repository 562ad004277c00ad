"""``dmlscale search``: finds what was embedded, by the model that embedded it and by no other."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from dmlscale.cli import main
from dmlscale.data.errors import DataError
from dmlscale.data.packing.pack import pack
from dmlscale.data.packing.writing import PackOptions
from dmlscale.evaluation.figures.style import png
from dmlscale.evaluation.figures_search import Found, search_result
from dmlscale.launch.errors import LaunchError
from dmlscale.launch.vectors.build_index import build_index
from dmlscale.launch.vectors.embed import embed
from dmlscale.launch.vectors.search import search
from tests.data.listed import Listed, item
from tests.launch.vectors.embedded import draw, vectors_of, write_model, write_pictures
from tests.launch.vectors.test_build_index import write_embeddings

pytestmark = pytest.mark.filterwarnings("ignore:The image decoding:DeprecationWarning")


@pytest.fixture
def searched(tmp_path: Path) -> tuple[str, Path, Path]:
    """A model, a folder of seven pictures, and an index of them."""
    model, folder = write_model(tmp_path / "mine"), tmp_path / "pictures"
    write_pictures(folder)
    assert embed(model, str(folder), str(tmp_path / "e.parquet")) == 0
    assert build_index(str(tmp_path / "e.parquet"), str(tmp_path / "index")) == 0
    return model, folder, tmp_path / "index"


def rows_of(shown: str) -> list[list[str]]:
    return [line.split() for line in shown.splitlines() if line.split()[0].isdigit()]


def test_neighbours_in_order(
    searched: tuple[str, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, folder, index = searched
    capsys.readouterr()
    (tmp_path / "query.png").write_bytes(draw(99))
    assert main(["search", str(tmp_path / "query.png"), str(index), "-k", "5"]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].split() == ["rank", "cosine", "similarity", "id"]
    names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.*g")) if path.name != ".hidden.png"]
    names += ["birds/b.PNG"]
    vectors = vectors_of(model, [draw(99), *((folder / name).read_bytes() for name in names)])
    closeness = vectors[1:] @ vectors[0]
    order = np.argsort(-closeness)[:5]
    found = rows_of(shown)
    assert [" ".join(row[2:]) for row in found] == [names[n] for n in order]
    assert [row[0] for row in found] == list("12345")
    np.testing.assert_allclose([float(row[1]) for row in found], closeness[order], atol=1e-4)


def test_pictures_of_a_folder_and_one_that_is_gone(
    searched: tuple[str, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder, index = searched
    query, drawn = str(folder / "a.png"), tmp_path / "drawn.png"
    assert search(query, str(index), k=100, pictures=str(drawn)) == 0
    out, err = capsys.readouterr()
    assert rows_of(out)[0][2] == "a.png"
    assert float(rows_of(out)[0][1]) == pytest.approx(1, abs=1e-4)
    assert len(rows_of(out)) == 7
    assert f"pictures: {drawn}" in out
    assert err == ""
    whole = imread(drawn)
    (folder / "z.png").unlink()
    assert search(query, str(index), k=100, pictures=str(drawn)) == 0
    assert f"left blank: {folder}/z.png: No such file" in capsys.readouterr().err
    assert imread(drawn).shape == whole.shape
    assert (imread(drawn) != whole).any()
    shutil.copy(query, tmp_path / "query.png")
    shutil.rmtree(folder)
    assert search(str(tmp_path / "query.png"), str(index), k=2, pictures=str(drawn)) == 0
    assert f"left blank: there is no {folder} any more" in capsys.readouterr().err


def test_a_place_for_pictures_is_looked_at_before_the_search(
    searched: tuple[str, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder, index = searched
    capsys.readouterr()
    for place, message in (("none/a.png", r"there is no folder .*none; make it"), ("pictures", "is a folder")):
        with pytest.raises(LaunchError, match=f"--pictures .*{place}: {message}"):
            search(str(folder / "a.png"), str(index), pictures=str(tmp_path / place))
    with pytest.raises(DataError, match=r"cannot write /dev/full: No space left"):
        search(str(folder / "a.png"), str(index), pictures="/dev/full")
    assert capsys.readouterr().out.count("rank") == 1  # of the last


def test_names_do_not_steer_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, folder = write_model(tmp_path / "mine"), tmp_path / "pictures"
    folder.mkdir()
    (folder / "\x1b[2Ja\r\u202e.png").write_bytes(draw(0))
    assert embed(model, str(folder), str(tmp_path / "e.parquet")) == 0
    assert build_index(str(tmp_path / "e.parquet"), str(tmp_path / "index")) == 0
    (tmp_path / "query.png").write_bytes(draw(0))
    (folder / "\x1b[2Ja\r\u202e.png").unlink()
    arguments = ["search", str(tmp_path / "query.png"), str(tmp_path / "index"), "--pictures", str(tmp_path / "p.png")]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "?[2Ja??.png" in out
    assert "?[2Ja??.png: No such file" in err
    assert not {"\x1b", "\r", "\u202e"} & set(out + err)


def test_pictures_of_a_packed_dataset(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_model(tmp_path / "mine")
    listed = [item(f"s{n}", "[red]ab"[: 5 + n % 2], ("train", "test")[n % 2], parts=[draw(n)]) for n in range(6)]
    pack(Listed(tuple(listed)), tmp_path / "packed", PackOptions(num_processes=1))
    assert embed(model, str(tmp_path / "packed"), str(tmp_path / "e.parquet")) == 0
    assert build_index(str(tmp_path / "e.parquet"), str(tmp_path / "index")) == 0
    (tmp_path / "query.png").write_bytes(draw(3))
    capsys.readouterr()
    arguments = ["search", str(tmp_path / "query.png"), str(tmp_path / "index"), "--pictures", str(tmp_path / "p.png")]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].split()[-3:] == ["id", "label", "split"]
    assert rows_of(out)[0][2:] == ["s3", "[red]a", "test"]
    assert err == ""
    # Another dataset in its place: one of the samples is not in it.
    shutil.rmtree(tmp_path / "packed")
    pack(Listed(tuple(listed[:5])), tmp_path / "packed", PackOptions(num_processes=1))
    assert main(arguments) == 0
    assert "left blank: " in (err := capsys.readouterr().err)
    assert "has no sample 's5' any more" in err
    assert err.count("left blank") == 1
    shutil.rmtree(tmp_path / "packed")
    assert main(arguments) == 0
    assert "there is no" in capsys.readouterr().err


def test_another_model_is_refused(searched: tuple[str, Path, Path], tmp_path: Path) -> None:
    model, folder, index = searched
    query = str(folder / "a.png")
    other = write_model(tmp_path / "other", step=8)
    with pytest.raises(LaunchError, match=r"was made by mine at step 7 .*other at step 8"):
        search(query, str(index), model=other)
    shutil.copytree(model, tmp_path / "copy")
    assert search(query, str(index), model=str(tmp_path / "copy")) == 0
    # The run goes on, so its newest checkpoint is another one.
    write_model(Path(model), step=8)
    with pytest.raises(LaunchError, match=r"mine at step 7 .*mine at step 8"):
        search(query, str(index))
    shutil.rmtree(model)
    with pytest.raises(LaunchError, match=r"mine at step 7, then at .*mine, which is not there .*--model"):
        search(query, str(index))


def test_wrong_options(searched: tuple[str, Path, Path], tmp_path: Path) -> None:
    _, folder, index = searched
    query = str(folder / "a.png")
    with pytest.raises(LaunchError, match="-k 0"):
        search(query, str(index), k=0)
    with pytest.raises(LaunchError, match=r"none is no index \(it has no index\.json\)"):
        search(query, str(tmp_path / "none"))
    with pytest.raises(LaunchError, match=r"cannot read .*q\.png: No such file"):
        search(str(tmp_path / "q.png"), str(index))
    with pytest.raises(DataError, match=r"readme\.txt cannot be decoded: is no picture"):
        search(str(folder / "readme.txt"), str(index))


def test_an_index_of_other_dimensions(searched: tuple[str, Path, Path], tmp_path: Path) -> None:
    """Only a damaged folder has one, since the weights decide the dimensions."""
    _, folder, index = searched
    other = write_embeddings(tmp_path / "other.parquet", np.arange(28, dtype=np.float32).reshape(7, 4))
    build_index(other, str(tmp_path / "other"), num_queries=0)
    shutil.copy(tmp_path / "other" / "index.faiss", index)
    description = (index / "index.json").read_text()
    (index / "index.json").write_text(description.replace('"embedding_dim": 5', '"embedding_dim": 4'))
    with pytest.raises(LaunchError, match="the index holds vectors of 4 dimensions, mine at step 7 makes some of 5"):
        search(str(folder / "a.png"), str(index))


@pytest.mark.parametrize("count", [0, 1, 5, 13])
def test_a_figure_has_a_place_for_each(count: int) -> None:
    found = [Found("a/very/long/path/" * 4, "$x^{" if n % 2 else None, None, 0.5) for n in range(count)]
    wide = np.zeros((4, 40, 3), np.uint8)
    images = [None if n == 2 else wide for n in range(count)]
    figure = search_result(wide, found, images, title="Nearest to <b>$x^{", closeness="cosine similarity")
    assert len(figure.axes) == 1 + count
    assert png(figure).startswith(b"\x89PNG")

"""Files from elsewhere are numbers and texts: nothing in them is run."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2] / "dmlscale"
# They run what is in a file, or may be made to.
DANGEROUS = {
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "joblib.load"),
    *("torch.load", "torch.jit.load", "torch.hub.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load"),
    *("marshal.load", "marshal.loads", "shelve.open", "eval", "exec", "faiss.read_index"),
    *("mlflow.pyfunc.load_model", "mlflow.pytorch.load_model", "dcp.FileSystemReader"),
}
# Numbers only, no pickle; but faiss does not check all of them: it says that it is for files of people you trust.
ALLOWED = {"evaluation/vector_index.py: faiss.read_index"}


def calls(path: Path) -> set[str]:
    """Dotted names of what a file calls; a call that lets NumPy unpickle is "allow_pickle", a shell is "shell"."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            found.add(ast.unparse(node.func))
            for keyword in node.keywords:
                is_off = isinstance(keyword.value, ast.Constant) and not keyword.value.value
                if keyword.arg in ("allow_pickle", "shell") and not is_off:
                    found.add(keyword.arg)
    return found


def test_nothing_that_is_read_is_run() -> None:
    dangerous = DANGEROUS | {"allow_pickle", "shell"}
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 150
    found = {f"{path.relative_to(ROOT).as_posix()}: {call}" for path in files for call in calls(path) & dangerous}
    assert found == ALLOWED


def test_the_test_sees_what_it_looks_for(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("np.load(f, allow_pickle=True)\ntorch.load(g)\nsubprocess.run(c, shell=True)\nnp.load(f)\n")
    assert calls(path) == {"np.load", "torch.load", "subprocess.run", "allow_pickle", "shell"}

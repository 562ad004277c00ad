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
    *("mlflow.pyfunc.load_model", "mlflow.pytorch.load_model", "pd.read_pickle", "os.system", "os.popen"),
}
# Modules whose readers unpickle: those of torch.distributed.checkpoint the metadata, those of webdataset some members.
UNPICKLING = {
    *("pickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"),
    *("torch.distributed.checkpoint", "webdataset"),
}
# Tells Ray to send a module along with what it pickles; reads nothing.
ALLOWED_IMPORTS = {"launch/doctor/nodes.py: cloudpickle"}
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
            # Only with the filter "data" does tarfile keep what it unpacks within the folder.
            if ast.unparse(node.func).endswith((".extract", ".extractall")) and not _is_filtered(node):
                found.add("unfiltered extract")
    return found


def _is_filtered(call: ast.Call) -> bool:
    return any(
        k.arg == "filter" and isinstance(k.value, ast.Constant) and k.value.value == "data" for k in call.keywords
    )


def unpickling_imports(path: Path) -> set[str]:
    """Those of `UNPICKLING` that a file imports, wherever in it, also from another package ("ray.cloudpickle")."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(alias.name for alias in node.names)}
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in UNPICKLING if any(each == name or each.startswith(f"{name}.") for each in found)}


def test_nothing_that_is_read_is_run() -> None:
    dangerous = DANGEROUS | {"allow_pickle", "shell", "unfiltered extract"}
    files = sorted(ROOT.rglob("*.py"))
    assert len(files) > 150
    found = {f"{path.relative_to(ROOT).as_posix()}: {call}" for path in files for call in calls(path) & dangerous}
    assert found == ALLOWED


def test_nothing_that_unpickles_is_imported() -> None:
    files = sorted(ROOT.rglob("*.py"))
    found = {f"{path.relative_to(ROOT).as_posix()}: {name}" for path in files for name in unpickling_imports(path)}
    assert found == ALLOWED_IMPORTS


def test_the_test_sees_what_it_looks_for(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("np.load(f, allow_pickle=True)\ntorch.load(g)\nsubprocess.run(c, shell=True)\nnp.load(f)\n")
    assert calls(path) == {"np.load", "torch.load", "subprocess.run", "allow_pickle", "shell"}
    path.write_text("a.extract(m, p)\n")
    assert calls(path) == {"a.extract", "unfiltered extract"}
    path.write_text("a.extract(m, p, filter='data')\n")
    assert calls(path) == {"a.extract"}
    path.write_text("def f():\n    import torch.distributed.checkpoint as dcp\n    from ray import cloudpickle\n")
    assert unpickling_imports(path) == {"torch.distributed.checkpoint", "cloudpickle"}
    path.write_text("from torch.distributed import checkpoint\nimport pickletools\n")
    assert unpickling_imports(path) == {"torch.distributed.checkpoint"}

"""Takes the schemas of KubeRay's objects out of its custom resource definitions, each repeated part once.

Run:  git clone --depth 1 --branch v1.7.0 https://github.com/ray-project/kuberay /tmp/kuberay
      python -m tests.jobs.schemas.extract /tmp/kuberay/ray-operator/config/crd/bases v1.7.0

writes kuberay.json: JSON Schema under ``$defs`` for ``RayCluster`` and ``RayJob``, of which nothing is left out but
``status``. What it says of pods comes from Kubernetes; both projects are under the Apache License 2.0 (NOTICE.md).
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).parent / "kuberay.json"
_KINDS = {"RayCluster": "ray.io_rayclusters.yaml", "RayJob": "ray.io_rayjobs.yaml"}
_SMALLEST = 400  # characters of a part that is worth a definition of its own


def extract(folder: Path, version: str) -> dict[str, Any]:
    """All schemas in one document.

    Args:
        folder: with the definitions, ``ray-operator/config/crd/bases``.
        version: of KubeRay, to be noted.
    """
    schemas = {kind: _read(folder / file) for kind, file in _KINDS.items()}
    counts = Counter(text for schema in schemas.values() for text in _parts(schema))
    names = {
        text: f"part{number}"
        for number, text in enumerate(sorted(text for text, n in counts.items() if n > 1 and len(text) > _SMALLEST))
    }
    parts = {name: _shared(json.loads(text), names, inside=True) for text, name in names.items()}
    return {
        "$comment": f"KubeRay {version}, made by tests/jobs/schemas/extract.py; Apache License 2.0, see NOTICE.md",
        "$defs": {kind: _shared(schema, names) for kind, schema in schemas.items()} | parts,
    }


def _read(path: Path) -> dict[str, Any]:
    versions = yaml.safe_load(path.read_text())["spec"]["versions"]
    schema: dict[str, Any] = next(v for v in versions if v["name"] == "v1")["schema"]["openAPIV3Schema"]
    del schema["properties"]["status"]
    return schema


def _parts(schema: Any) -> Iterator[str]:
    """Every schema within a schema, as text."""
    if isinstance(schema, list):
        for entry in schema:
            yield from _parts(entry)
    if isinstance(schema, dict):
        if isinstance(schema.get("type"), str):  # else it may be a list of properties, one of which is named type
            yield json.dumps(schema, sort_keys=True)
        for value in schema.values():
            yield from _parts(value)


def _shared(schema: Any, names: dict[str, str], *, inside: bool = False) -> Any:
    """The schema with references in place of what has a name; ``inside`` its own definition it is spelled out."""
    if isinstance(schema, list):
        return [_shared(entry, names) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    text = json.dumps(schema, sort_keys=True)
    if text in names and not inside:
        return {"$ref": f"#/$defs/{names[text]}"}
    return {key: _shared(value, names) for key, value in schema.items()}


if __name__ == "__main__":
    FILE.write_text(json.dumps(extract(Path(sys.argv[1]), sys.argv[2]), indent=1, sort_keys=True) + "\n")

"""The plan of the house: rooms import downwards only, and no two files import each other, not even for their types."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {"hq_tokenizers": "hq_tokenizers", "priors": "hq_tokenizers.priors", "pipelines": "hq_tokenizers.pipelines"}
# Bottom to top: a room knows itself and those above it in this list.
ROOMS = (
    *("_version", "checks", "files", "hashing", "memory", "tensor_files", "hub_files", "checked_loading"),
    "pretrained_models",
    *("processes", "randomness", "evaluation_mode", "remote_code", "codes", "options"),
    *("losses", "quantization", "padding", "image_decoding", "image_processing_hq"),
    *("sound_decoding", "feature_extraction_hq"),
    *("models", "data", "metrics", "priors", "pipelines"),
    *("reporting", "evaluation", "hub", "registration", "conversion", "training", "app", "cli"),
)


def modules() -> dict[str, Path]:
    """Every module by its installed name."""
    found = {}
    for folder, package in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(module: str) -> Iterator[str]:
    """The modules of this package that a module imports, wherever in its text."""
    path = MODULES[module]
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "hq_tokenizers")
        if not isinstance(node, ast.ImportFrom):
            continue
        base = package.rsplit(".", node.level - 1)[0] if node.level else ""
        source = ".".join(filter(None, [base, node.module]))
        for alias in node.names:
            inner = f"{source}.{alias.name}"
            if inner in MODULES or source in MODULES:
                yield inner if inner in MODULES else source


def room(module: str) -> str:
    return module.split(".")[1]


GRAPH = {module: set(imports(module)) - {module} for module in MODULES}


def test_every_module_has_a_room() -> None:
    assert {room(module) for module in MODULES if module != "hq_tokenizers"} - {"__main__"} == set(ROOMS)
    assert sum(map(len, GRAPH.values())) > 300


def test_rooms_import_downwards() -> None:
    upwards = [
        f"{module} imports {other}"
        for module, others in GRAPH.items()
        for other in others
        if module not in ("hq_tokenizers", "hq_tokenizers.__main__")
        if ROOMS.index(room(other)) > ROOMS.index(room(module))
    ]
    assert upwards == []


def test_no_files_import_each_other() -> None:
    TopologicalSorter(GRAPH).prepare()

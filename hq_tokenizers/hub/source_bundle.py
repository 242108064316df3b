"""Collects the modules that classes need and rewrites their imports, so that they run from one flat folder."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable
from pathlib import Path

from hq_tokenizers._version import __version__

_PACKAGE = "hq_tokenizers"
_HEADER = f"# From hq_tokenizers {__version__}, Apache-2.0.\n"


def bundle_sources(modules: Iterable[str]) -> dict[str, str]:
    """Flat sources of modules and of everything of this package that they import, directly or not.

    transformers copies the files of remote code by following `from .x import …` alone; imports of this package are
    rewritten to that form.

    Args:
        modules: Full names of the first modules, such as "hq_tokenizers.models.modeling_sq_vae".

    Returns:
        Source text by file name, such as "modeling_sq_vae.py".

    Raises:
        ValueError: If an import cannot be flattened, or two modules have the same base name.
    """
    sources: dict[str, str] = {}
    origins: dict[str, str] = {}
    pending = sorted(set(modules))
    while pending:
        module = pending.pop()
        name = f"{module.rpartition('.')[2]}.py"
        if origins.setdefault(name, module) != module:
            raise ValueError(f"{module} and {origins[name]} would both become {name}: module base names are unique.")
        if name not in sources:
            text, imported = _flatten(module)
            sources[name] = _HEADER + text
            pending.extend(imported)
    return sources


def _flatten(module: str) -> tuple[str, list[str]]:
    """The source of a module with flat imports, and the modules of this package it imports."""
    path = _module_path(module)
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines(keepends=True)
    imported = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import) and any(alias.name.partition(".")[0] == _PACKAGE for alias in node.names):
            raise ValueError(f"{path.name}, line {node.lineno}: write `from {_PACKAGE}.x import y`, not `import`.")
        if not isinstance(node, ast.ImportFrom):
            continue
        target = _imported_module(module, node)
        if target is not None:
            imported.append(target)
            old = "." * node.level + (node.module or "")
            line = lines[node.lineno - 1]
            lines[node.lineno - 1] = line.replace(f"from {old} ", f"from .{target.rpartition('.')[2]} ", 1)
    return "".join(lines), imported


def _imported_module(module: str, node: ast.ImportFrom) -> str | None:
    """Full name of the module of this package that an import names; None for another package."""
    parents = module.split(".")[: -node.level] if node.level else []
    target = ".".join([*parents, *([node.module] if node.module else [])])
    return target if target.partition(".")[0] == _PACKAGE else None


def _module_path(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or spec.submodule_search_locations is not None:
        raise ValueError(f"{module} is not a single-file module: import from the module that defines the name.")
    return Path(spec.origin)

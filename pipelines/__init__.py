"""Generators: a tokenizer and a prior as one model, and the pipeline on top. The only room that knows both."""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "configuration_hq_generator": ["HQGeneratorConfig"],
    "modeling_hq_generator": ["HQGeneratorModel", "HQGeneratorOutput"],
    "pipeline_hq_generation": ["HQGenerationPipeline"],
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [*sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""Priors: the probability of codes. They know codes and their layout, never tokenizers or pixels."""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "configuration_code_generation": ["CodeGenerationConfig"],
    "configuration_masked_prior": ["MaskedPriorConfig"],
    "configuration_rq_prior": ["RQPriorConfig"],
    "likelihood": ["bits_per_dimension"],
    "modeling_masked_prior": ["MaskedPriorModel", "MaskedPriorOutput"],
    "modeling_rq_prior": ["RQPriorModel", "RQPriorOutput"],
    "progress": ["PartialCodes"],
    "scheduling_masked_codes": ["MaskedCodeScheduler", "MaskedCodeSchedulerOutput"],
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

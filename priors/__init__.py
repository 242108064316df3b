"""Priors: the probability of codes. They know codes and their layout, never tokenizers or pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .configuration_code_generation import CodeGenerationConfig
from .configuration_contextual_prior import ContextualPriorConfig
from .configuration_masked_prior import MaskedPriorConfig
from .configuration_rq_prior import RQPriorConfig
from .likelihood import bits_per_dimension
from .modeling_contextual_prior import ContextualPriorModel, ContextualPriorOutput
from .modeling_masked_prior import MaskedPriorModel, MaskedPriorOutput
from .modeling_rq_prior import RQPriorModel, RQPriorOutput
from .progress import PartialCodes

if TYPE_CHECKING:
    from .scheduling_masked_codes import MaskedCodeScheduler, MaskedCodeSchedulerOutput

__all__ = [
    "CodeGenerationConfig",
    "ContextualPriorConfig",
    "ContextualPriorModel",
    "ContextualPriorOutput",
    "MaskedCodeScheduler",
    "MaskedCodeSchedulerOutput",
    "MaskedPriorConfig",
    "MaskedPriorModel",
    "MaskedPriorOutput",
    "PartialCodes",
    "RQPriorConfig",
    "RQPriorModel",
    "RQPriorOutput",
    "bits_per_dimension",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """The scheduler is imported when it is asked for: it imports diffusers, which takes seconds."""
        if name not in ("MaskedCodeScheduler", "MaskedCodeSchedulerOutput"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from . import scheduling_masked_codes

        return getattr(scheduling_masked_codes, name)

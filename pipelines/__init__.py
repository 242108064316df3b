"""Generators: a tokenizer and a prior as one model, and the pipeline on top. The only room that knows both."""

from __future__ import annotations

from .configuration_hq_generator import HQGeneratorConfig
from .modeling_hq_generator import HQGeneratorModel, HQGeneratorOutput
from .pipeline_hq_audio_generation import HQAudioGenerationPipeline
from .pipeline_hq_generation import HQGenerationPipeline

__all__ = [
    "HQAudioGenerationPipeline",
    "HQGenerationPipeline",
    "HQGeneratorConfig",
    "HQGeneratorModel",
    "HQGeneratorOutput",
]

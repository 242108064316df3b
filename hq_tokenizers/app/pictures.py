"""How pictures appear on the page: small ones enlarged, with their pixels to be seen."""

from __future__ import annotations

from typing import Any

import gradio as gr

from hq_tokenizers.checks import image_height_width
from hq_tokenizers.pipelines.pipeline_hq_generation import HQGenerationPipeline

_SMALL = 128

CSS = """
.pixels img { image-rendering: pixelated; }
.picture img { width: 100%; height: 100%; object-fit: contain !important; }
.picture .grid-wrap { max-height: none !important; min-height: 0 !important; }
.picture .thumbnail-lg { aspect-ratio: auto !important; height: auto !important; flex-direction: column; }
.picture .thumbnail-lg img { height: auto; }
.picture .thumbnail-lg .caption-label { position: static; max-width: none; width: 100%; border: 0; border-radius: 0; }
"""
"""Galleries as high as their pictures, captions below them: Gradio would scroll, and lay captions over the pictures."""


def image_size(pipe: HQGenerationPipeline) -> tuple[int, int]:
    """Height and width of a generator's images."""
    return image_height_width(pipe.model.config.image_tokenizer_config.image_size)


def picture_classes(pipe: HQGenerationPipeline) -> list[str]:
    """CSS classes of a field with a generator's images: the browser enlarges them, and small ones without blurring."""
    return ["picture", *(["pixels"] if min(image_size(pipe)) < _SMALL else [])]


def gallery(pipe: HQGenerationPipeline, columns: int = 4, **settings: Any) -> gr.Gallery:
    """A gallery of a generator's images; what is downloaded from it has the generator's own pixels.

    It has no label: Gradio would lay it over the first picture.
    """
    defaults = {"elem_classes": picture_classes(pipe), "buttons": ["download", "fullscreen"]}
    return gr.Gallery(
        columns=columns,
        format="png",
        object_fit="contain",
        height="auto",
        interactive=False,
        show_label=False,
        **defaults | settings,
    )

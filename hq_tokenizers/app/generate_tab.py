"""Tab: images of a class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from hq_tokenizers.pipelines.pipeline_hq_generation import HQGenerationPipeline

from .library_errors import shown_on_page
from .pictures import gallery
from .previews import gallery_steps
from .sampling_controls import SamplingControls


class GenerateTab:
    """Draws images with the pipeline itself.

    Args:
        pipe: The generator.
    """

    title = "Generate"

    def __init__(self, pipe: HQGenerationPipeline) -> None:
        self._pipe = pipe
        self.controls = SamplingControls(pipe)

    def build(self) -> None:
        """Adds controls and results to the page."""
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                controls = self.controls.build(num_images=8)
                button = gr.Button("Generate", variant="primary")
            with gr.Column(scale=5, min_width=320):
                said, images = gr.Markdown("Choose a class, then draw."), gallery(self._pipe)
        button.click(
            self.draw,
            controls,
            [images, said],
            api_name="generate",
            concurrency_id="generator",
            show_progress="minimal",
        )

    def draw(self, *values: Any) -> Iterator[tuple[list[tuple[Any, str]], str]]:
        """The images of a class as they come into being; `values` are those of the controls."""
        with shown_on_page():
            yield from gallery_steps(self._pipe, self._pipe, self.controls.arguments(*values))

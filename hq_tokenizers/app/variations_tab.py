"""Tab: images that share the coarse codes of a given one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gradio as gr

from hq_tokenizers.pipelines.pipeline_hq_generation import HQGenerationPipeline

from .image_input import ImageInput, seen_by_generator
from .library_errors import shown_on_page
from .pictures import gallery
from .previews import gallery_steps
from .sampling_controls import SamplingControls


class VariationsTab:
    """Keeps the first levels of an image's codes and draws the others, by the pipeline's `variations`.

    Args:
        pipe: The generator.
    """

    title = "Variations"

    def __init__(self, pipe: HQGenerationPipeline) -> None:
        self._pipe = pipe
        self._num_levels = pipe.model.code_layout.num_levels
        self.controls = SamplingControls(pipe)

    def build(self) -> None:
        """Adds the image, controls and results to the page."""
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                given = ImageInput(self._pipe)
                image = given.build()
                kept = gr.Slider(
                    0,
                    self._num_levels,
                    self._num_levels // 2,
                    step=1,
                    label="Levels of codes to keep, coarse to fine",
                    info=self._meaning(),
                    buttons=[],
                )
                controls = self.controls.build(num_images=8)
                given.draw_class_of(self.controls.class_labels)
                button = gr.Button("Vary", variant="primary")
            with gr.Column(scale=5, min_width=320):
                said, images = gr.Markdown("Choose an image and what to keep of it."), gallery(self._pipe)
        button.click(
            self.vary,
            [image, kept, *controls],
            [images, said],
            api_name="variations",
            concurrency_id="generator",
            show_progress="minimal",
        )

    def _meaning(self) -> str:
        if self._num_levels == 1:
            return "This generator has one level: 0 draws another image, 1 is the reconstruction."
        return f"0 draws another image, {self._num_levels} is the reconstruction."

    def vary(self, image: Any, keep_levels: int, *values: Any) -> Iterator[tuple[list[tuple[Any, str]], str]]:
        """Variations of an image as they come into being; `values` are those of the controls."""
        with shown_on_page():
            given = seen_by_generator(self._pipe, image)
            yield from gallery_steps(
                self._pipe,
                lambda **arguments: self._pipe.variations(given, keep_levels, **arguments),
                self.controls.arguments(*values),
            )

"""Tab: an image of which the visitor marks a part with a brush, to be drawn anew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from hq_tokenizers.pipelines.pipeline_hq_generation import HQGenerationPipeline
from hq_tokenizers.reporting.figures import magnified

from .image_input import ImageInput, seen_by_generator
from .library_errors import shown_on_page
from .pictures import gallery, image_size
from .previews import gallery_steps
from .sampling_controls import SamplingControls

_SIDE = 320
_BRUSH = "#ff3fa4"


class InpaintTab:
    """Repaints what is marked, by the pipeline's `inpaint`.

    Args:
        pipe: The generator.
    """

    title = "Inpaint"

    def __init__(self, pipe: HQGenerationPipeline) -> None:
        self._pipe = pipe
        self.controls = SamplingControls(pipe)

    def build(self) -> None:
        """Adds the image, the editor, controls and results to the page."""
        height, width = image_size(self._pipe)
        canvas = magnified(Image.new("L", (width, height)), _SIDE).size
        with gr.Row():
            with gr.Column(scale=3, min_width=320):
                given = ImageInput(self._pipe)
                image = given.build(height=200)
                controls = self.controls.build(num_images=4)
                given.draw_class_of(self.controls.class_labels)
            with gr.Column(scale=3, min_width=canvas[0] + 20):
                gr.Markdown("Mark with the brush what to paint anew.")
                editor = gr.ImageEditor(
                    type="pil",
                    format="png",
                    show_label=False,
                    sources=(),
                    transforms=(),
                    layers=False,
                    buttons=[],
                    canvas_size=canvas,
                    height=canvas[1] + 80,
                    brush=gr.Brush(default_size=min(canvas) // 8, colors=[_BRUSH], color_mode="fixed"),
                )
                button = gr.Button("Paint anew", variant="primary")
            with gr.Column(scale=4, min_width=300):
                said, images = gr.Markdown("The results appear here."), gallery(self._pipe, columns=2)
        image.change(
            self.show_in_editor,
            image,
            editor,
            api_visibility="private",
            concurrency_id="generator",
            show_progress="hidden",
        )
        button.click(
            self.repaint,
            [image, editor, *controls],
            [images, said],
            api_name="inpaint",
            concurrency_id="generator",
            show_progress="minimal",
        )

    def show_in_editor(self, image: Any) -> dict[str, Any] | None:
        """The image as the generator sees it, large enough to paint on."""
        if image is None:
            return None
        with shown_on_page():
            background = magnified(seen_by_generator(self._pipe, image), _SIDE)
        return {"background": background, "layers": [], "composite": None}

    def repaint(
        self, image: Any, edited: Mapping[str, Any] | None, *values: Any
    ) -> Iterator[tuple[list[tuple[Any, str]], str]]:
        """Results as they come into being; `edited` is what the editor gives, `values` are those of the controls."""
        with shown_on_page():
            given = seen_by_generator(self._pipe, image)
            mask = painted_mask(edited, given.size)
            yield from gallery_steps(
                self._pipe,
                lambda **arguments: self._pipe.inpaint(given, mask, **arguments),
                self.controls.arguments(*values),
            )


def painted_mask(edited: Mapping[str, Any] | None, size: tuple[int, int]) -> np.ndarray:
    """Which pixels of an image are painted over in an editor, be it in part.

    Args:
        edited: What the editor gives: its layers are of the size of its canvas.
        size: Width and height of the image.

    Returns:
        Truth values (height, width).

    Raises:
        ValueError: If none is.
    """
    layers = [layer.convert("RGBA").getchannel("A") for layer in (edited or {}).get("layers", [])]
    # A box covers the pixels of the canvas that one of the image was enlarged to, and no others.
    painted = [np.asarray(layer.resize(size, Image.Resampling.BOX)) > 0 for layer in layers]
    if not painted or not np.any(painted):
        raise ValueError("Nothing is marked: paint with the brush over the part that is to be drawn anew.")
    return np.any(painted, axis=0)

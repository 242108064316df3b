"""Tab: what the tokenizer keeps of an image, level by level, and the codes themselves."""

from __future__ import annotations

from typing import Any

import gradio as gr
from PIL import Image

from hq_tokenizers.codes import Codes
from hq_tokenizers.pipelines.pipeline_hq_generation import HQGenerationPipeline
from hq_tokenizers.reporting.figures import code_grid_image

from .image_input import ImageInput, seen_by_generator
from .library_errors import shown_on_page
from .pictures import gallery, picture_classes

_SIDE = 512


class ReconstructTab:
    """Encodes and decodes an image by the pipeline's `reconstruct`.

    Args:
        pipe: The generator.
    """

    title = "Reconstruct"

    def __init__(self, pipe: HQGenerationPipeline) -> None:
        self._pipe = pipe
        self._num_levels = pipe.model.code_layout.num_levels

    def build(self) -> None:
        """Adds the image, the slider and the pictures to the page."""
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                given = ImageInput(self._pipe)
                image = given.build()
                given.draw_class_of(None)
                levels = gr.Slider(
                    1,
                    max(self._num_levels, 2),
                    self._num_levels,
                    step=1,
                    label="Levels of codes, coarse to fine",
                    visible=self._num_levels > 1,
                    buttons=[],
                )
                said = gr.Markdown()
            with gr.Column(scale=5, min_width=320):
                shown: dict[str, Any] = {"format": "png", "interactive": False, "show_label": False, "height": 300}
                shown["elem_classes"] = picture_classes(self._pipe)
                with gr.Row():
                    with gr.Column():
                        gr.Markdown("As the generator sees it")
                        seen = gr.Image(buttons=[], **shown)
                    with gr.Column():
                        gr.Markdown("Decoded from the codes")
                        reconstruction = gr.Image(buttons=["download"], **shown)
                gr.Markdown("The codes: a picture for each level, a colour for each code")
                grids = gallery(self._pipe, columns=max(3, min(self._num_levels, 4)), elem_classes=["picture"])
        gr.on(
            [image.change, levels.change],
            self.reconstruct,
            [image, levels],
            [seen, reconstruction, grids, said],
            api_name="reconstruct",
            concurrency_id="generator",
            show_progress="hidden",
            trigger_mode="always_last",
        )

    def reconstruct(
        self, image: Any, num_levels: int
    ) -> tuple[Image.Image | None, Image.Image | None, list[tuple[Any, str]], str]:
        """The image as it is encoded, its reconstruction from the first levels, their codes, and what they cost."""
        if image is None:
            return None, None, [], ""
        with shown_on_page():
            seen = seen_by_generator(self._pipe, image)
            num_levels = min(num_levels, self._num_levels)
            codes = self._pipe.reconstruct(seen, num_levels=num_levels, output_type="codes")
            return seen, self._pipe.reconstruct(seen, num_levels=num_levels), code_pictures(codes), _cost(codes)


def code_pictures(codes: Codes) -> list[tuple[Any, str]]:
    """One picture for each level of the codes of an image, with its caption."""
    pictures = []
    for level, (indices, size) in enumerate(zip(codes.levels(), codes.layout.codebook_sizes, strict=True), start=1):
        height, width = indices.shape[1:]
        pictures.append((code_grid_image(indices[0], size, _SIDE), f"level {level}: {height}×{width} of {size} codes"))
    return pictures


def _cost(codes: Codes) -> str:
    layout = codes.layout
    return f"{layout.num_codes} codes, {layout.bits_per_image:.0f} bits: {layout}."

"""An image to work on: a file of the visitor's, or one that the generator draws."""

from __future__ import annotations

import random
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from PIL import Image

from hq_tokenizers.pipelines.pipeline_hq_generation import HQGenerationPipeline

from .library_errors import shown_on_page
from .pictures import picture_classes

_SEEDS = 2**31


class ImageInput:
    """A field for an image, and a button that fills it.

    Args:
        pipe: The generator.
    """

    def __init__(self, pipe: HQGenerationPipeline) -> None:
        self._pipe = pipe
        self._image: gr.Image
        self._button: gr.Button

    def build(self, height: int = 280) -> gr.Image:
        """Adds both to the page and returns the field, whose value is the path of a file, which the library reads."""
        self._image = gr.Image(
            type="filepath",
            format="png",
            show_label=False,
            sources=["upload", "clipboard"],
            buttons=[],
            height=height,
            elem_classes=picture_classes(self._pipe),
        )
        # The library opens the file, as everywhere else, and says what is wrong with one; Gradio would say nothing.
        self._image.preprocess = _path_of  # type: ignore[method-assign]
        self._button = gr.Button("Let the generator draw one", size="sm")
        return self._image

    def draw_class_of(self, class_labels: gr.Dropdown | None) -> None:
        """Makes the button draw an image of the class chosen there; of any, where there is no choice."""
        self._button.click(
            self.draw_one,
            class_labels,
            self._image,
            api_visibility="private",
            concurrency_id="generator",
            show_progress="minimal",
        )

    def draw_one(self, class_label: int | None = None) -> Image.Image:
        """An image of a class, by default of any."""
        with shown_on_page():
            names = self._pipe.model.config.id2label
            if class_label is None and names:
                class_label = random.randrange(len(names))
            return self._pipe(class_label, seed=random.randrange(_SEEDS))


def _path_of(payload: ImageData | None) -> str | None:
    return None if payload is None else payload.path


def seen_by_generator(pipe: HQGenerationPipeline, image: Any) -> Image.Image:
    """An image as it reaches the generator: cropped, resized, in its colours.

    Args:
        pipe: The generator.
        image: A path, or what else the pipeline takes.

    Raises:
        ValueError: If there is none, or it cannot be read.
    """
    if image is None:
        raise ValueError("There is no image yet: drop a file on the field, or let the generator draw one.")
    return pipe.image_processor.postprocess(pipe.image_processor(image)["pixel_values"])[0]

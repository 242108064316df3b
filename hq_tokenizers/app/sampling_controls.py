"""What to draw and how: the settings of a sample, as controls of the page."""

from __future__ import annotations

from typing import Any

import gradio as gr

from hq_tokenizers.pipelines.pipeline_hq_generation import HQGenerationPipeline
from hq_tokenizers.priors.configuration_code_generation import CodeGenerationConfig

MAX_IMAGES = 16
"""Drawn in one batch, whose previews show all of them."""
_NO_CLASS = -1


class SamplingControls:
    """The controls that a generator has a use for: classes where it has some, steps where its prior is masked, ….

    Args:
        pipe: The generator.
    """

    def __init__(self, pipe: HQGenerationPipeline) -> None:
        prior = pipe.model.prior
        self._config = prior.config
        self._saved = CodeGenerationConfig.from_generation_config(pipe.model.generation_config)
        self._names = pipe.model.config.id2label or {}
        self._steps = prior.scheduler.config.num_steps if self._config.model_type == "masked_prior" else None
        self.arguments_shown: list[str] = []
        self.class_labels: gr.Dropdown | None = None

    def build(self, num_images: int) -> list[gr.components.Component]:
        """Adds the controls to the page; their values, in this order, are what `arguments` takes.

        Args:
            num_images: How many images are drawn unless another number is chosen.
        """
        controls: dict[str, gr.components.Component] = {}
        can_be_guided = bool(self._names) and self._config.label_dropout > 0
        if self._names:
            choices = [(name, number) for number, name in self._names.items()]
            # A prior that never saw an image without its class has not learned to draw one.
            choices += [("no class", _NO_CLASS)] * can_be_guided
            self.class_labels = gr.Dropdown(choices, value=choices[0][1], label="Class")
            controls["class_labels"] = self.class_labels
        with gr.Row():
            controls["num_images"] = gr.Slider(
                1, MAX_IMAGES, num_images, step=1, label="Images", min_width=120, buttons=[]
            )
            controls["seed"] = gr.Number(
                0, precision=0, label="Seed", info="empty: others every time", min_width=120, minimum=0
            )
        with gr.Row():
            controls["temperature"] = _setting("Temperature", self._saved.temperature, 0, 2, 0.05, "0 is greedy")
            if can_be_guided:
                controls["guidance_scale"] = _setting("Guidance", self._saved.guidance_scale, 0, 10, 0.1, "1 is off")
            if self._steps is not None:
                steps = self._saved.num_steps or self._steps
                controls["num_steps"] = _setting("Steps", steps, 1, 64, 1, "for each level of codes")
        self.arguments_shown = list(controls)
        return list(controls.values())

    def arguments(self, *values: Any) -> dict[str, Any]:
        """The arguments of a call of the pipeline.

        Args:
            *values: Of the controls; None where one was left empty, for the setting saved with the generator, and for
                another seed every time.
        """
        given = dict(zip(self.arguments_shown, values, strict=True))
        return {name: value for name, value in given.items() if value is not None}


def _setting(name: str, saved: Any, low: float, high: float, step: float, meaning: str) -> gr.components.Component:
    """A slider; a field that may stay empty where the generator was saved with one value per level."""
    if isinstance(saved, list | tuple):
        listed = ", ".join(map(str, saved))
        return gr.Number(None, label=name, info=f"empty: {listed}, by level; {meaning}", min_width=120)
    return gr.Slider(low, max(high, saved), saved, step=step, label=name, info=meaning, min_width=120, buttons=[])

"""What to draw and how: the settings of a sample, as controls of the page."""

from __future__ import annotations

from typing import Any

import gradio as gr

from hq_tokenizers.pipelines.pipeline_hq_generation import HQGenerationPipeline
from hq_tokenizers.priors.configuration_code_generation import CodeGenerationConfig
from hq_tokenizers.priors.modeling_code_prior import CodePriorModel

MAX_IMAGES = 16
"""Drawn in one batch, whose previews show all of them."""
_NO_CLASS = -1
# Title, least value, most the slider shows, meaning.
_STEPS = {
    "num_steps": ("Steps", 1, 64, "for each level of codes"),
    "num_draft_steps": ("Draft steps", 1, 64, "for each grid of codes"),
    "num_revise_steps": ("Steps of a revision", 2, 16, "for each grid of codes"),
    "num_revisions": ("Revisions", 0, 8, "of every draft"),
}


class SamplingControls:
    """The controls that a generator has a use for: classes where it has some, the steps of its prior, ….

    Args:
        pipe: The generator.
    """

    def __init__(self, pipe: HQGenerationPipeline) -> None:
        prior = pipe.model.prior
        self._config = prior.config
        self._saved = CodeGenerationConfig.from_generation_config(pipe.model.generation_config)
        self._names = pipe.model.config.id2label or {}
        # Priors of other people's need not have any.
        self._steps = prior.step_settings(self._saved) if isinstance(prior, CodePriorModel) else {}
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
            for name, steps in self._steps.items():
                title, low, high, meaning = _STEPS[name]
                controls[name] = _setting(title, steps, low, high, 1, meaning)
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
    """A slider; a field that may stay empty where the generator was saved with several values."""
    if isinstance(saved, list | tuple):
        listed = ", ".join(map(str, saved))
        return gr.Number(None, label=name, info=f"empty: {listed}, coarse to fine; {meaning}", min_width=120)
    return gr.Slider(low, max(high, saved), saved, step=step, label=name, info=meaning, min_width=120, buttons=[])

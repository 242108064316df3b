"""The whole page: what the generator is, and a tab for everything one can do with it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from hq_tokenizers.pipelines.pipeline_hq_generation import HQGenerationPipeline

from .codebook_tab import CodebookTab
from .generate_tab import GenerateTab
from .inpaint_tab import InpaintTab
from .pictures import CSS, image_size
from .reconstruct_tab import ReconstructTab
from .variations_tab import VariationsTab

TABS = (GenerateTab, ReconstructTab, InpaintTab, VariationsTab, CodebookTab)


def build_app(pipe: HQGenerationPipeline) -> gr.Blocks:
    """The page of a generator; `launch_app` shows it.

    Args:
        pipe: The generator, see `load_generator_pipeline`.
    """
    # Without analytics Gradio asks nobody on the internet for anything.
    with gr.Blocks(title="hq_tokenizers", analytics_enabled=False) as app:
        gr.Markdown(f"# hq_tokenizers\n{describe_generator(pipe)}")
        for kind in TABS:
            with gr.Tab(kind.title):
                kind(pipe).build()
    return app


def describe_generator(pipe: HQGenerationPipeline) -> str:
    """What a generator draws and by what codes, in a line."""
    model, (height, width) = pipe.model, image_size(pipe)
    kind = "grey" if model.config.image_tokenizer_config.num_channels == 1 else "colour"
    layout, names = model.code_layout, model.config.id2label or {}
    classes = f" of {len(names)} classes" if names else ""
    return (
        f"A generator of {height}×{width} {kind} images{classes}. An image is {layout.num_codes} codes, "
        f"{layout} ({layout.bits_per_image:.0f} bits), drawn by its {model.prior.config.model_type}."
    )


def launch_app(app: gr.Blocks, **settings: Any) -> Any:
    """Serves the page; all that it is made of comes from this machine.

    Args:
        app: The page.
        **settings: Of Gradio's `launch`, such as `server_name`, `server_port` and `share`.

    Returns:
        What `launch` does.
    """
    return app.launch(
        css=CSS, theme=gr.themes.Default(), ssr_mode=False, footer_links=["api", "gradio", "settings"], **settings
    )

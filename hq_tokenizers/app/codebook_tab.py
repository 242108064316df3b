"""Tab: which codes are used, and what each looks like."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pandas as pd
import torch

from hq_tokenizers.codes import CodeLayout, Codes
from hq_tokenizers.evaluation.pictures import decoded_codes
from hq_tokenizers.pipelines.pipeline_hq_generation import HQGenerationPipeline
from hq_tokenizers.quantization.usage import code_counts, usage_figures

from .library_errors import shown_on_page
from .pictures import gallery

_SHOWN = 36
_MAX_SAMPLES = 256


class CodebookTab:
    """Counts the codes of images, drawn or given, and decodes each code.

    Args:
        pipe: The generator.
    """

    title = "Codebook"

    def __init__(self, pipe: HQGenerationPipeline) -> None:
        self._pipe = pipe
        self._num_levels = pipe.model.code_layout.num_levels

    def build(self) -> None:
        """Adds the images, the usage and the decoded codes to the page."""
        codes = gr.State()
        with gr.Row():
            with gr.Column(scale=2, min_width=280):
                files = gr.File(
                    file_count="multiple", file_types=["image"], label="Images whose codes to count", height=140
                )
                number = gr.Slider(
                    1,
                    _MAX_SAMPLES,
                    64,
                    step=1,
                    label="Images to draw",
                    info="where no files are given; the classes take turns",
                    buttons=[],
                )
                seed = gr.Number(0, precision=0, minimum=0, label="Seed", info="empty: others every time")
                button = gr.Button("Count the codes", variant="primary")
                level = gr.Slider(
                    1,
                    max(self._num_levels, 2),
                    1,
                    step=1,
                    label="Level to look at",
                    visible=self._num_levels > 1,
                    buttons=[],
                )
            with gr.Column(scale=5, min_width=320):
                table = gr.Markdown("Count the codes of some images to see how they are used.")
                plot = gr.BarPlot(
                    x="rank",
                    y="share",
                    y_title="% of positions",
                    x_title="codes, by use",
                    height=200,
                    visible=False,
                    label="Usage",
                )
                title, decodes = gr.Markdown(), gallery(self._pipe, columns=6, visible=False)
        once_at_a_time: dict[str, Any] = {"api_visibility": "private", "concurrency_id": "generator"}
        counted = button.click(self.count, [files, number, seed], [codes, table], **once_at_a_time)
        for event in (counted.success, level.change):
            event(self.show_level, [codes, level], [plot, title, decodes], **once_at_a_time)

    def count(self, files: list[str] | None, number: int, seed: int | None) -> tuple[Codes, str]:
        """The codes of the files, or of images that are drawn, and a table of how each level is used."""
        with shown_on_page():
            found = (
                self._pipe.reconstruct(files, output_type="codes")
                if files
                else self._pipe(self._labels(number), seed=seed, output_type="codes", batch_size=64)
            )
            codes = Codes.cat(found)
            return codes, usage_table(codes)

    def _labels(self, number: int) -> list[int | None]:
        num_classes = len(self._pipe.model.config.id2label or {})
        return [index % num_classes if num_classes else None for index in range(number)]

    def show_level(self, codes: Codes | None, level: int) -> tuple[Any, Any, Any]:
        """How often the codes of a level are used, and what those used most look like."""
        if codes is None:
            return gr.skip(), gr.skip(), gr.skip()
        with shown_on_page():
            level = min(level, self._num_levels) - 1
            counts = level_counts(codes)[level]
            shares = 100 * counts / counts.sum()
            order = counts.argsort(descending=True, stable=True)
            shown = order[:_SHOWN]
            decoded = decoded_codes(self._pipe.model.image_tokenizer, codes, level, shown.to(self._pipe.device))
            captions = [f"{code}: {shares[code]:.1f} %" for code in shown.tolist()]
            images = self._pipe.image_processor.postprocess(decoded.cpu())
        use = pd.DataFrame({"rank": range(1, len(order) + 1), "share": shares[order].tolist()})
        plot = gr.update(value=use, x_lim=[0, len(order) + 1], visible=True)
        pictures = list(zip(images, captions, strict=True))
        return plot, _title(level, len(counts)), gr.update(value=pictures, visible=True)


def _title(level: int, size: int) -> str:
    which = f"the {_SHOWN} most used of {size} codes" if size > _SHOWN else f"all {size} codes"
    rest = ", over the most used code of every level before" if level else ""
    return (
        f"Level {level + 1}, {which}, each decoded from a grid of nothing else{rest}. Below it, its number and share."
    )


def level_counts(codes: Codes) -> list[torch.Tensor]:
    """How often each code of each level occurs: one (K_l,) per level."""
    return [code_counts(level, size) for level, size in zip(codes.levels(), codes.layout.codebook_sizes, strict=True)]


def usage_table(codes: Codes) -> str:
    """How each level is used, as a table in Markdown."""
    figures = {name: values.tolist() for name, values in usage_figures(level_counts(codes)).items()}
    lines = [
        f"Codes of {codes.batch_size} images.",
        "",
        "| level | grid | codes | active | perplexity | usage |",
        "|---|---|---|---|---|---|",
    ]
    for level, (height, width, size) in enumerate(_grids(codes.layout)):
        active, perplexity, usage = (figures[name][level] for name in ("active_codes", "perplexity", "usage"))
        lines.append(f"| {level + 1} | {height}×{width} | {size} | {active:.0f} | {perplexity:.1f} | {usage:.0%} |")
    return "\n".join(lines)


def _grids(layout: CodeLayout) -> list[tuple[int, int, int]]:
    """Height, width and codebook size of every level."""
    return [(group.height, group.width, size) for group in layout.groups for size in group.codebook_sizes]

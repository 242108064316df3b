"""The generator that the page shows, as the pipeline by which everything on the page is made."""

from __future__ import annotations

from hq_tokenizers.models.trained_models import load_generator, load_image_processor
from hq_tokenizers.pipelines.code_decoding import check_items
from hq_tokenizers.pipelines.pipeline_hq_generation import HQGenerationPipeline
from hq_tokenizers.pretrained_models import DEFAULT, pretrained
from hq_tokenizers.processes import create_accelerator


def shipped_generator() -> str:
    """Folder of the generator of clothes that comes with the package."""
    return pretrained(DEFAULT)


def load_generator_pipeline(generator: str) -> HQGenerationPipeline:
    """Loads a generator of images onto the accelerator there is.

    Args:
        generator: Folder, Hub id or name that `pretrained` knows.

    Raises:
        ValueError: If there is no generator, or it does not draw images.
    """
    model = load_generator(generator)
    tokenizer = model.config.image_tokenizer_config
    try:
        check_items(tokenizer, "images", "the app")
    except TypeError as error:
        raise ValueError(f"generator {generator!r}: {error}") from error
    processor = load_image_processor(generator, tokenizer)
    return HQGenerationPipeline(model, image_processor=processor, device=create_accelerator().device)

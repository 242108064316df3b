"""Options of the command `convert`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from hq_tokenizers.checks import ImageSize, Name, check_fields

Format = Literal["taming_vqgan", "llamagen", "rq_vae", "sqvae", "diffusers"]
FORMATS: tuple[Any, ...] = get_args(Format)


@dataclass(kw_only=True)
class ConvertConfig:
    """Options of `convert`.

    Raises:
        ValueError: Without format or checkpoint.
    """

    format: Annotated[
        Format | None,
        "whose checkpoint it is: taming_vqgan (CompVis/taming-transformers), llamagen (FoundationVision/LlamaGen), "
        "rq_vae (kakaobrain/rq-vae-transformer), sqvae (sony/sqvae, images and label maps) or diffusers (a VQModel)",
    ] = None
    checkpoint: Annotated[
        Name | None, "the file of its weights, .ckpt, .pt or .safetensors; of diffusers the folder"
    ] = None
    config: Annotated[
        Name | None,
        "the YAML or JSON file of its settings: sqvae needs it, taming_vqgan and rq_vae take the images' size from it",
    ] = None
    image_size: Annotated[
        ImageSize | None,
        "height and width of its images, an integer or [height, width]; null takes the settings', or 256",
    ] = None
    output_dir: Annotated[Name, "folder of the tokenizer to write"] = "runs/converted"

    def __post_init__(self) -> None:
        check_fields(self)
        if self.format is None or self.checkpoint is None:
            raise ValueError(
                f"convert needs format, one of {', '.join(FORMATS)}, and checkpoint: hq-tokenizers convert --format "
                "taming_vqgan --checkpoint last.ckpt."
            )

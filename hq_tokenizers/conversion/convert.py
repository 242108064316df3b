"""The command `convert`: a checkpoint of another package in, a tokenizer out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel

from hq_tokenizers.files import replacing_files
from hq_tokenizers.models.processors import save_processor
from hq_tokenizers.options.conversion import ConvertConfig
from hq_tokenizers.options.reading import options_to_dict
from hq_tokenizers.processes import create_accelerator
from hq_tokenizers.reporting.folder_lock import lock_folder
from hq_tokenizers.reporting.reports import write_report

from .diffusers_vq import convert_diffusers
from .llamagen import convert_llamagen
from .rq_vae import convert_rq_vae
from .sqvae import convert_sqvae
from .taming_vqgan import convert_taming_vqgan

CONVERTERS: dict[str, Callable[[Path, Mapping[str, Any], Any], PreTrainedModel]] = {
    "taming_vqgan": convert_taming_vqgan,
    "llamagen": convert_llamagen,
    "rq_vae": convert_rq_vae,
    "sqvae": convert_sqvae,
    "diffusers": convert_diffusers,
}


def convert(config: ConvertConfig) -> PreTrainedModel:
    """Converts a checkpoint and writes the tokenizer to `config.output_dir`, with its image processor and report.json.

    Returns:
        The tokenizer, in evaluation mode.

    Raises:
        FileExistsError: If the folder holds a model already.
        FileNotFoundError: If there is no such checkpoint or no such file of settings.
        ValueError: If the checkpoint is another than it should be, or cannot be converted.
    """
    create_accelerator()
    folder = Path(config.output_dir)
    with lock_folder("output_dir", folder):
        if (folder / "config.json").exists():
            raise FileExistsError(f"{folder} holds a model already: choose another output_dir.")
        assert config.format is not None
        assert config.checkpoint is not None
        settings = {} if config.config is None else _settings(Path(config.config))
        model = CONVERTERS[config.format](Path(config.checkpoint), settings, config.image_size)
        with replacing_files(folder) as new:
            model.save_pretrained(new)
            save_processor(model, new)
        layout = model.code_layout()
        report = {
            "model_type": model.config.model_type,
            "num_parameters": model.num_parameters(),
            "code_layout": str(layout),
            "bits_per_image": layout.bits_per_image,
            "options": options_to_dict(config),
        }
        write_report(folder, report)
    print(
        f"{config.output_dir} holds a {model.config.model_type} of {report['num_parameters']:,} parameters with codes "
        f"{layout}; `evaluate --tokenizer {config.output_dir}` judges it."
    )
    return model


def _settings(path: Path) -> Mapping[str, Any]:
    """A YAML or JSON file of settings, of which nothing but plain values is read."""
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of settings {str(path)!r}.")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is neither YAML nor JSON of plain values: {error}") from error
    if not isinstance(settings, Mapping):
        raise ValueError(f"{path} must hold names and values, got {type(settings).__name__}.")
    return settings

"""The command `evaluate`: finds the subject, judges it, and reports."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from hq_tokenizers.evaluation.generator import evaluate_generator
from hq_tokenizers.evaluation.images import evaluate_images
from hq_tokenizers.evaluation.networks import check_packages
from hq_tokenizers.evaluation.sound_generator import evaluate_sound_generator
from hq_tokenizers.evaluation.tokenizer import evaluate_tokenizer_on_data
from hq_tokenizers.models.configuration_image_tokenizer import is_of_sound
from hq_tokenizers.models.trained_models import load_generator
from hq_tokenizers.options.evaluation import EvaluateConfig
from hq_tokenizers.options.reading import options_to_dict
from hq_tokenizers.priors.configuration_code_generation import CodeGenerationConfig, settings_from_options
from hq_tokenizers.processes import create_accelerator
from hq_tokenizers.reporting.folder_lock import lock_folder
from hq_tokenizers.reporting.tables import check_output_dir, write_evaluation


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Evaluates a tokenizer, a generator or a folder of images and writes the report to `config.output_dir`.

    Returns:
        The report: "subject", "results" by metric with their provenance, "left_out" with reasons, and "options".

    Raises:
        BlockingIOError: If another command is writing to `config.output_dir` or `config.images_dir`.
        OSError, ValueError: If the subject, the data and the metrics do not fit together, before anything is measured.
    """
    accelerator = create_accelerator()
    with ExitStack() as locks:
        locks.enter_context(lock_folder("output_dir", config.output_dir))
        if config.images_dir is not None and Path(config.images_dir).resolve() != Path(config.output_dir).resolve():
            locks.enter_context(lock_folder("images_dir", config.images_dir))
        return _evaluate(config, accelerator)


def _evaluate(config: EvaluateConfig, accelerator: Accelerator) -> dict[str, Any]:
    output_dir = Path(config.output_dir)
    subjects = {"tokenizer": config.tokenizer, "generator": config.generator, "images": config.images}
    check_output_dir(output_dir, {name: path for name, path in subjects.items() if path is not None})
    check_packages()
    if config.tokenizer is not None:
        report = evaluate_tokenizer_on_data(config, accelerator)
    elif config.images is not None:
        report = evaluate_images(config, accelerator)
    else:
        report = _evaluate_generator(config, accelerator)
    report["options"] = options_to_dict(config)
    if accelerator.is_main_process:
        write_evaluation(output_dir, report)
    accelerator.wait_for_everyone()
    return report


def _evaluate_generator(config: EvaluateConfig, accelerator: Accelerator) -> dict[str, Any]:
    assert config.generator is not None
    generator = load_generator(config.generator)
    settings = CodeGenerationConfig.from_generation_config(generator.generation_config)
    settings = settings.with_overrides(**settings_from_options(config.generation))
    generator.prior.check_generation_config(settings)
    described = {name: value for name, value in settings.to_dict().items() if name != "transformers_version"}
    judge = evaluate_sound_generator if is_of_sound(generator.config.image_tokenizer_config) else evaluate_generator
    return judge(config, generator.to(accelerator.device), described, accelerator)

"""Stage one: training an image tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, set_seed

from hq_tokenizers.data.images import Batch, ImageRows
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.diagnostics import diagnose
from hq_tokenizers.evaluation.networks import check_packages
from hq_tokenizers.evaluation.reconstructions import ReconstructionMetrics, evaluation_figures
from hq_tokenizers.evaluation.references import data_identity
from hq_tokenizers.image_processing_hq import HQImageProcessor
from hq_tokenizers.options.evaluation import check_unused_in_training
from hq_tokenizers.options.reading import options_to_dict
from hq_tokenizers.options.training import TokenizerTrainingConfig
from hq_tokenizers.quantization.vector_codebook import VectorCodebook

from .continuation import count_steps
from .evaluation import evaluate_tokenizer
from .figures import reconstruction_grid, save_curves, save_png
from .loop import Metrics, Stage, TrainingLoop, create_accelerator
from .model_section import build_tokenizer_config
from .reports import images_per_second, write_report
from .tracking import Record, Tracker, read_history

NUM_PICTURES = 32
_PANELS = {
    "loss and its terms": ["loss", "reconstruction", "progressive", "continuous", "discrete", "kl"],
    "codebook terms": ["commitment", "codebook"],
    "MSE per pixel": ["mse"],
    "LPIPS": ["lpips", "lpips_by_levels"],
    "rFID": ["rfid"],
    "Fréchet distance (not FID)": ["frechet_distance"],
    "MSE of the first levels": ["mse_by_levels"],
    "label maps": ["pixel_accuracy", "mean_iou"],
    "perplexity": ["perplexity", "batch_perplexity"],
    "perplexity / K": ["usage"],
    "active codes": ["active_codes"],
    "share of dead codes": ["dead_rate"],
    "entropy of P̂ (nats)": ["entropy"],
    "variance": ["variance"],
}


def train_tokenizer(config: TokenizerTrainingConfig) -> dict[str, Any]:
    """Trains a tokenizer, or continues the run in `config.output_dir`, and writes it there.

    The folder ends up with config.json, model.safetensors and preprocessor_config.json, which `from_pretrained` loads;
    reconstructions.png, curves.png, report.json, metrics.jsonl and the checkpoints.

    Returns:
        The report; its "test" figures are those of `evaluate_tokenizer` on the test split.

    Raises:
        ValueError: For options, data or a model that do not fit together, before anything is trained.
    """
    train, validation, test = load_splits(config)
    accelerator = create_accelerator()
    model = _build_model(config, train)
    _check_warmup(config, model, train, accelerator.num_processes)
    evaluate = _evaluation(config, accelerator, model, validation)
    stage = _stage(config, accelerator, model, train, validation)
    loop = TrainingLoop(config, accelerator, model, train, replace(stage, evaluate=evaluate))
    model = loop.run()
    figures = evaluate_tokenizer(model, test, config.batch_size, accelerator)
    findings = diagnose(model.config, codebook_sizes(model), figures)
    report = {
        "model_type": model.config.model_type,
        "num_parameters": model.num_parameters(),
        **_describe_codes(model),
        "steps": loop.step,
        "epochs": loop.step / loop.plan.steps_per_epoch,
        "test": figures,
        "findings": [finding.to_dict() for finding in findings],
        "options": options_to_dict(config),
    }
    if accelerator.is_main_process:
        _save(Path(config.output_dir), model, test, accelerator.device)
        history = read_history(Path(config.output_dir))
        save_curves(history, _panels(model), Path(config.output_dir) / "curves.png")
        report["images_per_second"] = images_per_second(history)
        write_report(Path(config.output_dir), report)
    accelerator.wait_for_everyone()
    return report


def _panels(model: PreTrainedModel) -> dict[str, list[str]]:
    """The panels of the curves; deterministic and continuous bottlenecks have no P̂ and no variance of it."""
    stochastic = model.config.quantizer not in ("vq", "none")
    return {title: names for title, names in _PANELS.items() if stochastic or not {"entropy", "variance"} & set(names)}


def codebook_sizes(model: PreTrainedModel) -> tuple[int, ...]:
    """Codebook size of every level; none for a VAE."""
    return () if model.config.quantizer == "none" else model.code_layout().codebook_sizes


def _describe_codes(model: PreTrainedModel) -> dict[str, Any]:
    if not codebook_sizes(model):
        return {"code_layout": None, "codebook_sizes": [], "bits_per_image": None}
    layout = model.code_layout()
    return {
        "code_layout": str(layout),
        "codebook_sizes": list(layout.codebook_sizes),
        "bits_per_image": layout.bits_per_image,
    }


def pictures(model: PreTrainedModel, data: ImageRows, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The first images of a split and their reconstructions."""
    (batch,) = data.batches([torch.arange(min(NUM_PICTURES, len(data)))], device)
    with torch.no_grad():
        return batch["pixel_values"], model(batch["pixel_values"], return_loss=False).reconstruction


def load_splits(config: TokenizerTrainingConfig) -> tuple[ImageRows, ImageRows, ImageRows]:
    """The training, validation and test split; the validation split again where there is no test split.

    Raises:
        ValueError: If they differ in the size or the channels of their images.
    """
    names = ["train_split", "validation_split"] + (["test_split"] if config.data.test_split else [])
    train, validation, *test = load_image_splits(config.data, *names)
    for rows, name in ((validation, "validation_split"), *((rows, "test_split") for rows in test)):
        if rows.image_format != train.image_format:
            raise ValueError(
                f"data.{name} has images of {rows.image_format}, data.train_split of {train.image_format}: set "
                "data.image_size and data.num_channels."
            )
    return train, validation, test[0] if test else validation


def check_model(config: TokenizerTrainingConfig, train: ImageRows) -> None:
    """Builds the model of a run without its memory, so that many runs can be checked before the first of them.

    Raises:
        ValueError: If model, data and length of the run do not fit together.
        TypeError: If a field of the model has a value of another type than it should.
    """
    with torch.device("meta"):
        _check_warmup(config, AutoModel.from_config(_model_config(config, train)), train, num_processes=1)


def _model_config(config: TokenizerTrainingConfig, train: ImageRows) -> PreTrainedConfig:
    height, width, channels = train.image_format.height, train.image_format.width, train.image_format.num_channels
    from_data: dict[str, Any] = {"image_size": height if height == width else [height, width]}
    if config.data.label_map_classes is None:
        from_data["num_channels"] = channels
    else:
        from_data["num_classes"] = config.data.label_map_classes
    model_config = build_tokenizer_config(config.model, from_data)
    if model_config.for_label_maps and config.data.label_map_classes is None:
        raise ValueError(
            f"The model is one of label maps (likelihood {model_config.likelihood}), but the data are images: set "
            "data.label_map_classes to the number of classes, or choose a model of images."
        )
    return model_config


def _build_model(config: TokenizerTrainingConfig, train: ImageRows) -> PreTrainedModel:
    model_config = _model_config(config, train)
    set_seed(config.seed)
    return AutoModel.from_config(model_config)


def _check_warmup(
    config: TokenizerTrainingConfig, model: PreTrainedModel, train: ImageRows, num_processes: int
) -> None:
    """Refuses a run in which codebooks would never be estimated."""
    steps_per_epoch = len(train) // config.batch_size
    if not model.config.reestimation_epochs or not steps_per_epoch:
        return
    warmup = model.config.warmup_epochs * steps_per_epoch
    total = count_steps(options_to_dict(config), steps_per_epoch)
    if total <= warmup:
        raise ValueError(
            f"The run has {total} steps, but the model quantises nothing in its first {model.config.warmup_epochs} "
            f"epochs ({warmup} steps), and its codebooks are estimated after them: train for longer (epochs, "
            "max_steps), or set model.warmup_epochs lower."
        )
    # Codebooks are estimated from what the first process saw.
    images = warmup * config.batch_size // num_processes
    for group in model.code_layout().groups:
        vectors = min(images * group.num_positions, model.config.reservoir_size)
        if vectors < max(group.codebook_sizes):
            raise ValueError(
                f"A codebook of {max(group.codebook_sizes)} codes cannot be estimated from the {vectors} vectors that "
                "are kept before: raise model.reservoir_size or model.warmup_epochs, or use fewer codes."
            )


def _stage(
    config: TokenizerTrainingConfig,
    accelerator: Accelerator,
    model: PreTrainedModel,
    train: ImageRows,
    validation: ImageRows,
) -> Stage:
    def step(wrapped: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        pixel_values = batch["pixel_values"]
        if config.data.horizontal_flip:
            pixel_values = flip_at_random(pixel_values)
        output = wrapped(pixel_values)
        diagnostics = dict(output.diagnostics or {})
        if "perplexity" in diagnostics:
            diagnostics["batch_perplexity"] = diagnostics.pop("perplexity")
        return output.loss, {**_batch_quality(output.reconstruction, pixel_values), **output.terms, **diagnostics}

    def validate(model: PreTrainedModel) -> Record:
        return evaluate_tokenizer(model, validation, config.batch_size, accelerator)

    warner = _Warner(model)

    def start_epoch(model: PreTrainedModel, tracker: Tracker, epoch: int) -> list[torch.Tensor]:
        warming_up = model.warming_up
        if not model.start_epoch(epoch, config.seed):
            if warming_up and not model.warming_up:
                tracker.say("warning: too few vectors were seen for the codebooks, which stay as they were initialised")
            return []
        tracker.say(f"Epoch {epoch}: codebooks replaced by the k-means centres of what was seen.")
        codebooks = [module for module in model.modules() if isinstance(module, VectorCodebook)]
        return [tensor for codebook in codebooks for tensor in (*codebook.parameters(), *codebook.buffers())]

    def after_validation(validated: PreTrainedModel, tracker: Tracker, step: int, figures: Record) -> None:
        # In its first epoch every codebook looks inflated or collapsed.
        if step >= len(train) // config.batch_size and not model.warming_up:
            warner.warn(tracker, figures)
        grid = reconstruction_grid(*pictures(validated, validation, accelerator.device))
        save_png(grid, Path(config.output_dir) / "reconstructions.png")
        tracker.image("reconstructions", grid, step)

    return Stage(
        title="tokenizer",
        step=step,
        validate=validate,
        parameter_groups=model.parameter_groups(config.learning_rate),
        before_epoch=start_epoch,
        after_step=lambda model: model.advance(),
        after_validation=after_validation,
        is_judged=lambda model: not model.warming_up,
    )


class _Warner:
    """Says what is wrong with a level of a model, again only when it was well in between."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._reported: set[tuple[int, str]] = set()

    def warn(self, tracker: Tracker, figures: Record) -> None:
        """Looks at the figures of a validation."""
        findings = {
            (finding.level, finding.symptom): finding
            for finding in diagnose(self.model.config, codebook_sizes(self.model), figures)
        }
        for key, finding in findings.items():
            if key not in self._reported:
                tracker.say(f"warning: {finding}")
        self._reported = set(findings)


def _evaluation(
    config: TokenizerTrainingConfig, accelerator: Accelerator, model: PreTrainedModel, validation: ImageRows
) -> Callable[[PreTrainedModel], Record] | None:
    """The figures of `evaluate` on the validation split; None when not asked for."""
    check_unused_in_training(config)
    if config.evaluation_steps is None:
        return None
    check_packages()
    if model.config.for_label_maps:
        raise ValueError(
            "evaluation_steps is for images; of label maps every validation reports pixel accuracy and mean IoU."
        )
    identity = data_identity(config.data, "validation_split")
    metrics = ReconstructionMetrics(config.metrics, model.to(accelerator.device), validation, identity, accelerator)
    for name, reason in metrics.notes.items() if accelerator.is_main_process else ():
        print(f"left out: {name}: {reason}")
    return lambda model: evaluation_figures(metrics(model, config.batch_size).results)


def _batch_quality(reconstruction: torch.Tensor, pixel_values: torch.Tensor) -> Metrics:
    if not pixel_values.is_floating_point():
        return {"pixel_accuracy": (reconstruction == pixel_values).float().mean()}
    return {"mse": (reconstruction.detach().float() - pixel_values).square().mean()}


def flip_at_random(pixel_values: torch.Tensor) -> torch.Tensor:
    """Mirrors about half of the images (B, …, H, W) horizontally, by torch's global noise, which checkpoints keep."""
    flipped = torch.rand(pixel_values.shape[0], device=pixel_values.device) < 0.5
    return torch.where(flipped.view(-1, *[1] * (pixel_values.ndim - 1)), pixel_values.flip(-1), pixel_values)


def _save(output_dir: Path, model: PreTrainedModel, test: ImageRows, device: torch.device) -> None:
    model.save_pretrained(output_dir)
    if not model.config.for_label_maps:
        processor = HQImageProcessor.for_image_size(model.config.image_size, model.config.num_channels)
        processor.save_pretrained(output_dir)
    save_png(reconstruction_grid(*pictures(model, test, device)), output_dir / "reconstructions.png")

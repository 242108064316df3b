"""Stage one: training an image tokenizer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import AutoModel, PreTrainedModel

from hq_tokenizers.checks import image_height_width
from hq_tokenizers.data.images import Batch, ImageRows
from hq_tokenizers.data.sound import SoundRows, model_inputs, random_segments
from hq_tokenizers.data.streams import STEPS_OF_AN_EPOCH, ImageStream
from hq_tokenizers.evaluation.diagnostics import diagnose
from hq_tokenizers.evaluation.networks import check_packages
from hq_tokenizers.evaluation.pictures import named_reconstructions, spread_over
from hq_tokenizers.evaluation.reconstructions import ReconstructionMetrics, evaluation_figures
from hq_tokenizers.evaluation.references import data_identity
from hq_tokenizers.evaluation.sound import bits_per_second, spectrogram_pictures, squared_error
from hq_tokenizers.evaluation.validation import evaluate_tokenizer
from hq_tokenizers.files import replacing_files
from hq_tokenizers.models.autoencoders import networks_sha256
from hq_tokenizers.models.configuration_image_tokenizer import is_of_sound
from hq_tokenizers.models.processors import save_processor
from hq_tokenizers.options.evaluation import check_unused_in_training
from hq_tokenizers.options.reading import options_to_dict
from hq_tokenizers.options.training import TokenizerTrainingConfig
from hq_tokenizers.processes import create_accelerator
from hq_tokenizers.quantization.codebook import codebook_tensors
from hq_tokenizers.quantization.moving_averages import set_accumulation
from hq_tokenizers.reporting.figures import reconstruction_grid, save_curves, save_png
from hq_tokenizers.reporting.folder_lock import lock_folder
from hq_tokenizers.reporting.reports import images_per_second, write_report
from hq_tokenizers.reporting.tracking import Record, Tracker, read_history

from .dry_run import dry_run, layout_in_words, smaller_run
from .image_losses import ImageLosses
from .loop import TrainingLoop
from .model_options import DEFAULT_NETWORK, FROM_AUTOENCODER, check_section, sound_config
from .stage import Metrics, Stage
from .tokenizer_setup import (
    Rows,
    TrainingRows,
    build_model,
    check_warmup,
    check_warmup_epochs,
    load_splits,
    model_config_of,
    synthetic_rows,
)

NUM_PICTURES = 32
EARLY_STEPS = 300
"""Steps in which no level is called broken, however small an epoch is."""
_PANELS = {
    "loss and its terms": ["loss", "reconstruction", "progressive", "continuous", "discrete", "kl"],
    "codebook terms": ["commitment", "codebook"],
    "MSE per pixel": ["mse"],
    "MSE by kind of codes": ["mse_argmax", "mse_relaxed", "mse_sampled"],
    "pixel accuracy by kind of codes": ["pixel_accuracy_argmax", "pixel_accuracy_relaxed", "pixel_accuracy_sampled"],
    "MSE of log-mel (dB²)": ["mse_db2"],
    "LPIPS": ["lpips", "lpips_by_levels"],
    "discriminator": ["discriminator_loss", "real_logit", "fake_logit"],
    "adversarial weight": ["adversarial_weight"],
    "rFID": ["rfid"],
    "Fréchet distance (not FID)": ["frechet_distance"],
    "MSE of the first levels": ["mse_by_levels"],
    "label maps": ["pixel_accuracy", "mean_iou"],
    "perplexity": ["perplexity", "batch_perplexity"],
    "perplexity / K": ["usage"],
    "entropy / log K": ["normalized_entropy"],
    "active codes": ["active_codes"],
    "share of dead codes": ["dead_rate"],
    "entropy of P̂ (nats)": ["entropy"],
    "variance": ["variance"],
    "energy per value, left over": ["residual_energy"],
    "energy per value, latents and codes": ["latent_energy", "codebook_energy"],
    "rate (bits per image)": ["kl_bits_per_image", "histogram_bits_per_image"],
    "rate of the levels (bits per image)": ["histogram_bits_by_level"],
    "Gumbel temperature": ["temperature"],
}


def train_tokenizer(config: TokenizerTrainingConfig) -> dict[str, Any]:
    """Trains a tokenizer, or continues the run in `config.output_dir`, and writes it there.

    The folder ends up with config.json, model.safetensors and preprocessor_config.json, which `from_pretrained` loads;
    reconstructions.png, curves.png, report.json, metrics.jsonl and the checkpoints.

    Returns:
        The report; its "test" figures are those of `evaluate_tokenizer` on the test split. With `config.dry_run` what
        `dry_run` found, and nothing is written.

    Raises:
        BlockingIOError: If another command is writing to `config.output_dir`.
        ValueError: For options, data or a model that do not fit together, or a run in `config.output_dir` on other
            images, before anything is trained.
    """
    accelerator = create_accelerator()
    if config.dry_run:
        return _dry_run(config, accelerator)
    with lock_folder("output_dir", config.output_dir):
        return _train_tokenizer(config, accelerator)


def _dry_run(config: TokenizerTrainingConfig, accelerator: Accelerator) -> dict[str, Any]:
    """See `dry_run`."""
    values, make = synthetic_rows(config)
    smaller = _with_all_losses(smaller_run(config, values, accelerator.num_processes))
    made_up = make(smaller.batch_size)

    def prepare() -> tuple[Stage, Rows]:
        return TokenizerStage(smaller, accelerator, build_model(config, made_up), made_up, made_up), made_up

    model_config = model_config_of(config, made_up)
    check_warmup_epochs(config, model_config)
    with torch.device("meta"):
        model = AutoModel.from_config(model_config)
    model.freeze(config.freeze)
    items = "sounds" if isinstance(made_up, SoundRows) else "images"
    return dry_run(config, smaller, accelerator, model, prepare, _what_is_trained(config, model), items)


def _what_is_trained(config: TokenizerTrainingConfig, model: PreTrainedModel) -> dict[str, str]:
    """System, networks, images and codes, in words."""
    section = {"network": DEFAULT_NETWORK, **config.model} if "preset" in config.model else config.model
    names = ("preset", "network", "model_type", FROM_AUTOENCODER)
    named = {name: str(section[name]) for name in names if name in section}
    if not is_of_sound(model.config):
        channels = [] if model.config.for_label_maps else [model.config.num_channels]
        named["images"] = "×".join(map(str, [*image_height_width(model.config.image_size), *channels]))
        if config.data.name != "digits":
            named["images"] += " (data.image_size and data.num_channels, or else the network's)"
    layout = {"codes": layout_in_words(model.code_layout())} if model.config.has_codes else {}
    epochs = model.config.warmup_epochs
    if not epochs:
        return {**named, **layout}
    needed = f"{epochs}; max_steps has to be more than these" if config.max_steps is not None else str(epochs)
    return {**named, **layout, "epochs before quantisation": needed}


def _with_all_losses(config: TokenizerTrainingConfig) -> TokenizerTrainingConfig:
    """The options with every loss of a run counting from the first step on."""
    changed: dict[str, Any] = {}
    for section in ("perceptual", "adversarial"):
        if getattr(config, section).start_step is not None:
            changed[section] = replace(getattr(config, section), start_step=0)
    return replace(config, **changed)


def _train_tokenizer(config: TokenizerTrainingConfig, accelerator: Accelerator) -> dict[str, Any]:
    _check_evaluation_options(config)
    check_section(config.model)
    train, validation, test = load_splits(config)
    model = build_model(config, train)
    check_warmup(config, model, train, accelerator.num_processes)
    stage = TokenizerStage(config, accelerator, model, train, validation)
    loop = TrainingLoop(config, accelerator, train, stage)
    model = loop.run()
    figures = evaluate_tokenizer(model, test, config.batch_size, accelerator)
    findings = diagnose(model.config, codebook_sizes(model), figures)
    report = {
        "model_type": model.config.model_type,
        "num_parameters": model.num_parameters(),
        **_describe_codes(model, train),
        "steps": loop.step,
        "epochs": loop.feed.epochs(loop.step),
        "test": figures,
        "findings": [finding.to_dict() for finding in findings],
        "options": options_to_dict(config),
    }
    if accelerator.is_main_process:
        _save(Path(config.output_dir), model, test, accelerator.device)
        history = read_history(Path(config.output_dir))
        save_curves(history, _panels(model), Path(config.output_dir) / "curves.png")
        report["images_per_second"] = images_per_second(history)
        report |= _describe_discriminator(stage, history)
        write_report(Path(config.output_dir), report)
        print(f"The tokenizer, its pictures, curves and report.json are in {config.output_dir}.")
        if findings and stage.is_early(loop.step):
            print(f"After {loop.step} steps it is too early to judge the codes. So far:")
            print(*(finding.observation for finding in findings), sep="\n")
        elif not findings and model.config.has_codes:
            early = f"After {loop.step} steps, which is early: nothing" if stage.is_early(loop.step) else "Nothing"
            print(f"{early} is wrong with the codes of any level.")
    accelerator.wait_for_everyone()
    return report


def _panels(model: PreTrainedModel) -> dict[str, list[str]]:
    """The panels of the curves; deterministic and continuous bottlenecks have no P̂ and no variance of it."""
    return {
        title: names
        for title, names in _PANELS.items()
        if model.config.is_stochastic or not {"entropy", "variance"} & set(names)
    }


def codebook_sizes(model: PreTrainedModel) -> tuple[int, ...]:
    """Codebook size of every level; none for a VAE."""
    return model.code_layout().codebook_sizes if model.config.has_codes else ()


def _describe_codes(model: PreTrainedModel, train: TrainingRows) -> dict[str, Any]:
    if not codebook_sizes(model):
        return {"code_layout": None, "codebook_sizes": [], "bits_per_image": None}
    layout = model.code_layout()
    described = {
        "code_layout": str(layout),
        "codebook_sizes": list(layout.codebook_sizes),
        "bits_per_image": layout.bits_per_image,
    }
    if isinstance(train, SoundRows):
        described["bits_per_second"] = bits_per_second(model, train.extractor)
    return described


def _describe_discriminator(stage: TokenizerStage, history: list[Record]) -> dict[str, Any]:
    """Size and last figures of the discriminator, where there is one."""
    if stage.discriminator is None:
        return {}
    names = ("discriminator_loss", "real_logit", "fake_logit", "adversarial", "adversarial_weight")
    last = [record for record in history if record["split"] == "train"][-1:]
    size = sum(parameter.numel() for parameter in stage.discriminator.parameters())
    figures = {name: record[name] for record in last for name in names if name in record}
    return {"discriminator": {"num_parameters": size, **figures}}


def pictures(model: PreTrainedModel, data: Rows, device: torch.device) -> np.ndarray:
    """Images or sounds of a split and their reconstructions, as one picture."""
    (batch,) = data.batches([spread_over(len(data), NUM_PICTURES)], device)
    versions = named_reconstructions(model, **model_inputs(batch))
    return reconstruction_grid(
        spectrogram_pictures(versions, batch, data.extractor) if isinstance(data, SoundRows) else versions
    )


class TokenizerStage(Stage):
    """Trains a tokenizer on images.

    Args:
        config: Options.
        accelerator: Whose processes share the work.
        model: The tokenizer, with its initial weights.
        train: Images to train on, or a stream of them.
        validation: Images to validate on.

    Raises:
        OSError, ValueError: If evaluations are asked for and cannot be had.
    """

    title = "tokenizer"

    def __init__(
        self,
        config: TokenizerTrainingConfig,
        accelerator: Accelerator,
        model: PreTrainedModel,
        train: TrainingRows,
        validation: Rows,
    ) -> None:
        super().__init__(model)
        set_accumulation(model, config.gradient_accumulation)
        self.config = config
        self.accelerator = accelerator
        self.validation = validation
        self._steps_per_epoch = STEPS_OF_AN_EPOCH if isinstance(train, ImageStream) else len(train) // config.batch_size
        self._inputs = {
            "training_images_sha256": train.sha256(),
            "validation_images_sha256": validation.sha256(),
        }
        self._warner = _Warner(model, config.model.get("recipe") == "paper" and model.config.is_stochastic)
        self._metrics = _evaluation_metrics(config, accelerator, model, validation)
        self._image_losses = _image_losses(config, accelerator, model)
        if self._image_losses is not None:
            self.discriminator = self._image_losses.discriminator
            self._inputs |= self._image_losses.inputs
        if FROM_AUTOENCODER in config.model:
            self._inputs |= {"autoencoder_sha256": networks_sha256(model)}

    def step(self, wrapped: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """The negative ELBO (or the VQ objective) of a batch, and the losses of images that are trained besides."""
        segment = self.config.data.sound.segment_frames
        if "attention_mask" in batch and segment is not None:
            batch = random_segments(batch, segment)
        output = wrapped(**model_inputs(batch))
        diagnostics = dict(output.diagnostics or {})
        if "perplexity" in diagnostics:
            diagnostics["batch_perplexity"] = diagnostics.pop("perplexity")
        figures = {**_batch_quality(output.reconstruction, batch), **output.terms, **diagnostics}
        if self._image_losses is None:
            return output.loss, figures
        added, further = self._image_losses(output.reconstruction, batch["pixel_values"])
        return output.loss + added, {**figures, **further, "loss": output.loss}

    def discriminator_step(self) -> tuple[torch.Tensor, Metrics] | None:
        """The hinge loss of the discriminator, if there is one and it trains already."""
        return None if self._image_losses is None else self._image_losses.discriminator_loss()

    def validate(self, model: PreTrainedModel) -> Record:
        """See `evaluate_tokenizer`."""
        return evaluate_tokenizer(model, self.validation, self.config.batch_size, self.accelerator)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Codebooks and the discriminator at learning rates of their own."""
        rate = self.config.learning_rate
        groups = self.model.parameter_groups(rate)
        return groups if self._image_losses is None else groups + self._image_losses.discriminator_group(rate)

    def inputs(self) -> dict[str, str]:
        """Hashes of the images, see `ImageRows.sha256`; those of validation decide plateaus and the best model."""
        return self._inputs

    def before_epoch(self, tracker: Tracker, epoch: int, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
        """Re-estimates the codebooks where the configuration asks for it."""
        if not self.model.start_epoch(epoch, self.config.seed, optimizer):
            return []
        tracker.say(f"Epoch {epoch}: codebooks replaced by the k-means centres of what was seen.")
        return codebook_tensors(self.model)

    def before_step(self, tracker: Tracker, step: int) -> None:
        """Says when a loss begins to count."""
        for text in () if self._image_losses is None else self._image_losses.before_step(step):
            tracker.say(text)

    def after_step(self) -> None:
        """Moves the Gumbel temperature on."""
        self.model.advance()

    def after_validation(self, model: PreTrainedModel, tracker: Tracker, step: int, figures: Record) -> None:
        """Warns of levels that are not well, and draws reconstructions.png."""
        if not self.is_early(step):
            self._warner.warn(tracker, figures)
        grid = pictures(model, self.validation, self.accelerator.device)
        save_png(grid, Path(self.config.output_dir) / "reconstructions.png")
        tracker.image("reconstructions", grid, step)

    def is_early(self, step: int) -> bool:
        """Whether a level may look broken only because of a first epoch, first steps or a warm-up."""
        return self.model.warming_up or step < max(self._steps_per_epoch, EARLY_STEPS)

    def evaluate(self, model: PreTrainedModel) -> Record:
        """The figures of `evaluate` on the validation split; none when they were not asked for."""
        if self._metrics is None:
            return {}
        return evaluation_figures(self._metrics(model, self.config.batch_size).results)

    def is_judged(self) -> bool:
        """Not before the model quantises."""
        return not self.model.warming_up


class _Warner:
    """Says what is wrong with a level of a model, again only when it was well in between."""

    def __init__(self, model: PreTrainedModel, by_recipe: bool) -> None:
        self.model = model
        self.by_recipe = by_recipe
        self._reported: set[tuple[tuple[int, ...], str]] = set()

    def warn(self, tracker: Tracker, figures: Record) -> None:
        """Looks at the figures of a validation."""
        findings = {
            (finding.levels, finding.symptom): finding
            for finding in diagnose(self.model.config, codebook_sizes(self.model), figures)
        }
        for key, finding in findings.items():
            if key not in self._reported:
                tracker.say(f"warning: {finding}")
        if self.by_recipe and findings.keys() - self._reported:
            tracker.say(
                "Or train without --model.recipe paper, in another output_dir: the recipe is for as many epochs as its "
                "paper has, the preset alone for short runs, too (docs/troubleshooting.md#the-combination)."
            )
        self._reported = set(findings)


def _check_evaluation_options(config: TokenizerTrainingConfig) -> None:
    """Before any data are read."""
    check_unused_in_training(config)
    if config.evaluation_steps is None:
        return
    if config.data.label_map_classes is not None or sound_config(config.model) is not None:
        raise ValueError(
            "evaluation_steps is for images; of label maps every validation reports pixel accuracy and mean IoU, of "
            "sounds the error in dB²."
        )
    check_packages()


def _evaluation_metrics(
    config: TokenizerTrainingConfig, accelerator: Accelerator, model: PreTrainedModel, validation: Rows
) -> ReconstructionMetrics | None:
    """The metrics of `evaluate` on the validation split; None when not asked for."""
    if config.evaluation_steps is None:
        return None
    identity = data_identity(config.data, "validation_split")
    assert isinstance(validation, ImageRows)  # `_check_evaluations` refused sounds
    metrics = ReconstructionMetrics(config.metrics, model.to(accelerator.device), validation, identity, accelerator)
    for name, reason in metrics.notes.items() if accelerator.is_main_process else ():
        print(f"left out: {name}: {reason}")
    return metrics


def _image_losses(
    config: TokenizerTrainingConfig, accelerator: Accelerator, model: PreTrainedModel
) -> ImageLosses | None:
    """LPIPS and the discriminator; None when not asked for."""
    wanted = config.perceptual.network is not None or config.adversarial.start_step is not None
    if wanted and model.config.modality == "sound":
        raise ValueError("perceptual and adversarial losses are for images: leave them out for a model of sound.")
    return ImageLosses(config, model, accelerator) if wanted else None


def _batch_quality(reconstruction: torch.Tensor, batch: Batch) -> Metrics:
    pixel_values = batch["pixel_values"]
    if "attention_mask" in batch:
        error, number = squared_error(reconstruction, batch)
        return {"mse": error / number}
    if not pixel_values.is_floating_point():
        return {"pixel_accuracy": (reconstruction == pixel_values).float().mean()}
    return {"mse": (reconstruction.detach().float() - pixel_values).square().mean()}


def _save(output_dir: Path, model: PreTrainedModel, test: Rows, device: torch.device) -> None:
    with replacing_files(output_dir) as new:
        model.save_pretrained(new)
        save_processor(model, new, test.extractor if isinstance(test, SoundRows) else None)
    save_png(pictures(model, test, device), output_dir / "reconstructions.png")

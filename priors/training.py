"""Stage two: training a prior on encoded images."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import AutoModel, PreTrainedModel, set_seed

from hq_tokenizers.codes import CodeLayout
from hq_tokenizers.configuration_image_tokenizer import ImageTokenizerConfig
from hq_tokenizers.data.encoded import CodeRows, EncodedImages
from hq_tokenizers.data.images import Batch
from hq_tokenizers.options.evaluation import check_unused_in_training
from hq_tokenizers.options.reading import options_to_dict
from hq_tokenizers.options.training import PriorTrainingConfig
from hq_tokenizers.training.batches import validation_batches
from hq_tokenizers.training.encoding import weights_sha256
from hq_tokenizers.training.evaluation import RunningSums
from hq_tokenizers.training.figures import image_grid, save_curves, save_png
from hq_tokenizers.training.loop import Metrics, Stage, TrainingLoop, create_accelerator
from hq_tokenizers.training.model_section import build_model_config
from hq_tokenizers.training.optimization import decay_groups
from hq_tokenizers.training.reports import images_per_second, write_report
from hq_tokenizers.training.tracking import Record, Tracker, read_history
from hq_tokenizers.training.trained_models import load_trained

from .configuration_masked_prior import MaskedPriorConfig
from .configuration_rq_prior import RQPriorConfig
from .likelihood import dense_soft_targets

_PANELS = {
    "loss (nats per code)": ["loss"],
    "bits per code, by level": ["bits_per_code_by_level", "unigram_bits_by_level"],
    "learning rate": ["learning_rate"],
    "samples": ["fid", "frechet_distance"],
}


def train_prior(
    config: PriorTrainingConfig, evaluate: Callable[[PreTrainedModel], Record] | None = None
) -> dict[str, Any]:
    """Trains a prior on a folder of codes, or continues the run in `config.output_dir`, and writes it there.

    The folder ends up with config.json, model.safetensors and generation_config.json, which `from_pretrained` loads;
    samples.png when the tokenizer is at hand, curves.png, report.json, metrics.jsonl and the checkpoints.

    Args:
        config: Options.
        evaluate: prior → figures of its samples, recorded every `config.evaluation_steps`; called on every process.

    Returns:
        The report; its "validation" figures are those of `evaluate_prior`.

    Raises:
        ValueError: For options, codes and tokenizer that do not fit together, or a run in `config.output_dir` on other
            codes, before anything is trained.
    """
    _check_evaluation(config, evaluate)
    encoded = EncodedImages.load(config.codes)
    accelerator = create_accelerator()
    tokenizer = _load_tokenizer(config, encoded, accelerator)
    model = _build_model(config, encoded, tokenizer)
    loop = TrainingLoop(
        config,
        accelerator,
        model,
        _training_rows(config, encoded),
        replace(_stage(config, accelerator, model, encoded, tokenizer), evaluate=evaluate),
    )
    model = loop.run()
    report = {
        "model_type": model.config.model_type,
        "num_parameters": model.num_parameters(),
        "code_layout": str(encoded.layout),
        "steps": loop.step,
        "epochs": loop.step / loop.plan.steps_per_epoch,
        "validation": evaluate_prior(model, encoded, "validation", config.batch_size, accelerator),
        "options": options_to_dict(config),
    }
    if accelerator.is_main_process:
        output_dir = Path(config.output_dir)
        model.save_pretrained(output_dir)
        history = read_history(output_dir)
        save_curves(history, _PANELS, output_dir / "curves.png")
        report["images_per_second"] = images_per_second(history)
        write_report(output_dir, report)
        if tokenizer is not None:
            save_png(_sample_grid(model, tokenizer, config), output_dir / "samples.png")
    accelerator.wait_for_everyone()
    return report


def _check_evaluation(config: PriorTrainingConfig, evaluate: Callable[[PreTrainedModel], Record] | None) -> None:
    check_unused_in_training(config)
    if config.evaluation_steps is not None and evaluate is None:
        raise ValueError(
            f"evaluation_steps is {config.evaluation_steps}, but train_prior was given no function `evaluate`: pass "
            "one, leave evaluation_steps out, or call hq_tokenizers.cli.generate.train_prior_and_save_generator, which "
            "makes one."
        )


def unigram_entropies(rows: CodeRows, layout: CodeLayout) -> list[float]:
    """Entropy in nats of each level's code histogram: what a prior that ignores all context reaches on these rows."""
    entropies = []
    for indices, size in zip(layout.unflatten(rows.codes.long()).levels(), layout.codebook_sizes, strict=True):
        shares = torch.bincount(indices.flatten(), minlength=size).double() / indices.numel()
        entropies.append(torch.special.entr(shares).sum().item())
    return entropies


@torch.no_grad()
def evaluate_prior(
    model: PreTrainedModel, encoded: EncodedImages, split: str, batch_size: int, accelerator: Accelerator
) -> Record:
    """Evaluates a prior on a split.

    Args:
        model: A prior in evaluation mode.
        encoded: Codes.
        split: "train", "validation" or "test".
        batch_size: Images at a time.
        accelerator: Whose processes share the work.

    Returns:
        "loss" and "bits_per_code" over all levels (nats and bits per code), "bits_per_image", and per level:
        "nats_per_code_by_level", "bits_per_code_by_level", and the entropy of the training codes' histogram as
        "unigram_nats_by_level" and "unigram_bits_by_level", which a prior has to stay below to have learned anything.
    """
    rows, layout = encoded.splits[split], encoded.layout
    sums = RunningSums()
    sums.add("levels", torch.zeros(layout.num_levels))
    shares = validation_batches(len(rows), batch_size, accelerator.num_processes, accelerator.process_index)
    for indices, batch in zip(shares, rows.batches(shares, accelerator.device), strict=True):
        codes, labels = layout.unflatten(batch["codes"]), _labels(model, batch)
        log_prob = model.log_prob_of_split(codes, labels, indices.tolist(), len(rows))
        sums.add("levels", -log_prob.sum(dim=0))
    totals = sums.reduce(accelerator)["levels"] / len(rows)
    positions = torch.tensor([layout.groups[group].num_positions for group, _ in layout.levels()])
    per_level = (totals / positions).tolist()
    unigram = unigram_entropies(encoded.splits["train"], layout)
    loss = totals.sum().item() / layout.num_codes
    return {
        "loss": loss,
        "bits_per_code": loss / math.log(2),
        "bits_per_image": totals.sum().item() / math.log(2),
        "nats_per_code_by_level": per_level,
        "bits_per_code_by_level": [nats / math.log(2) for nats in per_level],
        "unigram_nats_by_level": unigram,
        "unigram_bits_by_level": [nats / math.log(2) for nats in unigram],
    }


def _build_model(
    config: PriorTrainingConfig, encoded: EncodedImages, tokenizer: PreTrainedModel | None
) -> PreTrainedModel:
    train = encoded.splits["train"]
    conditional = train.labels is not None if config.conditional is None else config.conditional
    if conditional and train.labels is None:
        raise ValueError(f"conditional is true, but the codes in {config.codes!r} have no labels.")
    num_classes, names = 0, encoded.label_names
    if conditional:
        num_classes = len(names) if names else int(train.labels.max()) + 1  # type: ignore[union-attr]
    from_data = {"code_layout": encoded.layout.to_dict(), "num_classes": num_classes}
    with_code_vectors = config.model.get("input_embeddings") == "code_vectors"
    if with_code_vectors:
        if tokenizer is None:
            raise ValueError(
                "model.input_embeddings code_vectors needs the tokenizer, and samples above 0: set tokenizer to its "
                "folder."
            )
        from_data["code_vector_dim"] = tokenizer.config.codebook_dim
    model_config = build_model_config(config.model, from_data, [RQPriorConfig, MaskedPriorConfig])
    if conditional and names:
        model_config.id2label = dict(enumerate(names))
        model_config.label2id = {name: index for index, name in enumerate(names)}
    set_seed(config.seed)
    model = AutoModel.from_config(model_config)
    if with_code_vectors:
        model.set_code_vectors(tokenizer.codebooks())  # type: ignore[union-attr]
    model.generation_config = model.generation_config.with_overrides(**config.generation)
    return model


def _load_tokenizer(
    config: PriorTrainingConfig, encoded: EncodedImages, accelerator: Accelerator
) -> PreTrainedModel | None:
    """The tokenizer for sample images, checked; None without samples, or when it is not where it was."""
    path = config.tokenizer
    if path is None and Path(encoded.tokenizer, "config.json").is_file():
        path = encoded.tokenizer
    if path is None or not accelerator.is_main_process:
        return None
    tokenizer = load_trained(path, "tokenizer", ImageTokenizerConfig, "tokenizer", "train-tokenizer")
    if weights_sha256(tokenizer) != encoded.tokenizer_sha256:
        raise ValueError(
            f"The codes in {config.codes!r} were made by other weights than those in {path!r}: encode the images again."
        )
    if tokenizer.code_layout() != encoded.layout:
        raise ValueError(
            f"The codes in {config.codes!r} have the layout {encoded.layout}, the tokenizer {path!r} has "
            f"{tokenizer.code_layout()}, that of images of size {tokenizer.config.image_size}: encode images of that "
            "size (data.image_size)."
        )
    return tokenizer.to(accelerator.device) if config.samples else None


def _stage(
    config: PriorTrainingConfig,
    accelerator: Accelerator,
    model: PreTrainedModel,
    encoded: EncodedImages,
    tokenizer: PreTrainedModel | None,
) -> Stage:
    def step(wrapped: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        soft_targets = None
        if config.soft_targets:
            soft_targets = dense_soft_targets(encoded.layout, batch["soft_codes"], batch["soft_probabilities"])
        loss = wrapped(encoded.layout.unflatten(batch["codes"]), _labels(model, batch), soft_targets).loss
        return loss, {"bits_per_code": loss.detach() / math.log(2)}

    def validate(model: PreTrainedModel) -> Record:
        return evaluate_prior(model, encoded, "validation", config.batch_size, accelerator)

    def after_validation(model: PreTrainedModel, tracker: Tracker, step: int, figures: Record) -> None:
        if tokenizer is not None:
            grid = _sample_grid(model, tokenizer, config)
            save_png(grid, Path(config.output_dir) / "samples.png")
            tracker.image("samples", grid, step)

    return Stage(
        title="prior",
        step=step,
        validate=validate,
        parameter_groups=decay_groups(model),
        after_validation=after_validation,
        inputs={
            "tokenizer_sha256": encoded.tokenizer_sha256,
            "training_codes_sha256": _training_rows(config, encoded).sha256(),
        },
    )


def _training_rows(config: PriorTrainingConfig, encoded: EncodedImages) -> CodeRows:
    """The training codes, with posterior probabilities exactly when they are asked for."""
    rows = encoded.splits["train"]
    if config.soft_targets and rows.soft is None:
        raise ValueError(
            f"soft_targets is true, but the codes in {config.codes!r} were stored without the tokenizer's "
            "probabilities: encode the images again with a stochastic tokenizer and --soft_targets 8."
        )
    return rows if config.soft_targets else replace(rows, soft=None)


def _labels(model: PreTrainedModel, batch: Batch) -> torch.Tensor | None:
    return batch["labels"] if model.config.num_classes else None


def _sample_grid(model: PreTrainedModel, tokenizer: PreTrainedModel, config: PriorTrainingConfig) -> Any:
    """Samples of the classes in turn, one class per column where there are up to ten."""
    classes = model.config.num_classes
    columns = classes if 0 < classes <= 10 else 8
    number = max(1, config.samples // columns) * columns
    labels = [index % classes for index in range(number)] if classes else [-1] * number
    codes = model.generate(torch.tensor(labels), generator=config.seed)
    return image_grid(tokenizer.decode(codes), columns)

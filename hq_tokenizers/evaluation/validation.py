"""Figures of a tokenizer or a prior over a whole split: cheap, for every epoch.

Every image counts once, for any number of processes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel

from hq_tokenizers.codes import CodeLayout
from hq_tokenizers.data.batches import validation_batches
from hq_tokenizers.data.encoded import CodeRows, EncodedImages
from hq_tokenizers.data.images import Batch, BatchSource
from hq_tokenizers.data.sound import SoundRows, model_inputs
from hq_tokenizers.metrics.psnr import psnr
from hq_tokenizers.metrics.running.confusion import Confusion
from hq_tokenizers.models.modeling_outputs import ImageTokenizerOutput
from hq_tokenizers.quantization.usage import code_counts, usage_figures
from hq_tokenizers.reporting.tracking import Record

from .sound import decibel_figures, squared_error

_MAX_CLASSES = 256  # of a label map stored as bytes
COMPARED_IMAGES = 512
"""The kinds of codes are compared on at most this many images, the first of the split."""
_NOISE_SEED = 0


class RunningSums:
    """Named float64 sums that add up over batches and processes."""

    def __init__(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, name: str, value: torch.Tensor | float) -> None:
        """Adds to the sum called `name`."""
        value = torch.as_tensor(value).detach().to("cpu", torch.float64)
        self._sums[name] = self._sums[name] + value if name in self._sums else value

    def reduce(self, accelerator: Accelerator) -> dict[str, torch.Tensor]:
        """The sums over all processes, each of which has to have the same names."""
        if accelerator.num_processes == 1:
            return self._sums
        total = accelerator.reduce({name: value.to(accelerator.device) for name, value in self._sums.items()}, "sum")
        return {name: value.cpu() for name, value in total.items()}


@torch.no_grad()
def evaluate_tokenizer(model: PreTrainedModel, data: BatchSource, batch_size: int, accelerator: Accelerator) -> Record:
    """Evaluates a tokenizer by its reconstructions from the most probable codes, and what its codes are worth.

    The noise of relaxed and sampled codes is that of an image's number in the split, so that figures depend neither on
    the run nor on batches and processes.

    Args:
        model: An image tokenizer in evaluation mode.
        data: Images.
        batch_size: Images at a time. The loss of a tokenizer whose σ² is its batch optimum depends on it slightly.
        accelerator: Whose processes share the work.

    Returns:
        "loss" and its terms by their names, as `ImageTokenizerOutput` has them. Of images "mse": mean squared error
        per pixel value; "mse_per_image": summed over the pixel values of an image; "psnr": in dB, the mean of the
        images' own PSNR. Of sounds "mse" per value of the normalised spectrograms, and `decibel_figures`. Of label
        maps "pixel_accuracy" and "mean_iou", the mean over the classes that occur. And per
        level: "perplexity", exp of the entropy of the histogram of all hard codes of the split; "batch_perplexity",
        the mean over batches; "active_codes" that occur in the split; "usage", perplexity / K; "normalized_entropy",
        H / log K; "dead_rate", the share of codes that do not occur; energies per value: "latent_energy" of the group's
        latents, "codebook_energy" of the code vectors, "residual_energy" of what the levels so far leave over of the
        latents; "histogram_bits_by_level", N_l H_l / log 2, and their sum
        "histogram_bits_per_image". Of stochastic systems also "entropy" of P̂, nats per position, and "variance" of the
        quantiser, per level (zeros for others); "kl_bits_per_image", the discrete term / log 2; and over the first
        `COMPARED_IMAGES` images "mse_argmax" and "mse_sampled" (or "pixel_accuracy_…"), from the most probable and
        from sampled codes. Where training decodes relaxed samples also "mse_relaxed", from those, and their Gumbel
        "temperature".

    Raises:
        ValueError: If there are fewer batches than processes.
    """
    shares = validation_batches(len(data), batch_size, accelerator.num_processes, accelerator.process_index)
    if not shares:
        raise ValueError(
            f"{len(data)} images in batches of {batch_size} are too few for {accelerator.num_processes} processes: "
            "use a smaller batch_size."
        )
    sums = RunningSums()
    for indices, batch in zip(shares, data.batches(shares, accelerator.device), strict=True):
        compared = [torch.Generator().manual_seed(_NOISE_SEED + i) for i in indices.tolist() if i < COMPARED_IMAGES]
        output, others = model.compare_codes(generators=compared, **model_inputs(batch))
        levels = [] if output.codes is None else model.code_levels(output.codes, batch.get("attention_mask"))
        _add_batch(sums, batch, output, levels)
        if model.config.is_stochastic:
            assert output.reconstruction is not None
            kinds = ["argmax", "sampled", *(["relaxed"] if model.config.draws_relaxed_samples else [])]
            first = {name: value[: len(compared)] for name, value in model_inputs(batch).items()}
            _add_comparison(sums, first, kinds, {"argmax": output.reconstruction, **others})
    figures = _figures(sums.reduce(accelerator))
    if model.config.has_codes:
        figures["codebook_energy"] = [codebook.square().mean().item() for codebook in model.codebooks()]
    if model.config.draws_relaxed_samples:
        figures["temperature"] = model.temperature().item()
    return figures | (decibel_figures(figures["mse"], data.extractor) if isinstance(data, SoundRows) else {})


def _add_batch(sums: RunningSums, batch: Batch, output: ImageTokenizerOutput, levels: Sequence[torch.Tensor]) -> None:
    """Adds a batch; `levels` are the codes of every level that count."""
    pixel_values = batch["pixel_values"]
    assert output.loss is not None
    assert output.terms is not None
    assert output.reconstruction is not None
    num_images = pixel_values.shape[0]
    sums.add("num_images", num_images)
    sums.add("num_batches", 1)
    sums.add("loss", output.loss * num_images)
    if "attention_mask" in batch:
        for name, value in zip(
            ("squared_error", "num_values"), squared_error(output.reconstruction, batch), strict=True
        ):
            sums.add(name, value)
    elif pixel_values.is_floating_point():
        _add_errors(sums, pixel_values, output.reconstruction)
    else:
        sums.add("confusion", confusion_matrix(pixel_values, output.reconstruction))
    for name, value in output.terms.items():
        sums.add(f"term_{name}", value * num_images)
    if output.codes is None or output.diagnostics is None:
        return
    for name in ("entropy", "variance", "latent_energy", "residual_energy"):
        sums.add(name, output.diagnostics[name] * num_images)
    sums.add("batch_perplexity", output.diagnostics["perplexity"])
    for level, (indices, size) in enumerate(zip(levels, output.codes.layout.codebook_sizes, strict=True)):
        sums.add(f"counts_{level}", code_counts(indices, size))


def _add_comparison(
    sums: RunningSums, batch: Batch, kinds: list[str], reconstructions: dict[str, torch.Tensor]
) -> None:
    """Adds the errors of each kind of codes; zeros where a process has none of the compared images."""
    number = len(batch["pixel_values"])
    sums.add("num_compared", number)
    for kind in kinds:
        sums.add(f"compared_{kind}", _quality(reconstructions[kind][:number], batch).sum() if number else 0.0)


def _quality(reconstruction: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Of every image or sound its mean squared error; of a label map the share of pixels that are right."""
    pixel_values = batch["pixel_values"]
    if "attention_mask" in batch:
        parts = zip(reconstruction.split(1), pixel_values.split(1), batch["attention_mask"].split(1), strict=True)
        sums = (squared_error(x, {"pixel_values": y, "attention_mask": mask}) for x, y, mask in parts)
        return torch.stack([error / number for error, number in sums])
    if not pixel_values.is_floating_point():
        return (reconstruction == pixel_values).flatten(1).float().mean(1)
    return (reconstruction - pixel_values).float().square().flatten(1).mean(1)


def _add_errors(sums: RunningSums, pixel_values: torch.Tensor, reconstruction: torch.Tensor) -> None:
    squared_error = (reconstruction - pixel_values).float().square().flatten(1)
    sums.add("mse_per_image", squared_error.sum(1).double().sum() if squared_error.is_cpu else squared_error.sum())
    sums.add("mse", squared_error.mean(1).sum())
    sums.add("psnr", psnr(squared_error.mean(1)).sum())


def confusion_matrix(label_maps: torch.Tensor, reconstructions: torch.Tensor) -> torch.Tensor:
    """Counts of pixels, long (256, 256): row the class, column the reconstructed one."""
    pairs = label_maps.flatten() * _MAX_CLASSES + reconstructions.flatten()
    return torch.bincount(pairs, minlength=_MAX_CLASSES**2).unflatten(0, (_MAX_CLASSES, _MAX_CLASSES))


def _figures(sums: dict[str, torch.Tensor]) -> Record:
    num_images, num_batches = sums.pop("num_images"), sums.pop("num_batches")
    counts = [sums.pop(name) for name in [name for name in sums if name.startswith("counts_")]]
    figures: Record = {"num_images": int(num_images)}
    if "squared_error" in sums:
        figures["mse"] = (sums.pop("squared_error") / sums.pop("num_values")).item()
    if "confusion" in sums:
        confusion = sums.pop("confusion")
        figures["pixel_accuracy"] = (confusion.trace() / confusion.sum()).item()
        figures["mean_iou"] = Confusion(confusion).intersection_over_union().nanmean().item()
    if "num_compared" in sums:
        number, measure = sums.pop("num_compared"), "mse" if "mse" in sums | figures else "pixel_accuracy"
        for name in [name for name in sums if name.startswith("compared_")]:
            figures[f"{measure}_{name.removeprefix('compared_')}"] = (sums.pop(name) / number).item()
    if "term_discrete" in sums:
        figures["kl_bits_per_image"] = (sums["term_discrete"] / num_images / math.log(2)).item()
    for name, total in sums.items():
        mean = total / (num_batches if name == "batch_perplexity" else num_images)
        figures[name.removeprefix("term_")] = mean.tolist()
    if counts:
        usage = {name: values.tolist() for name, values in usage_figures(counts).items()}
        # The name "entropy" is that of P̂ here.
        figures |= {name: usage[name] for name in ("perplexity", "usage", "normalized_entropy", "dead_rate")}
        figures["active_codes"] = list(map(int, usage["active_codes"]))
        codes_per_image = [(count.sum() / num_images).item() for count in counts]
        bits = [n * entropy / math.log(2) for n, entropy in zip(codes_per_image, usage["entropy"], strict=True)]
        figures |= {"histogram_bits_by_level": bits, "histogram_bits_per_image": sum(bits)}
    return figures


def prior_conditions(model: PreTrainedModel, batch: Batch) -> dict[str, torch.Tensor]:
    """The classes and speakers of a batch of codes, for a prior that knows them, as its `forward` takes them."""
    conditions = {}
    if model.config.num_classes:
        conditions["class_labels"] = batch["labels"]
    if getattr(model.config, "num_speakers", 0):
        conditions["speaker_ids"] = batch["speaker_ids"]
    return conditions


def unigram_entropies(rows: CodeRows, layout: CodeLayout) -> list[float]:
    """Entropy in nats of each level's code histogram: what a prior that ignores all context reaches on these rows."""
    levels = zip(layout.unflatten(rows.codes.long()).levels(), layout.codebook_sizes, strict=True)
    counts = [torch.bincount(indices.flatten(), minlength=size).double() for indices, size in levels]
    return usage_figures(counts)["entropy"].tolist()


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
        codes, conditions = layout.unflatten(batch["codes"]), prior_conditions(model, batch)
        labels = conditions.pop("class_labels", None)
        log_prob = model.log_prob_of_split(codes, labels, indices.tolist(), len(rows), **conditions)
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

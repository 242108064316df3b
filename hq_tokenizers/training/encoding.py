"""From images to codes on disk, the step between the two training stages."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn
from transformers import PreTrainedModel

from hq_tokenizers.codes import CodeLayout
from hq_tokenizers.configuration_image_tokenizer import ImageTokenizerConfig
from hq_tokenizers.data.encoded import CodeRows, EncodedImages, SoftCodes
from hq_tokenizers.data.images import ImageRows
from hq_tokenizers.data.label_maps import LabelMapFormat
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.options.training import EncodeConfig

from .batches import validation_batches
from .loop import create_accelerator
from .trained_models import load_trained


def encode_images(config: EncodeConfig) -> EncodedImages:
    """Encodes the train, validation and (where there is one) test split with a trained tokenizer and saves the codes.

    Returns:
        What was saved to `config.output_dir`; `EncodedImages.load` reads it.

    Raises:
        ValueError: If there is no such tokenizer, the images do not fit it, a split has classes that the training
            split lacks, or soft targets are asked of a deterministic tokenizer; before anything is encoded.
    """
    accelerator = create_accelerator()
    model = load_trained(config.tokenizer, "tokenizer", ImageTokenizerConfig, "tokenizer", "train-tokenizer")
    model = model.to(accelerator.device)
    _check_posterior(model, config)
    names = {"train": "train_split", "validation": "validation_split"}
    names |= {"test": "test_split"} if config.data.test_split else {}
    images = dict(zip(names, load_image_splits(config.data, *names.values()), strict=True))
    for name, rows in images.items():
        check_images(model, rows, names[name])
        _check_classes(images["train"], rows, names[name])
    encoded = EncodedImages(
        layout=model.code_layout(),
        splits={
            # Only training has a use for soft targets.
            name: _encode_rows(model, rows, config.batch_size, config.soft_targets * (name == "train"), accelerator)
            for name, rows in images.items()
        },
        tokenizer=config.tokenizer,
        tokenizer_sha256=weights_sha256(model),
        label_names=images["train"].label_names,
    )
    if accelerator.is_main_process:
        encoded.save(config.output_dir)
    accelerator.wait_for_everyone()
    return encoded


def weights_sha256(model: nn.Module) -> str:
    """Hash of a model's weights: names, types and values, in the order of the names, whatever file holds them."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _encode_rows(
    model: PreTrainedModel, rows: ImageRows, batch_size: int, num_soft: int, accelerator: Accelerator
) -> CodeRows:
    processes, index = accelerator.num_processes, accelerator.process_index
    shares = validation_batches(len(rows), batch_size, processes, index)
    batches = (batch["pixel_values"] for batch in rows.batches(shares, accelerator.device))
    own = [_encode_batch(model, pixel_values, num_soft) for pixel_values in batches]
    # Batch i was dealt to process i mod P; the gathered parts are put back in that order.
    numbered = [(index + processes * turn, *tensors) for turn, tensors in enumerate(own)]
    parts = sorted(gather_object(numbered), key=lambda part: part[0])
    codes, *soft = (torch.cat(column) for column in list(zip(*parts, strict=True))[1:])
    return CodeRows(codes, rows.labels, SoftCodes(*soft) if soft else None)


def _encode_batch(model: PreTrainedModel, pixel_values: torch.Tensor, num_soft: int) -> tuple[torch.Tensor, ...]:
    """Codes int32 (B, T); with soft targets also those of `soft_codes`."""
    codes = model.encode(pixel_values)
    flat = codes.flatten().int().cpu()
    if not num_soft:
        return (flat,)
    soft = soft_codes(codes.layout, model.posterior(pixel_values), num_soft)
    return flat, soft.codes.cpu(), soft.probabilities.cpu()


def soft_codes(layout: CodeLayout, log_posterior: Sequence[torch.Tensor], number: int) -> SoftCodes:
    """The likeliest codes of every place, with their probabilities scaled to a sum of 1.

    Args:
        layout: Layout of the codes.
        log_posterior: Log-probabilities of every level, (B, h_g, w_g, K_l), coarse to fine.
        number: Codes to keep per place, k; the width of the result is less where no level has that many.

    Returns:
        int32 codes and float16 probabilities, (B, T, k).
    """
    width = min(number, max(layout.codebook_sizes))
    batch_size, device = len(log_posterior[0]), log_posterior[0].device
    codes = torch.zeros(batch_size, layout.num_codes, width, dtype=torch.int32, device=device)
    probabilities = torch.zeros(batch_size, layout.num_codes, width, dtype=torch.float16, device=device)
    places = layout.level_of_code().to(device)
    for level, log_probabilities in enumerate(log_posterior):
        kept = log_probabilities.flatten(1, 2).topk(min(width, log_probabilities.shape[-1]), dim=-1)
        columns = slice(kept.values.shape[-1])
        codes[:, places == level, columns] = kept.indices.int()
        # A softmax over the kept ones divides them by their sum.
        probabilities[:, places == level, columns] = kept.values.softmax(-1).half()
    return SoftCodes(codes, probabilities)


def _check_posterior(model: PreTrainedModel, config: EncodeConfig) -> None:
    if config.soft_targets and model.config.quantizer not in ("gaussian", "vmf"):
        raise ValueError(
            f"soft_targets is {config.soft_targets}, but the tokenizer {config.tokenizer!r} has the quantizer "
            f"{model.config.quantizer!r}, which has no posterior over codes: leave soft_targets at 0, or take a "
            "tokenizer with quantizer gaussian or vmf."
        )


def check_images(model: PreTrainedModel, rows: ImageRows, option: str) -> None:
    """Checks that a split has the kind and size of images that a tokenizer was trained on.

    Args:
        model: The tokenizer.
        rows: The split.
        option: Name of the option of `DataConfig` that chose it, to name in errors.

    Raises:
        ValueError: If it does not, naming the option to change.
    """
    form, channels = rows.image_format, model.config.num_channels
    if model.config.for_label_maps != isinstance(form, LabelMapFormat):
        classes = model.config.num_classes if model.config.for_label_maps else "null"
        raise ValueError(
            f"data.{option} has {form}, but the tokenizer was not trained on such data: set data.label_map_classes to "
            f"{classes}."
        )
    if isinstance(form, LabelMapFormat) and form.num_classes != model.config.num_classes:
        raise ValueError(
            f"data.{option} has {form}, the tokenizer was trained on {model.config.num_classes}: set "
            f"data.label_map_classes to {model.config.num_classes}."
        )
    if not model.config.for_label_maps and form.num_channels != channels:
        raise ValueError(
            f"data.{option} has {form.num_channels} channels, the tokenizer wants {channels}: set data.num_channels to "
            f"{channels}."
        )
    size = model.config.image_size
    height, width = (size, size) if isinstance(size, int) else size
    if (form.height, form.width) != (height, width):
        raise ValueError(
            f"data.{option} has images of {form.height}×{form.width} pixels, the tokenizer was trained on {height}×"
            f"{width}: set data.image_size to {height if height == width else [height, width]}, or train a tokenizer "
            "on images of this size."
        )


def _check_classes(train: ImageRows, rows: ImageRows, option: str) -> None:
    """A class means the same in every split: the prior knows those of the training split by number."""
    if train.labels is None:
        return
    if rows.labels is None:
        raise ValueError(f"data.{option} has no classes, but data.train_split has: choose data.label_column for both.")
    known, names = train.label_names or [], rows.label_names or []
    used = rows.labels.unique().tolist()
    strange = [names[label] for label in used if label >= len(known) or names[label] != known[label]]
    if strange:
        raise ValueError(
            f"data.{option} has images of the classes {', '.join(strange[:5])}, which data.train_split does not have, "
            f"or under another number; its classes are {', '.join(known[:20])}{' …' if len(known) > 20 else ''}."
        )

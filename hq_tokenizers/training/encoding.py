"""From images to codes on disk, the step between the two training stages."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from hq_tokenizers.data.batches import validation_batches
from hq_tokenizers.data.compatibility import check_classes, check_images
from hq_tokenizers.data.encoded import CodeRows, EncodedImages
from hq_tokenizers.data.images import ImageRows
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.data.soft_codes import SoftCodes, soft_codes
from hq_tokenizers.hashing import weights_sha256
from hq_tokenizers.models.configuration_image_tokenizer import ImageTokenizerConfig
from hq_tokenizers.models.trained_models import load_trained
from hq_tokenizers.options.training import EncodeConfig
from hq_tokenizers.processes import create_accelerator
from hq_tokenizers.reporting.folder_lock import lock_folder


def encode_images(config: EncodeConfig) -> EncodedImages:
    """Encodes the train, validation and (where there is one) test split with a trained tokenizer and saves the codes.

    Returns:
        What was saved to `config.output_dir`; `EncodedImages.load` reads it.

    Raises:
        BlockingIOError: If another command is writing to `config.output_dir`.
        FileExistsError: If `config.output_dir` holds things that the codes would replace and that are no codes.
        ValueError: If there is no such tokenizer, the images do not fit it, a split has classes that the training
            split lacks, or soft targets are asked of a deterministic tokenizer; before anything is encoded.
    """
    accelerator = create_accelerator()
    with lock_folder("output_dir", config.output_dir):
        return _encode_images(config, accelerator)


def _encode_images(config: EncodeConfig, accelerator: Accelerator) -> EncodedImages:
    model = load_trained(config.tokenizer, "tokenizer", ImageTokenizerConfig, "tokenizer", "train-tokenizer")
    model = model.to(accelerator.device)
    if model.config.modality == "sound":
        raise ValueError(
            f"The tokenizer {config.tokenizer!r} is one of sound, of whose codes priors are not trained yet: encode is "
            "for images. In Python, tokenizer.encode gives its codes."
        )
    _check_posterior(model, config)
    names = {"train": "train_split", "validation": "validation_split"}
    names |= {"test": "test_split"} if config.data.test_split else {}
    EncodedImages.check_folder(config.output_dir, names)
    images = dict(zip(names, load_image_splits(config.data, *names.values()), strict=True))
    for name, rows in images.items():
        check_images(model, rows, names[name])
        check_classes(images["train"], rows, names[name])
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
        counts = ", ".join(f"{len(rows):,} of {name}" for name, rows in encoded.splits.items())
        print(f"The codes of the images, {counts}, {encoded.layout.num_codes} each, are in {config.output_dir}.")
    accelerator.wait_for_everyone()
    return encoded


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


def _check_posterior(model: PreTrainedModel, config: EncodeConfig) -> None:
    if config.soft_targets and not model.config.is_stochastic:
        raise ValueError(
            f"soft_targets is {config.soft_targets}, but the tokenizer {config.tokenizer!r} has the quantizer "
            f"{model.config.quantizer!r}, which has no posterior over codes: leave soft_targets at 0, or take a "
            "tokenizer with quantizer gaussian or vmf."
        )

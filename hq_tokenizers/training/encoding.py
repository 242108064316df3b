"""From images and sounds to codes on disk, the step between the two training stages."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from hq_tokenizers.checks import image_height_width
from hq_tokenizers.codes import CodeLayout
from hq_tokenizers.data.batches import validation_batches
from hq_tokenizers.data.compatibility import check_classes, check_images
from hq_tokenizers.data.encoded import CodeRows, EncodedImages
from hq_tokenizers.data.images import Batch, ImageRows
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.data.soft_codes import SoftCodes, soft_codes
from hq_tokenizers.data.sound import SoundRows, first_frames
from hq_tokenizers.data.sound_loading import check_speakers, load_front_end, load_sound_splits
from hq_tokenizers.hashing import weights_sha256
from hq_tokenizers.models.configuration_image_tokenizer import ImageTokenizerConfig
from hq_tokenizers.models.trained_models import load_trained
from hq_tokenizers.options.training import EncodeConfig
from hq_tokenizers.padding import padding_of_codes
from hq_tokenizers.processes import create_accelerator
from hq_tokenizers.reporting.folder_lock import lock_folder

Rows = ImageRows | SoundRows


def encode_images(config: EncodeConfig) -> EncodedImages:
    """Encodes the train, validation and (where there is one) test split with a trained tokenizer and saves the codes.

    Sounds are cut or padded to one length, `data.sound.segment_frames` or else the tokenizer's `image_size`: priors
    model codes of one layout. Codes of padding are 0.

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
    _check_posterior(model, config)
    names = {"train": "train_split", "validation": "validation_split"}
    names |= {"test": "test_split"} if config.data.test_split else {}
    EncodedImages.check_folder(config.output_dir, names)
    splits: dict[str, Rows] = dict(zip(names, _load_splits(config, model, *names.values()), strict=True))
    for name, rows in splits.items():
        check_classes(splits["train"], rows, names[name])
    image_size = _encoded_size(config, model)
    encoder = _Encoder(model, model.code_layout(image_size), image_size[1], accelerator)
    encoded = EncodedImages(
        layout=encoder.layout,
        splits={
            # Only training has a use for soft targets.
            name: encoder.encode(rows, config.batch_size, config.soft_targets * (name == "train"))
            for name, rows in splits.items()
        },
        tokenizer=config.tokenizer,
        tokenizer_sha256=weights_sha256(model),
        label_names=splits["train"].label_names,
        speaker_names=getattr(splits["train"], "speaker_names", None),
    )
    if accelerator.is_main_process:
        encoded.save(config.output_dir)
        counts = ", ".join(f"{len(rows):,} of {name}" for name, rows in encoded.splits.items())
        kind = "sounds" if model.config.modality == "sound" else "images"
        print(f"The codes of the {kind}, {counts}, {encoded.layout.num_codes} each, are in {config.output_dir}.")
        for name, rows in splits.items():
            _say_what_was_cut(rows, name, image_size[1])
    accelerator.wait_for_everyone()
    return encoded


def _load_splits(config: EncodeConfig, model: PreTrainedModel, *names: str) -> tuple[Rows, ...]:
    if model.config.modality == "sound":
        sounds = load_sound_splits(config.data, load_front_end(config.tokenizer, model.config), *names)
        for heard in sounds:
            check_speakers(model.config, heard)
        return sounds
    images = load_image_splits(config.data, *names)
    for name, rows in zip(names, images, strict=True):
        check_images(model, rows, name)
    return images


def _encoded_size(config: EncodeConfig, model: PreTrainedModel) -> tuple[int, int]:
    """Height and width of what is encoded."""
    height, width = image_height_width(model.config.image_size)
    frames, stride = config.data.sound.segment_frames, model.config.stride
    if model.config.modality != "sound" or frames is None:
        return height, width
    if frames % stride:
        raise ValueError(
            f"data.sound.segment_frames must be a multiple of the tokenizer's stride {stride}, got {frames}."
        )
    return height, frames


def _say_what_was_cut(rows: Rows, name: str, num_frames: int) -> None:
    spectrograms = getattr(rows, "spectrograms", None) or []
    cut = sum(values.shape[-1] > num_frames for values in spectrograms)
    if cut:
        print(
            f"{cut:,} of {len(rows):,} sounds of {name} are longer than the {num_frames} frames that were encoded, and "
            "were cut: data.sound.segment_frames sets the length."
        )


class _Encoder:
    """Encodes splits.

    Args:
        model: The tokenizer.
        layout: Of the codes.
        num_frames: Frames of each sound.
        accelerator: Whose processes share the work.
    """

    def __init__(self, model: PreTrainedModel, layout: CodeLayout, num_frames: int, accelerator: Accelerator) -> None:
        self.model = model
        self.layout = layout
        self.num_frames = num_frames
        self.accelerator = accelerator

    def encode(self, rows: Rows, batch_size: int, num_soft: int) -> CodeRows:
        """The codes of a split, with the posterior's `num_soft` likeliest of each where that is not 0."""
        processes, index = self.accelerator.num_processes, self.accelerator.process_index
        shares = validation_batches(len(rows), batch_size, processes, index)
        own = [self._encode_batch(batch, num_soft) for batch in rows.batches(shares, self.accelerator.device)]
        # Batch i was dealt to process i mod P; the gathered parts are put back in that order.
        numbered = [(index + processes * turn, tensors) for turn, tensors in enumerate(own)]
        parts = [tensors for _, tensors in sorted(gather_object(numbered), key=lambda part: part[0])]
        columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        soft = SoftCodes(columns["soft_codes"], columns["soft_probabilities"]) if num_soft else None
        speakers = getattr(rows, "speakers", None)
        return CodeRows(columns["codes"], rows.labels, soft, speakers, columns.get("lengths"))

    def _encode_batch(self, batch: Batch, num_soft: int) -> dict[str, torch.Tensor]:
        """Codes int32 (B, T); of sounds their lengths (B,); with soft targets also those of `soft_codes`."""
        inputs: Batch = {name: batch[name] for name in ("pixel_values", "attention_mask") if name in batch}
        columns: dict[str, torch.Tensor] = {}
        if "attention_mask" in inputs:
            inputs = first_frames(inputs, self.num_frames)
            # A column is real when one of its frames is.
            columns["lengths"] = -(-inputs["attention_mask"].sum(1) // self.model.config.stride)
        codes = self.model.encode(**inputs)
        columns["codes"] = codes.flatten().int()
        if num_soft:
            soft = soft_codes(codes.layout, self.model.posterior(**inputs), num_soft)
            columns |= {"soft_codes": soft.codes, "soft_probabilities": soft.probabilities}
            if "lengths" in columns:
                columns |= _certain_padding(codes.layout, columns)
        return {name: column.cpu() for name, column in columns.items()}


def _certain_padding(layout: CodeLayout, columns: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The posterior's codes, those of padding 0 for certain."""
    masks = [mask.flatten(1) for mask in padding_of_codes(layout, columns["lengths"])]
    padding = torch.cat(masks, dim=1)[:, :, None]
    likely, probabilities = columns["soft_codes"], columns["soft_probabilities"]
    first = torch.arange(likely.shape[2], device=likely.device) == 0
    return {
        "soft_codes": likely.masked_fill(padding, 0),
        "soft_probabilities": torch.where(padding, first.to(probabilities.dtype), probabilities),
    }


def _check_posterior(model: PreTrainedModel, config: EncodeConfig) -> None:
    if config.soft_targets and not model.config.is_stochastic:
        raise ValueError(
            f"soft_targets is {config.soft_targets}, but the tokenizer {config.tokenizer!r} has the quantizer "
            f"{model.config.quantizer!r}, which has no posterior over codes: leave soft_targets at 0, or take a "
            "tokenizer with quantizer gaussian or vmf."
        )

"""From images and sounds to codes on disk, the step between the two training stages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import PreTrainedModel

from hq_tokenizers.checks import image_height_width
from hq_tokenizers.codes import CodeLayout
from hq_tokenizers.data.compatibility import check_classes, check_images
from hq_tokenizers.data.encoded import DESCRIPTION, CodeRows, EncodedImages, describe_codes, write_codes
from hq_tokenizers.data.images import Batch, ImageRows
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.data.passes import Processes, RowPasses, StreamPasses, build_passes
from hq_tokenizers.data.soft_codes import SoftCodes, soft_codes
from hq_tokenizers.data.sound import SoundRows, first_frames
from hq_tokenizers.data.sound_loading import check_speakers, load_front_end, load_sound_splits
from hq_tokenizers.data.stream_loading import load_streamed_splits
from hq_tokenizers.data.streams import ImageStream
from hq_tokenizers.hashing import tensors_sha256, weights_sha256
from hq_tokenizers.models.trained_models import load_tokenizer, set_beam_width
from hq_tokenizers.options.training import EncodeConfig
from hq_tokenizers.padding import padding_of_codes
from hq_tokenizers.processes import create_accelerator, main_process_does
from hq_tokenizers.reporting.folder_lock import lock_folder
from hq_tokenizers.reporting.tracking import counting_bar

from .code_parts import CodeParts

Rows = ImageRows | SoundRows
TrainingRows = Rows | ImageStream
_OPTIONS = {"train": "train_split", "validation": "validation_split", "test": "test_split"}
# Batches of every process between two parts, few enough to do again.
_BATCHES_OF_A_PART = 16


def encode_images(config: EncodeConfig) -> None:
    """Encodes the train, validation and (where there is one) test split with a trained tokenizer and saves the codes.

    What is finished is kept part by part in `config.output_dir`: after an interruption the same call goes on there, in
    any number of processes, to the same codes. The training split may be a stream, and may be encoded in several views.

    Sounds are cut or padded to one length, `data.sound.segment_frames` or else the tokenizer's `image_size`: priors
    model codes of one layout. Codes of padding are 0. `EncodedImages.load` reads what was saved.

    Raises:
        BlockingIOError: If another command is writing to `config.output_dir`.
        FileExistsError: If `config.output_dir` holds things that the codes would replace and that are no codes.
        ValueError: If there is no such tokenizer, the images do not fit it, a split has classes that the training
            split lacks, soft targets are asked of a deterministic tokenizer, a beam of one with one code per position,
            or an interrupted call with other data or options has left its parts; before anything is encoded.
    """
    accelerator = create_accelerator()
    with lock_folder("output_dir", config.output_dir):
        _encode_images(config, accelerator)


def _encode_images(config: EncodeConfig, accelerator: Accelerator) -> None:
    model = load_tokenizer(config.tokenizer)
    model = model.to(accelerator.device)
    _check_posterior(model, config)
    beam_width = _beam_width(model, config)
    names = ["train", "validation"] + (["test"] if config.data.test_split else [])
    EncodedImages.check_folder(config.output_dir, names)
    if Path(config.output_dir, DESCRIPTION).is_file() and accelerator.is_main_process:
        print(f"{config.output_dir} has codes, which the new ones replace once they are complete.")
    train, others = _load_splits(config, model, *names)
    for name, other in zip(names[1:], others, strict=True):
        check_classes(train, other, _OPTIONS[name])
    splits: dict[str, TrainingRows] = dict(zip(names, (train, *others), strict=True))
    image_size = _encoded_size(config, model)
    layout = model.code_layout(image_size)
    parts = CodeParts(config.output_dir, layout)
    tokenizer_sha256 = weights_sha256(model)
    call = _call(config, splits, tokenizer_sha256, image_size) | {"beam_width": beam_width}
    finished = main_process_does(lambda: parts.open(call))
    if finished and accelerator.is_main_process:
        print(f"{config.output_dir} has {finished:,} rows of an interrupted `encode`, which goes on after them.")
    encoder = _Encoder(model, layout, image_size[1], accelerator, parts)
    for name, rows in splits.items():
        # Only training has a use for soft targets and views.
        views, num_soft = (config.views, config.soft_targets) if name == "train" else (1, 0)
        passes = build_passes(rows, config.batch_size, views, config.seed)
        encoder.encode(name, passes, views, num_soft)
    if accelerator.is_main_process:
        sizes = _save(config, parts, splits, layout, tokenizer_sha256, beam_width)
        kind = "sounds" if model.config.modality == "sound" else "images"
        counts = ", ".join(f"{size:,} of {name}" for name, size in sizes.items())
        print(f"The codes of the {kind}, {counts}, {layout.num_codes} each, are in {config.output_dir}.")
        for name, rows in splits.items():
            _say_what_was_cut(rows, name, image_size[1])
    accelerator.wait_for_everyone()


def _call(
    config: EncodeConfig, splits: Mapping[str, TrainingRows], tokenizer_sha256: str, image_size: tuple[int, int]
) -> dict[str, Any]:
    """All that decides the codes: two calls for which this is equal make the same ones."""
    call: dict[str, Any] = {"tokenizer_sha256": tokenizer_sha256, "encoded_size": list(image_size)}
    for name, rows in splits.items():
        call[f"{name}_{'stream' if isinstance(rows, ImageStream) else 'rows'}_sha256"] = rows.sha256()
        call[f"{name}_classes"] = _classes_identity(rows)
    call |= {name: getattr(config, name) for name in ("batch_size", "soft_targets", "views")}

    if config.views > 1:
        call["seed"] = config.seed
        call |= {f"data.{name}": getattr(config.data, name) for name in config.data.random_changes}
    return call


def _classes_identity(rows: TrainingRows) -> str | None:
    """Which column of a stream, or which numbers of rows, are classes and speakers; their names count as well."""
    if isinstance(rows, ImageStream):
        return None if rows.label_column is None else f"{rows.label_column} {rows.label_names}"
    columns = {"classes": rows.labels, "speakers": getattr(rows, "speakers", None)}
    there = {name: column for name, column in columns.items() if column is not None}
    names = f"{rows.label_names} {getattr(rows, 'speaker_names', None)}"
    return tensors_sha256({f"{name} {names}": column for name, column in there.items()}) if there else None


def _save(
    config: EncodeConfig,
    parts: CodeParts,
    splits: Mapping[str, TrainingRows],
    layout: CodeLayout,
    tokenizer_sha256: str,
    beam_width: int,
) -> dict[str, int]:
    """Makes the folder of codes from the parts, without reading them into memory; gives the size of every split."""
    train = splits["train"]
    label_names = train.label_names
    if isinstance(train, ImageStream) and train.label_column is not None and label_names is None:
        largest = max(parts.largest_class(name) for name in splits)
        label_names = [str(label) for label in range(largest + 1)]
    speaker_names = getattr(train, "speaker_names", None)
    data_sets = {
        name: parts.data_set(name, config.views if name == "train" else 1, label_names, speaker_names)
        for name in splits
    }
    description = describe_codes(
        layout, config.tokenizer, tokenizer_sha256, label_names, speaker_names, config.views, beam_width
    )
    write_codes(config.output_dir, data_sets, description)
    return {name: len(rows) for name, rows in data_sets.items()}


def _load_splits(config: EncodeConfig, model: PreTrainedModel, *names: str) -> tuple[TrainingRows, Sequence[Rows]]:
    """The training split, perhaps as a stream, and the others."""
    options = [_OPTIONS[name] for name in names]
    if model.config.modality == "sound":
        sounds = load_sound_splits(config.data, load_front_end(config.tokenizer, model.config), *options)
        for heard in sounds:
            check_speakers(model.config, heard)
        return sounds[0], sounds[1:]
    train: ImageRows | ImageStream
    if config.data.streaming:
        train, validation, test = load_streamed_splits(config.data, classes=True)
        others = [validation, test][: len(names) - 1]
    else:
        train, *others = load_image_splits(config.data, *options)
    for option, rows in zip(options, (train, *others), strict=True):
        check_images(model, rows, option)
    return train, others


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


def _say_what_was_cut(rows: TrainingRows, name: str, num_frames: int) -> None:
    spectrograms = getattr(rows, "spectrograms", None) or []
    cut, number = sum(values.shape[-1] > num_frames for values in spectrograms), len(spectrograms)
    if cut:
        print(
            f"{cut:,} of {number:,} sounds of {name} are longer than the {num_frames} frames that were encoded, and "
            "were cut: data.sound.segment_frames sets the length."
        )


class _Encoder:
    """Encodes splits, part by part.

    Args:
        model: The tokenizer.
        layout: Of the codes.
        num_frames: Frames of each sound.
        accelerator: Whose processes share the work.
        parts: Where the codes go.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layout: CodeLayout,
        num_frames: int,
        accelerator: Accelerator,
        parts: CodeParts,
    ) -> None:
        self.model = model
        self.layout = layout
        self.num_frames = num_frames
        self.accelerator = accelerator
        self.parts = parts

    def encode(self, split: str, passes: RowPasses | StreamPasses, views: int, num_soft: int) -> None:
        """Encodes what is not finished yet of a split, with the posterior's `num_soft` likeliest codes if not 0."""
        total = None if passes.num_rows is None else views * passes.num_rows
        before = 0
        with counting_bar(f"encoding {split}", self.accelerator.is_main_process) as show:
            for view in range(views):
                done = 0
                for done in self._encode_view(split, view, passes, num_soft):
                    show(before + done, total)
                before += done

    def _encode_view(self, split: str, view: int, passes: RowPasses | StreamPasses, num_soft: int) -> Iterator[int]:
        """Encodes what is not finished yet of a view; yields how many rows of it are, first and after every part.

        Every process has its share of the batches of a part. So a part is complete when the processes meet, and which
        batches there are does not depend on their number.
        """
        first = main_process_does(partial(self.parts.end_of, split, view))
        yield first.rows
        processes = Processes(self.accelerator.num_processes, self.accelerator.process_index)
        with closing(passes.batches(view, first, self.accelerator.device, processes)) as batches:
            while True:
                own = [(end, self._encode_batch(batch, num_soft)) for batch, end in islice(batches, _BATCHES_OF_A_PART)]
                encoded = sorted(gather_object(own), key=lambda each: each[0])
                if not encoded:
                    return
                end = encoded[-1][0]
                rows = _rows_of([columns for _, columns in encoded])
                main_process_does(partial(self.parts.write, split, view, first, end, rows))
                yield end.rows
                first = end

    def _encode_batch(self, batch: Batch, num_soft: int) -> dict[str, torch.Tensor]:
        """Codes int32 (B, T); of sounds their lengths (B,); with soft targets also those of `soft_codes`.

        Classes and speakers are passed on.
        """
        inputs: Batch = {name: batch[name] for name in ("pixel_values", "attention_mask") if name in batch}
        passed_on = {"labels": "labels", "speaker_ids": "speakers"}
        columns = {column: batch[name] for name, column in passed_on.items() if name in batch}
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


def _rows_of(batches: Sequence[Mapping[str, torch.Tensor]]) -> CodeRows:
    """The rows of encoded batches."""
    columns = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    soft = SoftCodes(columns.pop("soft_codes"), columns.pop("soft_probabilities")) if "soft_codes" in columns else None
    return CodeRows(**columns, soft=soft)


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


def _beam_width(model: PreTrainedModel, config: EncodeConfig) -> int:
    """That of the options, or the tokenizer's own, by which it encodes from now on."""
    width = set_beam_width(model, config.beam_width)
    if width > 1 and config.soft_targets:
        raise ValueError(
            "soft_targets are probabilities along the codes that are most probable level after level, and beam_width "
            f"{width} chooses others: set beam_width to 1, or soft_targets to 0."
        )
    return width

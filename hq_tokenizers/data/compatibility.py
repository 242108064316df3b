"""Whether images suit a tokenizer, and splits of images or sounds suit each other."""

from __future__ import annotations

from transformers import PreTrainedModel

from hq_tokenizers.checks import as_image_size, image_height_width
from hq_tokenizers.data.digits import MAX_GREY_LEVEL, SIZE
from hq_tokenizers.data.images import ImageRows
from hq_tokenizers.data.label_maps import LabelMapFormat
from hq_tokenizers.data.sound import SoundRows
from hq_tokenizers.data.streams import ImageStream


def check_images(model: PreTrainedModel, rows: ImageRows | ImageStream, option: str) -> None:
    """Checks that a split has the kind and size of images that a tokenizer was trained on.

    Args:
        model: The tokenizer.
        rows: The split.
        option: Name of the option of `DataConfig` that chose it, to name in errors.

    Raises:
        ValueError: If it does not, naming the option to change.
    """
    form, channels = rows.image_format, model.config.num_channels
    if _is_of_digits(rows) and not _takes_digits(model):
        raise ValueError(
            f"data.{option} is of the embedded digits, which is the default of data.name, and the tokenizer was "
            "trained on other images: give data.name, data.path and the other options of data as in its training."
        )
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
    height, width = image_height_width(model.config.image_size)
    if (form.height, form.width) != (height, width):
        raise ValueError(
            f"data.{option} has images of {form.height}×{form.width} pixels, the tokenizer was trained on {height}×"
            f"{width}: set data.image_size to {as_image_size(height, width)}, or train a tokenizer "
            "on images of this size."
        )


def _is_of_digits(rows: ImageRows | ImageStream) -> bool:
    form = rows.image_format
    return (form.height, form.width, form.max_value) == (SIZE, SIZE, MAX_GREY_LEVEL)


def _takes_digits(model: PreTrainedModel) -> bool:
    size = image_height_width(model.config.image_size)
    return (model.config.num_channels, *size) == (1, SIZE, SIZE) and not model.config.for_label_maps


def check_classes(train: ImageRows | SoundRows | ImageStream, rows: ImageRows | SoundRows, option: str) -> None:
    """A class means the same in every split: the prior knows those of the training split by number.

    Numbers without names, as streams have them, mean the same anyway.
    """
    if train.label_names is None:
        return
    if rows.labels is None:
        raise ValueError(f"data.{option} has no classes, but data.train_split has: choose data.label_column for both.")
    known, names = train.label_names, rows.label_names or []
    used = rows.labels.unique().tolist()
    strange = [names[label] for label in used if label >= len(known) or names[label] != known[label]]
    if strange:
        raise ValueError(
            f"data.{option} has images of the classes {', '.join(strange[:5])}, which data.train_split does not have, "
            f"or under another number; its classes are {', '.join(known[:20])}{' …' if len(known) > 20 else ''}."
        )

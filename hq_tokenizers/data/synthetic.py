"""Made-up data of the shape of real ones, for dry runs."""

from __future__ import annotations

import numpy as np
import torch

from hq_tokenizers.codes import CodeLayout
from hq_tokenizers.feature_extraction_hq import HQFeatureExtractor
from hq_tokenizers.options.data import DataConfig

from .encoded import CodeRows, EncodedImages
from .images import ImageFormat, ImageRows, RowNames
from .label_maps import LabelMapFormat
from .soft_codes import SoftCodes
from .sound import SoundRows

_SOFT_CODES = 8


def synthetic_images(config: DataConfig, height: int, width: int, num_channels: int, number: int) -> ImageRows:
    """Images of noise, or label maps where the options say so.

    Args:
        config: Options of the data, none of which are read from disk.
        height: Pixels.
        width: Pixels.
        num_channels: 1 or 3; label maps have none.
        number: How many.
    """
    from datasets import Dataset

    image_format: ImageFormat
    if config.label_map_classes is None:
        image_format = ImageFormat(height, width, num_channels)
        shape, largest = (number, height, width, num_channels), 255
    else:
        image_format = LabelMapFormat(height, width, 1, num_classes=config.label_map_classes)
        shape, largest = (number, height, width, 1), config.label_map_classes - 1
    pixels = np.random.default_rng(0).integers(0, largest + 1, shape, dtype=np.uint8)
    rows = Dataset.from_dict({"image": list(pixels)})
    return ImageRows(rows, "image", RowNames("synthetic"), image_format)


def synthetic_sounds(extractor: HQFeatureExtractor, num_frames: int, num_speakers: int, number: int) -> SoundRows:
    """Sounds of noise.

    Args:
        extractor: The front end.
        num_frames: Frames of every sound.
        num_speakers: Speakers, of whom the first is heard; 0 for none.
        number: How many.
    """
    from datasets import Dataset

    samples = (num_frames - 1) * extractor.hop_length + 1
    noise = np.random.default_rng(0).uniform(-1, 1, (number, samples)).astype(np.float32)
    rows = Dataset.from_dict({"audio": list(noise)}).with_format("numpy")
    heard = torch.zeros(number, dtype=torch.long) if num_speakers else None
    names = [f"speaker {index}" for index in range(num_speakers)] or None
    return SoundRows(rows, "audio", RowNames("synthetic"), extractor, speakers=heard, speaker_names=names)


def synthetic_codes(
    layout: CodeLayout, num_classes: int, number: int, soft: bool, names: list[str] | None = None
) -> EncodedImages:
    """Codes drawn uniformly, of training and validation, with classes where there are any.

    Args:
        layout: Their layout.
        num_classes: Classes; 0 for none.
        number: Images of each split.
        soft: Whether there are probabilities of the codes as well.
        names: Names of the classes, or None.
    """
    generator = torch.Generator().manual_seed(0)
    smallest = min(layout.codebook_sizes)

    def rows() -> CodeRows:
        codes = torch.randint(smallest, (number, layout.num_codes), generator=generator, dtype=torch.int32)
        labels = None
        if num_classes:
            # The last one for certain: the number of classes is read off the labels.
            labels = torch.randint(num_classes, (number,), generator=generator)
            labels[0] = num_classes - 1
        if not soft:
            return CodeRows(codes, labels)
        likely = torch.randint(smallest, (number, layout.num_codes, _SOFT_CODES), generator=generator).int()
        return CodeRows(codes, labels, SoftCodes(likely, torch.full(likely.shape, 1 / _SOFT_CODES).half()))

    return EncodedImages(layout, {"train": rows(), "validation": rows()}, "synthetic", "", names)

"""A generator's samples by their numbers: drawn, or read back where an earlier run has kept them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from transformers import PreTrainedModel

from hq_tokenizers.data.batches import validation_batches
from hq_tokenizers.files import PARTIAL, naming_full_disk, read_json, write_json
from hq_tokenizers.memory import check_memory
from hq_tokenizers.metrics.image_inputs import quantize
from hq_tokenizers.reporting.reports import changes, check_same_call
from hq_tokenizers.reporting.tracking import progress_bar

REQUEST = "request.json"
SampleFunction = Callable[[list[int], list[torch.Generator]], torch.Tensor]


def generator_samples(generator: PreTrainedModel, settings: Mapping[str, Any]) -> SampleFunction:
    """Draws images of a generator.

    Args:
        generator: The generator.
        settings: Of sampling, which replace its own.
    """

    def sample(labels: list[int], generators: list[torch.Generator]) -> torch.Tensor:
        images: torch.Tensor = generator.generate(
            labels, generator=generators, batch_size=len(labels), **settings
        ).images
        return images

    return sample


class NumberedSamples:
    """Samples 0, 1, …: sample i has the noise of seed + i and class i modulo the number of classes.

    Args:
        sample: Draws images from a list of class ids (−1: no class) and a list of as many `torch.Generator`s; returns
            floats (B, C, H, W), nominally in [0, 1], of which none depends on its batch.
        num_classes: Number of classes, 0 for none.
        seed: Seed of sample 0.
        folder: Where the samples are kept as PNG, by number; None keeps none.
    """

    def __init__(self, sample: SampleFunction, num_classes: int, seed: int, folder: Path | None = None) -> None:
        self._sample = sample
        self._num_classes = num_classes
        self._seed = seed
        self._folder = folder

    def open_folder(self, request: dict[str, Any], accelerator: Accelerator) -> None:
        """Makes the folder, with the request that its samples belong to; called on every process.

        Raises:
            ValueError: If it holds images of another request, so that nobody measures a mixture.
        """
        if self._folder is None:
            return
        path = self._folder / REQUEST
        if any(self._folder.glob("*.png")):
            remedy = "so nobody knows which samples the folder holds; delete the folder, or choose another images_dir"
            earlier = read_json(path, remedy) if path.is_file() else {}
            check_same_call("images_dir", self._folder, "images", changes(request, earlier))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(path, request)
        accelerator.wait_for_everyone()

    def share(self, number: int, batch_size: int, accelerator: Accelerator) -> Iterator[torch.Tensor]:
        """This process's batches of the first `number` samples, uint8 (B, C, H, W).

        Raises:
            ValueError: If not even the numbers fit into memory.
        """
        check_memory(f"The numbers of {number:,} samples", 16 * number, "lower num_images")
        shares = validation_batches(number, batch_size, accelerator.num_processes, accelerator.process_index)
        batches = (self.draw(indices.tolist()) for indices in shares)
        return progress_bar(batches, len(shares), "sampling", accelerator.is_main_process)

    def draw(self, indices: Sequence[int]) -> torch.Tensor:
        """The samples of these numbers, uint8 (B, C, H, W) on the CPU."""
        images = {index: image for index in indices if (image := self._read(index)) is not None}
        missing = [index for index in indices if index not in images]
        if missing:
            labels = [index % self._num_classes if self._num_classes else -1 for index in missing]
            generators = [torch.Generator().manual_seed(self._seed + index) for index in missing]
            drawn = quantize(self._sample(labels, generators).float().clamp(0, 1)).cpu()
            for index, image in zip(missing, drawn, strict=True):
                self._write(index, image)
                images[index] = image
        return torch.stack([images[index] for index in indices])

    def _path(self, index: int) -> Path | None:
        return None if self._folder is None else self._folder / f"{index:06d}.png"

    def _read(self, index: int) -> torch.Tensor | None:
        path = self._path(index)
        if path is None or not path.is_file():
            return None
        try:
            with Image.open(path) as image:
                pixels = np.array(image)
        except (OSError, SyntaxError):  # Pillow's words for a file that breaks off; the sample is drawn again.
            return None
        return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())

    def _write(self, index: int, image: torch.Tensor) -> None:
        path = self._path(index)
        if path is None:
            return
        pixels = image.permute(1, 2, 0).numpy()
        partial = path.with_suffix(PARTIAL)
        with naming_full_disk(path):
            Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(partial, format="PNG")
        # Renamed when it is complete, so that an interruption leaves whole images only; one that a crash of the system
        # has cut off is drawn again, so that there is no need to wait for the disk.
        os.replace(partial, path)

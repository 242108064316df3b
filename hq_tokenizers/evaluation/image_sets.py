"""A set of images against another one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from accelerate import Accelerator

from hq_tokenizers.checks import as_image_size
from hq_tokenizers.data.batches import validation_batches
from hq_tokenizers.data.images import ImageRows
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.evaluation import EvaluateConfig
from hq_tokenizers.reporting.tracking import progress_bar

from .networks import as_rgb, build_fid, finish
from .references import Reference

# One of the Inception Score's ten splits may get no image of fewer than these.
_FEWEST_FOR_INCEPTION_SCORE = 200
_FEWEST_FOR_NEIGHBOURS = 4


class SetComparison:
    """Fréchet distance of a set of images from the reference, with what else `evaluate` asks for.

    Args:
        config: Which metrics.
        reference: What to compare with.
        num_images: Images that will be judged.
        image_size: Their height and width.
        accelerator: Whose processes share the work.

    Raises:
        OSError, ValueError: If the network or the reference statistics cannot be had, sizes differ, or there are too
            few images.
    """

    def __init__(
        self,
        config: EvaluateConfig,
        reference: Reference,
        num_images: int,
        image_size: tuple[int, int],
        accelerator: Accelerator,
    ) -> None:
        self._config, self._unread, self._accelerator = config, reference.rows, accelerator
        check_sizes(image_size, reference)
        with accelerator.local_main_process_first():
            self._metric = build_fid(
                config.metrics,
                num_images,
                None if reference.rows is None else len(reference.rows),
                reference=reference.statistics,
                kid=config.kid,
                kid_subset_size=config.kid_subset_size,
                inception_score=config.inception_score,
                precision_recall=config.precision_recall,
                **reference.identity,
            )
        if reference.rows is None and self._metric.reference_size != list(image_size):
            height, width = image_size
            size = self._metric.reference_size
            raise ValueError(
                f"The reference statistics are of images of size {size}, the images to judge of {list(image_size)}: "
                f"write statistics of that size, by evaluate --save_reference with --data.image_size "
                f"{as_image_size(height, width)}, or choose a folder as reference."
            )
        num_references = self._metric.num_references if reference.rows is None else len(reference.rows)
        _check_enough(config, num_images, num_references)

    def compare(self, batches: Iterable[torch.Tensor]) -> dict[str, Any]:
        """Compares this process's images (B, C, H, W) and those of the other processes with the reference.

        Returns:
            The figures of `FID` and their provenance, on every process.
        """
        if self._unread is not None:
            self._read_reference(self._unread)
            self._unread = None
        self._metric.reset()
        for images in batches:
            self._metric.add_batch(predictions=as_rgb(images.to(self._accelerator.device)))
        return finish(self._metric)

    def _read_reference(self, rows: ImageRows) -> None:
        self._metric.reset()
        for images in share_of_images(rows, self._config.batch_size, self._accelerator, "reference"):
            self._metric.add_batch(references=as_rgb(images))
        self._metric.gather()
        if self._config.save_reference is not None and self._accelerator.is_main_process:
            self._metric.save_reference(self._config.save_reference)
        self._metric.keep_references()


def share_of_images(rows: ImageRows, batch_size: int, accelerator: Accelerator, title: str) -> Iterable[torch.Tensor]:
    """This process's batches of images, (B, C, H, W) in [0, 1]."""
    shares = validation_batches(len(rows), batch_size, accelerator.num_processes, accelerator.process_index)
    batches = rows.batches(shares, accelerator.device)
    for batch in progress_bar(batches, len(shares), title, accelerator.is_main_process):
        yield batch["pixel_values"]


def check_sizes(image_size: tuple[int, int], reference: Reference) -> None:
    """Checks that images can be compared without resizing one side only; statistics know their size themselves.

    Raises:
        ValueError: If height or width differ.
    """
    if reference.rows is None:
        return
    form = reference.rows.image_format
    if image_size != (form.height, form.width):
        height, width = image_size
        remedy = f"set data.image_size to {as_image_size(height, width)}"
        if reference.names is None and reference.identity.get("reference_name") == DataConfig.name:
            remedy = "those are the embedded digits; choose others by data.name and data.path, or by reference"
        if reference.option == "evaluation_reference":  # training has no images that it could resize
            remedy = f"give {reference.option} images of {height}×{width}"
        raise ValueError(
            f"The images have {height}×{width} pixels, those to compare with {form.height}×{form.width}: {remedy}."
        )


def _check_enough(config: EvaluateConfig, num_images: int, num_references: int) -> None:
    fewest = min(num_images, num_references)
    if config.kid and fewest < config.kid_subset_size:
        raise ValueError(
            f"kid takes subsets of {config.kid_subset_size} images, but one side has {fewest}: lower kid_subset_size."
        )
    if config.precision_recall and fewest < _FEWEST_FOR_NEIGHBOURS:
        raise ValueError(f"precision_recall needs at least {_FEWEST_FOR_NEIGHBOURS} images a side, one has {fewest}.")
    if config.inception_score and num_images < _FEWEST_FOR_INCEPTION_SCORE:
        raise ValueError(
            f"inception_score over 10 splits needs at least {_FEWEST_FOR_INCEPTION_SCORE} images, got {num_images}."
        )

"""From a trained tokenizer to a prior on its codes and to samples of both: what the comparisons share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from records import Record, data_description, read_record, write_record
from transformers import AutoModel, PreTrainedModel

from hq_tokenizers.codes import CodeLayout
from hq_tokenizers.data.encoded import EncodedImages
from hq_tokenizers.evaluation.generator import compare_samples
from hq_tokenizers.evaluation.image_sets import SetComparison
from hq_tokenizers.evaluation.sampling import NumberedSamples, SampleFunction, generator_samples
from hq_tokenizers.hashing import weights_sha256
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.evaluation import EvaluateConfig, FeatureConfig, MetricConfig
from hq_tokenizers.options.reading import options_from_dict
from hq_tokenizers.options.training import EncodeConfig, PriorTrainingConfig
from hq_tokenizers.pipelines.modeling_hq_generator import HQGeneratorModel
from hq_tokenizers.training.encoding import encode_images
from hq_tokenizers.training.prior import train_prior_and_save_generator

_BATCH_SIZE = 100


def encoded_once(tokenizer: Path, folder: Path, data: DataConfig) -> EncodedImages:
    """The codes of a tokenizer, encoded unless they are there.

    Raises:
        SystemExit: If those that are there are of another tokenizer or of other data.
    """
    now = {"tokenizer_sha256": weights_sha256(AutoModel.from_pretrained(tokenizer)), **data_description(data)}
    if read_record(folder / "made_from.json", now) is None:
        encode_images(EncodeConfig(tokenizer=str(tokenizer), output_dir=str(folder), data=data))
        write_record(folder / "made_from.json", now)
    return EncodedImages.load(str(folder))


class SampleComparison:
    """The Fréchet distance of samples from the held-out images, which are read by the first use, and once.

    Args:
        data: Whose test split, or validation split, samples are compared with.
        metrics: The feature network.
        num_images: Samples a comparison.
        accelerator: Of one process.
    """

    def __init__(self, data: DataConfig, metrics: FeatureConfig, num_images: int, accelerator: Accelerator) -> None:
        network = {name: value for name, value in asdict(metrics).items() if name in asdict(FeatureConfig())}
        self._options = EvaluateConfig(
            generator="benchmark",
            data=data,
            metrics=MetricConfig(**network),
            num_images=num_images,
            batch_size=_BATCH_SIZE,
        )
        self._accelerator = accelerator
        self._kept: SetComparison | None = None

    def batches(self, sample: SampleFunction, num_classes: int, seed: int) -> Iterable[torch.Tensor]:
        """The samples to compare, of the classes in turn."""
        samples = NumberedSamples(sample, num_classes, seed)
        return samples.share(self._options.num_images, _BATCH_SIZE, self._accelerator)

    def __call__(self, batches: Iterable[torch.Tensor], tokenizer: PreTrainedModel) -> Record:
        """Figures of samples that the tokenizer has decoded."""
        if self._kept is None:
            self._kept = compare_samples(self._options, tokenizer, self._accelerator)
        return self._kept.compare(batches)


def prior_config(options: Mapping[str, Any], **own: Any) -> PriorTrainingConfig:
    """Options of train-prior, from the section `prior` of a comparison and what the comparison itself decides.

    Raises:
        ValueError: If the section has unknown options or wrong values.
    """
    return options_from_dict(PriorTrainingConfig, {**options, **own}, "prior.")


def two_stage_figures(
    tokenizer: Path, data: DataConfig, options: Mapping[str, Any], seed: int, compare: SampleComparison | None
) -> Record:
    """Trains a prior on the codes of a tokenizer, in the tokenizer's folder, or continues to.

    Args:
        tokenizer: The folder.
        data: The images, whose train and validation split are encoded.
        options: Of train-prior, the same for all tokenizers.
        seed: Of the prior's weights and of the samples.
        compare: What judges samples; None draws none.

    Returns:
        "under_prior": bits per validation image under the prior and under the histograms of the training codes, with
        the prior's size and steps; with `compare` also "samples", what it finds.
    """
    encoded = encoded_once(tokenizer, tokenizer / "codes", data)
    folder = tokenizer / "prior"
    report = train_prior_and_save_generator(
        prior_config(options, output_dir=str(folder), codes=str(tokenizer / "codes"), tokenizer=None, seed=seed)
    )
    figures: Record = {"under_prior": _under_prior(report, encoded.layout)}
    if compare is not None:
        generator = HQGeneratorModel.from_pretrained(folder / "generator").eval()
        batches = compare.batches(generator_samples(generator, {}), len(generator.config.id2label or {}), seed)
        figures["samples"] = compare(batches, generator.image_tokenizer)
    return figures


def _under_prior(report: Record, layout: CodeLayout) -> Record:
    found = report["validation"]
    positions = [layout.groups[group].num_positions for group, _ in layout.levels()]
    histograms = zip(positions, found["unigram_bits_by_level"], strict=True)
    return {
        **{name: report[name] for name in ("num_parameters", "steps")},
        **{name: found[name] for name in ("bits_per_image", "bits_per_code_by_level")},
        "histogram_bits_per_image": sum(number * bits for number, bits in histograms),
    }

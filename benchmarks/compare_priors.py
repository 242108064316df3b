r"""Trains priors on the codes of trained tokenizers under one budget, and judges what they sample.

    python benchmarks/compare_tokenizers.py benchmarks/mnist.yaml --data.path FOLDER --report_dir runs/report \
        --only "RSQ-VAE L=4" --seeds "[0]"
    python benchmarks/compare_priors.py benchmarks/mnist_priors.yaml --data.path FOLDER --report_dir runs/report
    python benchmarks/compare_priors.py benchmarks/mnist_priors.yaml --data.path FOLDER --report_only true

Every prior is measured by its bits per code on held-out images, level by level, against the entropy of the level's
histogram; and by its samples: their Fréchet distance from held-out images on SqueezeNet features, which is not FID,
and, where `classifier_epochs` is above 0, by how many of them a small convolutional network, trained on real images
only, reads as the class that was asked for; and by the images that a second of one processor gives, pixels
included. Codes drawn from the histograms alone ("unigram") are measured beside.

Every pair of a tokenizer and a prior ends as a JSON record and a grid of samples in `report_dir`/`name`; what has a
record is not done again, and interrupted training continues at its last checkpoint. The records of the published runs
lie in docs/results, the default `report_dir`: to repeat a run, or to train the tokenizers that the priors need, give
another one, as above; the last line prints the published table.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import torch
from records import Record, check_names, data_description, read_record, slug, write_record
from sample_accuracy import Classifier, real_accuracy, train_classifier
from second_stage import SampleComparison, encoded_once
from transformers import AutoModel, PreTrainedModel

from hq_tokenizers.cli.messages import errors_as_messages
from hq_tokenizers.cli.scripts import script_options
from hq_tokenizers.data.encoded import EncodedImages
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.evaluation.references import evaluated_split
from hq_tokenizers.evaluation.sampling import NumberedSamples, SampleFunction, generator_samples
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.evaluation import FeatureConfig
from hq_tokenizers.options.reading import options_from_dict
from hq_tokenizers.options.training import PriorTrainingConfig
from hq_tokenizers.pipelines.modeling_hq_generator import HQGeneratorModel
from hq_tokenizers.processes import create_accelerator
from hq_tokenizers.reporting.figures import image_grid, save_png
from hq_tokenizers.training.prior import train_prior_and_save_generator

UNIGRAM = "unigram"


@dataclass(kw_only=True)
class Comparison:
    """Options of the comparison."""

    tokenizers: Annotated[dict[str, str], "folder of each tokenizer, below tokenizer_dir"] = field(default_factory=dict)
    priors: Annotated[dict[str, Any], "name of each prior: its `model` section, as in train-prior"] = field(
        default_factory=dict
    )
    training: Annotated[dict[str, Any], "options of train-prior, the same for all"] = field(default_factory=dict)
    sampling: Annotated[dict[str, Any], "name of each way to sample: its settings, as in generate"] = field(
        default_factory=lambda: {"default": {}}
    )
    num_samples: Annotated[int, "images to draw in each of these ways"] = 10_000
    seed: Annotated[int, "seed of weights and samples"] = 0
    classifier_epochs: Annotated[int, "passes of the judge over the training images; 0 leaves it out"] = 0
    data: DataConfig = field(default_factory=DataConfig)
    metrics: FeatureConfig = field(default_factory=lambda: FeatureConfig(features="squeezenet"))
    tokenizer_dir: Annotated[str, "where the tokenizers are"] = "runs/compare"
    output_dir: Annotated[str, "where codes and runs go"] = "runs/compare_priors"
    report_dir: Annotated[str, "where records, grids and the table go"] = "docs/results"
    name: Annotated[str, "name of the table"] = "priors"
    only: Annotated[str | None, "names of priors to train, separated by commas; null trains all"] = None
    report_only: Annotated[bool, "train nothing, report what is finished"] = False


@errors_as_messages()
def main() -> None:
    config = script_options(Comparison, __doc__ or "")
    if not config.tokenizers or not config.priors:
        raise SystemExit("error: tokenizers or priors is empty; benchmarks/mnist_priors.yaml is an example.")
    check_names(config.tokenizers, (UNIGRAM, "codes", *config.priors), config.sampling)
    chosen = list(config.priors) if config.only is None else [name.strip() for name in config.only.split(",")]
    unknown = [name for name in chosen if name not in config.priors]
    if unknown:
        raise SystemExit(f"error: --only names {unknown}; the priors are {', '.join(config.priors)}.")
    _training_config(config)
    if not config.report_only:
        judge = Judge(config)
        if judge.accelerator.num_processes > 1:
            raise SystemExit("error: one process trains and judges; start another with --only for other priors.")
        for tokenizer in config.tokenizers:
            for prior in (UNIGRAM, *chosen):
                with errors_as_messages(f"{prior!r} of {tokenizer!r}: "):
                    run_pair(config, judge, tokenizer, prior)
    write_table(config)


class Judge:
    """Measures samples; whatever is needed for that is made when it is first used, and once."""

    def __init__(self, config: Comparison) -> None:
        self.config = config
        self.accelerator = create_accelerator()
        self._compare = SampleComparison(config.data, config.metrics, config.num_samples, self.accelerator)

    def __call__(self, sample: SampleFunction, num_classes: int, tokenizer: PreTrainedModel) -> Record:
        """Figures of the samples that `sample` draws, whose images the tokenizer decodes."""
        clock = Clock(sample)
        batches = self._compare.batches(clock, num_classes, self.config.seed)
        hits: list[torch.Tensor] = []
        if self.config.classifier_epochs and num_classes:
            batches = self._read(batches, num_classes, hits)
        found = self._compare(batches, tokenizer)
        accuracy = {"class_accuracy": torch.cat(hits).float().mean().item()} if hits else {}
        return {**found, **accuracy, "images_per_processor_second": clock.rate()}

    @cached_property
    def classifier(self) -> Classifier:
        """Trained on real images."""
        (train,) = load_image_splits(self.config.data, "train_split")
        return train_classifier(train, self.config.classifier_epochs, self.config.seed)

    def real_accuracy(self) -> float:
        """Accuracy of the classifier on the held-out images."""
        (test,) = load_image_splits(self.config.data, evaluated_split(self.config.data))
        return real_accuracy(self.classifier, test)

    def _read(
        self, batches: Iterable[torch.Tensor], num_classes: int, hits: list[torch.Tensor]
    ) -> Iterator[torch.Tensor]:
        classifier, index = self.classifier, 0
        for images in batches:
            labels = torch.arange(index, index + len(images)) % num_classes
            index += len(images)
            with torch.no_grad():
                hits.append(classifier(images.cpu().float() / 255).argmax(1) == labels)
            yield images


class Clock:
    """Draws samples, and takes the time of processors: that of the wall says little where other work runs.

    Args:
        sample: What draws.
    """

    def __init__(self, sample: SampleFunction) -> None:
        self.sample = sample
        self.seconds, self.images = 0.0, 0

    def __call__(self, labels: list[int], generators: list[torch.Generator]) -> torch.Tensor:
        """The images of these labels."""
        started = time.process_time()
        images = self.sample(labels, generators)
        self.seconds += time.process_time() - started
        self.images += len(images)
        return images

    def rate(self) -> float:
        """Images in a second of one processor; of an accelerator's time nothing is known here."""
        return self.images / self.seconds


def run_pair(config: Comparison, judge: Judge, tokenizer_name: str, prior_name: str) -> None:
    """Trains one prior on one tokenizer's codes, unless there is a record of it, and writes record and grids.

    Raises:
        SystemExit: If the record is of something else, or the codes are of another tokenizer or other data.
    """
    if finished_pair(config, tokenizer_name, prior_name):
        return
    print(f"== {prior_name} on {tokenizer_name}", flush=True)
    source = Path(config.tokenizer_dir) / config.tokenizers[tokenizer_name]
    folder = Path(config.output_dir) / slug(tokenizer_name)
    encoded = encoded_once(source, folder / "codes", config.data)
    record: Record = {"prior": prior_name, **_description(config, tokenizer_name, prior_name)}
    record["tokenizer_sha256"] = encoded.tokenizer_sha256
    if prior_name == UNIGRAM:
        tokenizer = AutoModel.from_pretrained(source).eval().to(judge.accelerator.device)
        samples = {"default": (unigram_sampler(encoded, tokenizer), 0)}
    else:
        report = _train(config, prior_name, folder)
        generator = HQGeneratorModel.from_pretrained(folder / slug(prior_name) / "generator").eval()
        generator = generator.to(judge.accelerator.device)
        tokenizer = generator.image_tokenizer
        num_classes = len(generator.config.id2label or {})
        samples = {name: (generator_samples(generator, way), num_classes) for name, way in config.sampling.items()}
        record |= {key: report[key] for key in ("num_parameters", "code_layout", "steps", "validation")}
    path = record_path(config, tokenizer_name, prior_name)
    path.parent.mkdir(parents=True, exist_ok=True)
    record["samples"] = {}
    for name, (sample, num_classes) in samples.items():
        record["samples"][name] = judge(sample, num_classes, tokenizer)
        grid = NumberedSamples(sample, num_classes, config.seed).draw(range(60))
        titles = [str(index % num_classes) for index in range(len(grid))] if num_classes else []
        save_png(image_grid(grid.float() / 255, 10, titles), grid_path(path, name))
    if config.classifier_epochs:
        record["classifier_accuracy_on_held_out_images"] = judge.real_accuracy()
    write_record(path, record)


def _train(config: Comparison, prior_name: str, folder: Path) -> Record:
    return train_prior_and_save_generator(
        _training_config(
            config,
            output_dir=str(folder / slug(prior_name)),
            codes=str(folder / "codes"),
            model=config.priors[prior_name],
        )
    )


def _training_config(config: Comparison, **options: Any) -> PriorTrainingConfig:
    return options_from_dict(PriorTrainingConfig, {**options, "seed": config.seed, **config.training}, "training.")


def unigram_sampler(encoded: EncodedImages, tokenizer: PreTrainedModel) -> SampleFunction:
    """Draws every code of a level from the histogram of the level's training codes, independently."""
    layout, train = encoded.layout, encoded.splits["train"].codes.long()
    level_of_code = layout.level_of_code()
    histograms = [
        torch.bincount(train[:, level_of_code == level].flatten(), minlength=size).double()
        for level, size in enumerate(layout.codebook_sizes)
    ]

    def sample(labels: list[int], generators: list[torch.Generator]) -> torch.Tensor:
        flat = torch.empty(len(generators), layout.num_codes, dtype=torch.long)
        for row, generator in zip(flat, generators, strict=True):
            for level, histogram in enumerate(histograms):
                places = level_of_code == level
                row[places] = histogram.multinomial(int(places.sum()), replacement=True, generator=generator)
        return tokenizer.decode(layout.unflatten(flat))

    return sample


def finished_pair(config: Comparison, tokenizer_name: str, prior_name: str) -> Record | None:
    return read_record(
        record_path(config, tokenizer_name, prior_name), _description(config, tokenizer_name, prior_name)
    )


def record_path(config: Comparison, tokenizer_name: str, prior_name: str) -> Path:
    return Path(config.report_dir) / config.name / f"{slug(tokenizer_name)}-{slug(prior_name)}.json"


def _description(config: Comparison, tokenizer_name: str, prior_name: str) -> Record:
    """What makes two records comparable; for codes from the histogram no training and only one way to sample."""
    names = ("num_samples", "seed", "classifier_epochs")
    names += () if prior_name == UNIGRAM else ("training", "sampling")
    return {
        "tokenizer": tokenizer_name,
        "tokenizer_folder": config.tokenizers[tokenizer_name],
        "model": None if prior_name == UNIGRAM else config.priors[prior_name],
        "data": data_description(config.data),
        "metrics": {key: value for key, value in asdict(config.metrics).items() if key != "feature_weights"},
        **{name: getattr(config, name) for name in names},
    }


def write_table(config: Comparison) -> None:
    """The table of all finished pairs."""
    lines = [
        "| codes | prior | parameters | bits per code, by level | histogram | samples | Fréchet distance |"
        " read as asked | images per processor second | grid |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for tokenizer_name in config.tokenizers:
        for prior_name in (UNIGRAM, *config.priors):
            record = finished_pair(config, tokenizer_name, prior_name)
            lines += [] if record is None else _rows(record, record_path(config, tokenizer_name, prior_name))
    path = Path(config.report_dir) / f"{config.name}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def grid_path(path: Path, way: str) -> Path:
    """Where the grid of samples is that were drawn in a way, beside the record."""
    return path.with_name(f"{path.stem}-{slug(way)}.png")


def _rows(record: Record, path: Path) -> list[str]:
    """A line of the table for every way to sample."""
    found = record.get("validation", {})
    per_level, unigram = (
        " / ".join(f"{bits:.2f}" for bits in found.get(name, [])) or "–"
        for name in ("bits_per_code_by_level", "unigram_bits_by_level")
    )
    size = f"{record['num_parameters']:,}" if "num_parameters" in record else "–"
    rows = []
    for way, figures in record["samples"].items():
        accuracy = f"{figures['class_accuracy']:.1%}" if "class_accuracy" in figures else "–"
        distance = f"{figures['fid']:.2f} (FID)" if "fid" in figures else f"{figures['frechet_distance']:.2f} (not FID)"
        speed = f"{figures['images_per_processor_second']:.0f}" if "images_per_processor_second" in figures else "–"
        grid = grid_path(path, way)
        cells = [record["tokenizer"], record["prior"], size, per_level, unigram, way, distance, accuracy, speed]
        cells.append(f"[png]({grid.parent.name}/{grid.name})")
        rows.append(f"| {' | '.join(cells)} |")
    return rows


if __name__ == "__main__":
    main()

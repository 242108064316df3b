r"""How many class-conditional samples of a generator does a classifier, trained on real images only, read as asked?

    python benchmarks/sample_accuracy.py --generator runs/mnist_prior/generator --data.name parquet --data.path FOLDER \
        --data.files '{train: mnist-train.parquet, test: mnist-test.parquet}'

The classifier is a small convolutional network, and with `--forest true` also a random forest of pixels, which makes
other mistakes; the accuracy on the held-out real images is reported beside. So are exact copies of training images
among the samples and, to see what was learned by heart, the mean root-mean-square difference of pixels to the nearest
training image, of the samples and of held-out images.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from records import write_record
from torch import nn
from tqdm.auto import trange

from hq_tokenizers.cli.messages import errors_as_messages
from hq_tokenizers.cli.scripts import script_options
from hq_tokenizers.data.images import ImageRows
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.evaluation.nearest_images import nearest_difference
from hq_tokenizers.models.trained_models import load_generator
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.priors.configuration_code_generation import settings_from_options
from hq_tokenizers.reporting.figures import image_grid, save_png


@dataclass(kw_only=True)
class Options:
    """Options of the benchmark."""

    generator: Annotated[str, "folder of the generator"] = "runs/mnist_prior/generator"
    data: DataConfig = field(default_factory=DataConfig)
    samples_per_class: Annotated[int, "images drawn of each class"] = 100
    epochs: Annotated[int, "passes of the classifier over the training images"] = 3
    forest: Annotated[bool, "whether a random forest reads the samples, too"] = False
    seed: Annotated[int, "seed of the classifier; sample i has the noise of seed + i"] = 0
    generation: Annotated[dict[str, Any], "sampling settings; default: those saved with the generator"] = field(
        default_factory=dict
    )
    grid: Annotated[str | None, "PNG of ten samples of each class"] = None
    output: Annotated[str | None, "JSON file of the result"] = None


Reader = Callable[[torch.Tensor], torch.Tensor]
"""Images (B, C, H, W) to scores (B, classes)."""


class Classifier(nn.Sequential):
    """Two convolutions with batch norm and pooling, two linear layers."""

    def __init__(self, num_channels: int, num_classes: int):
        def block(inputs: int, outputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2)]

        head = [nn.Flatten(), nn.LazyLinear(128), nn.ReLU(), nn.Dropout(0.3), nn.Linear(128, num_classes)]
        super().__init__(*block(num_channels, 32), *block(32, 64), *head)


def train_classifier(rows: ImageRows, epochs: int, seed: int) -> Classifier:
    assert rows.label_names is not None
    torch.manual_seed(seed)
    model = Classifier(rows.image_format.num_channels, len(rows.label_names))
    (first,) = rows.batches([torch.arange(2)], torch.device("cpu"))
    model(first["pixel_values"])
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in trange(epochs, desc="classifier"):
        order = torch.randperm(len(rows)).split(128)[:-1]
        for batch in rows.batches(order, torch.device("cpu")):
            loss = F.cross_entropy(model(batch["pixel_values"]), batch["labels"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def all_pixels(rows: ImageRows) -> torch.Tensor:
    """(N, C, H, W)."""
    (batch,) = rows.batches([torch.arange(len(rows))], torch.device("cpu"))
    return batch["pixel_values"]


def train_forest(rows: ImageRows, seed: int) -> Reader:
    """A random forest of pixels."""
    from sklearn.ensemble import RandomForestClassifier

    assert rows.labels is not None
    forest = RandomForestClassifier(100, random_state=seed)
    forest.fit(all_pixels(rows).flatten(1).numpy(), rows.labels.numpy())
    return lambda images: torch.from_numpy(forest.predict_proba(images.flatten(1).numpy()))


@torch.no_grad()
def real_accuracy(model: Reader, rows: ImageRows) -> float:
    batches = rows.batches(torch.arange(len(rows)).split(500), torch.device("cpu"))
    hits = sum((model(b["pixel_values"]).argmax(1) == b["labels"]).sum() for b in batches)
    return float(hits) / len(rows)


@torch.no_grad()
def read_samples(model: Reader, images: torch.Tensor, labels: torch.Tensor, held_out: ImageRows) -> dict[str, Any]:
    """How many samples are read as asked, in all and per class, and how many real images are read right."""
    hits = torch.cat([model(part).argmax(1) for part in images.split(500)]) == labels
    return {
        "class_accuracy": hits.float().mean().item(),
        "class_accuracy_per_class": [hits[labels == index].float().mean().item() for index in labels.unique()],
        "classifier_accuracy_on_held_out_images": real_accuracy(model, held_out),
    }


def learned_by_heart(images: torch.Tensor, train: ImageRows, held_out: ImageRows) -> dict[str, Any]:
    """Exact copies in 8 bits, and the difference to the nearest training image, of as many held-out images too."""
    training, unseen = all_pixels(train), all_pixels(held_out)[: len(images)]
    training_bytes = {image.tobytes() for image in (training * 255).round().byte().numpy()}
    return {
        "exact_copies_of_training_images": sum(
            image.tobytes() in training_bytes for image in (images * 255).round().byte().numpy()
        ),
        "nearest_training_image_of_samples": nearest_difference(images, training),
        "nearest_training_image_of_held_out_images": nearest_difference(unseen, training),
    }


@errors_as_messages()
def main() -> None:
    options = script_options(Options, __doc__)
    train, test = load_image_splits(options.data, "train_split", "validation_split")
    if train.labels is None or test.labels is None:
        raise SystemExit("error: the data have no classes; set data.label_column.")
    classifier = train_classifier(train, options.epochs, options.seed)
    generator = load_generator(options.generator)
    num_classes = len(generator.config.id2label)
    labels = torch.arange(num_classes).repeat(options.samples_per_class)
    settings = settings_from_options(options.generation)
    images = generator.generate(labels, generator=options.seed, progress=True, **settings).images
    assert images is not None
    images = images.clamp(0, 1)
    result = {
        "generator": options.generator,
        "samples": len(labels),
        **read_samples(classifier, images, labels, test),
        **learned_by_heart(images, train, test),
        "generation": settings,
    }
    if options.forest:
        result["forest"] = read_samples(train_forest(train, options.seed), images, labels, test)
    print(json.dumps(result, indent=2))
    if options.output is not None:
        write_record(Path(options.output), result)
    if options.grid is not None:
        save_png(
            image_grid(images[: 10 * num_classes], num_classes, list(generator.config.id2label.values())),
            Path(options.grid),
        )


if __name__ == "__main__":
    main()

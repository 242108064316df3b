r"""How many generated sounds does a classifier of real sounds hear as asked, and whom in converted voices?

    python benchmarks/sound_accuracy.py --generator runs/spoken-digits --data.name parquet --data.path FOLDER \
        --data.files '{train: fsdd-train.parquet, test: fsdd-test.parquet}' --data.sound.speaker_column speaker \
        --output docs/results/fsdd_samples.json --grid docs/figures/fsdd_samples.png --sounds runs/fsdd_samples

Two small convolutional networks, one for the classes and one for the speakers, are trained on spectrograms of real
sounds. They then hear the waveforms that the pipeline makes, turned into spectrograms again by the front end, so that
what Griffin-Lim loses counts. Their accuracies on held-out real sounds, and on these sounds after the tokenizer, are
reported beside: a sample can hardly be heard better than a reconstruction.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from records import write_record
from torch import nn
from transformers import pipeline

from hq_tokenizers.cli.messages import errors_as_messages
from hq_tokenizers.cli.scripts import script_options
from hq_tokenizers.data.images import Batch
from hq_tokenizers.data.sound import SoundRows
from hq_tokenizers.data.sound_loading import load_front_end, load_sound_splits
from hq_tokenizers.evaluation.sound import spectrogram_pictures
from hq_tokenizers.models.trained_models import load_generator
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.priors.configuration_code_generation import settings_from_options
from hq_tokenizers.reporting.figures import image_grid, save_png
from hq_tokenizers.sound_decoding import encode_wav


@dataclass(kw_only=True)
class Options:
    """Options of the benchmark."""

    generator: Annotated[str, "folder of the generator"] = "runs/fsdd_prior/generator"
    data: DataConfig = field(default_factory=DataConfig)
    samples_per_class: Annotated[int, "sounds drawn of each class, of the speakers in turn"] = 30
    epochs: Annotated[int, "passes of the classifiers over the training sounds"] = 15
    seed: Annotated[int, "seed of the classifiers; sample i has the noise of seed + i"] = 0
    generation: Annotated[dict[str, Any], "sampling settings; default: those saved with the generator"] = field(
        default_factory=dict
    )
    grid: Annotated[str | None, "PNG: above held-out sounds of each class, below samples of them"] = None
    sounds: Annotated[str | None, "folder of WAV files of the samples"] = None
    output: Annotated[str | None, "JSON file of the result"] = None


class Classifier(nn.Module):
    """Three convolutions along time over the bands, mean and maximum over the frames of a sound, a linear layer."""

    def __init__(self, num_bands: int, num_classes: int, width: int = 96):
        super().__init__()
        sizes = [num_bands, width, width, width]
        self.convolutions = nn.ModuleList(nn.Conv1d(before, after, 5, padding=2) for before, after in pairwise(sizes))
        self.norms = nn.ModuleList(nn.GroupNorm(8, width) for _ in sizes[1:])
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(2 * width, num_classes))

    def forward(self, spectrograms: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """(B, bands, W) and its mask (B, W) → (B, num_classes)."""
        hidden, mask = spectrograms, mask[:, None].float()
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            hidden = F.relu(norm(convolution(hidden * mask)))
        mean = (hidden * mask).sum(2) / mask.sum(2)
        return self.head(torch.cat([mean, (hidden * mask).amax(2)], dim=1))


def flat(batch: Batch, grid_dims: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Spectrograms (B, bands, W) and their mask."""
    return batch["pixel_values"].squeeze(2 if grid_dims == 1 else 1), batch["attention_mask"]


def train_classifier(rows: SoundRows, labels: torch.Tensor, epochs: int, seed: int) -> Classifier:
    """A classifier of real sounds, also of softer and louder ones."""
    torch.manual_seed(seed)
    model = Classifier(rows.extractor.feature_size, int(labels.max()) + 1)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
    for _ in range(epochs):
        order = torch.randperm(len(rows)).split(64)
        for indices, batch in zip(order, rows.batches(order, torch.device("cpu")), strict=True):
            spectrograms, mask = flat(batch, rows.extractor.grid_dims)
            louder = torch.randn(len(spectrograms), 1, 1) * 3 / rows.extractor.std_db
            loss = F.cross_entropy(model(spectrograms + louder, mask), labels[indices])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def heard(model: Classifier, waveforms: Sequence[np.ndarray], rows: SoundRows) -> torch.Tensor:
    """Classes of waveforms (n,), by their spectrograms."""
    found = []
    for waveform in waveforms:
        spectrograms, mask = flat(rows.extractor([waveform]), rows.extractor.grid_dims)
        found.append(model(spectrograms, mask).argmax(1))
    return torch.cat(found)


def share(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How many are as expected."""
    return (found == expected).float().mean().item()


@errors_as_messages()
def main() -> None:
    options = script_options(Options, __doc__)
    generator = load_generator(options.generator)
    front_end = load_front_end(options.generator, generator.image_tokenizer.config)
    split = "test_split" if options.data.test_split else "validation_split"
    train, held_out = load_sound_splits(options.data, front_end, "train_split", split)
    assert train.labels is not None
    assert held_out.labels is not None
    speak = pipeline(
        "hq-audio-generation",
        model=generator,
        feature_extractor=front_end,
        batch_size=64,
        **settings_from_options(options.generation),
    )
    result: dict[str, Any] = {"generator": Path(options.generator).name, "options": dict(options.generation)}
    classes = train_classifier(train, train.labels, options.epochs, options.seed)
    real = [held_out.waveform(index) for index in range(len(held_out))]
    own = {} if held_out.speakers is None else {"speakers": held_out.speakers}
    decoded = [sound["audio"] for sound in speak.reconstruct(real, batch_size=64, **own)]
    result["classes"] = {
        "real": share(heard(classes, real, train), held_out.labels),
        "reconstructed": share(heard(classes, decoded, train), held_out.labels),
    }
    samples, labels, voices = draw(speak, options)
    result["classes"]["generated"] = share(heard(classes, samples, train), labels)
    result["num_samples"] = len(samples)
    if train.speakers is not None and held_out.speakers is not None:
        result["speakers"] = judge_voices(speak, options, train, held_out, real, (decoded, samples, voices))
    write(options, result, speak, held_out, (samples, labels))


def draw(speak: Any, options: Options) -> tuple[list[np.ndarray], torch.Tensor, torch.Tensor]:
    """Samples of all classes, of the speakers in turn, with their classes and speakers."""
    config = speak.model.config
    labels = torch.arange(len(config.id2label)).repeat_interleave(options.samples_per_class)
    names = config.speaker_names
    voices = torch.arange(len(labels)) % max(1, len(names))
    own = {"speakers": voices} if names else {}
    sounds = speak(labels, seed=options.seed, **own)
    return [sound["audio"] for sound in sounds], labels, voices


def judge_voices(
    speak: Any,
    options: Options,
    train: SoundRows,
    held_out: SoundRows,
    real: list[np.ndarray],
    made: tuple[list[np.ndarray], list[np.ndarray], torch.Tensor],
) -> dict[str, float]:
    """Whom a classifier of speakers hears: in real sounds, reconstructions, samples, and voices converted to the next
    speaker.
    """
    assert train.speakers is not None
    assert held_out.speakers is not None
    decoded, samples, voices = made
    model = train_classifier(train, train.speakers, options.epochs, options.seed)
    figures = {
        "real": share(heard(model, real, train), held_out.speakers),
        "reconstructed": share(heard(model, decoded, train), held_out.speakers),
        "generated": share(heard(model, samples, train), voices),
    }
    if speak.model.config.decodes_for_speaker:
        names = train.speaker_names or []
        target = (held_out.speakers + 1) % len(names)
        converted = [sound["audio"] for sound in speak.convert_voice(real, target, batch_size=64)]
        found = heard(model, converted, train)
        figures |= {"converted_target": share(found, target), "converted_source": share(found, held_out.speakers)}
        if options.sounds is not None:
            titles = (names[index] for index in target.tolist())
            save(Path(options.sounds) / "converted", converted[:24], train.extractor.sampling_rate, titles)
    return figures


def save(folder: Path, waveforms: Sequence[np.ndarray], sampling_rate: int, titles: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for index, (waveform, title) in enumerate(zip(waveforms, titles, strict=False)):
        (folder / f"{index:05d}-{title}.wav").write_bytes(encode_wav(waveform, sampling_rate))


def write(
    options: Options,
    result: dict[str, Any],
    speak: Any,
    held_out: SoundRows,
    made: tuple[list[np.ndarray], torch.Tensor],
) -> None:
    samples, labels = made
    print(json.dumps(result, indent=2))
    if options.output is not None:
        write_record(Path(options.output), result)
    names = speak.model.config.id2label
    if options.sounds is not None:
        titles = (str(names[label]) for label in labels.tolist())
        save(Path(options.sounds), samples, held_out.extractor.sampling_rate, titles)
    if options.grid is not None:
        save_png(picture(samples, labels, held_out, names), Path(options.grid))


def picture(samples: list[np.ndarray], labels: torch.Tensor, held_out: SoundRows, names: dict[int, str]) -> np.ndarray:
    """One column per class: the first and the last held-out sound, then three samples."""
    assert held_out.labels is not None
    shown: list[np.ndarray] = []
    for row in (0, -1):
        for label in range(len(names)):
            number = (held_out.labels == label).nonzero()[row].item()
            shown.append(held_out.waveform(int(number)))
    for row in range(3):
        shown += [samples[int((labels == label).nonzero()[row].item())] for label in range(len(names))]
    inputs = held_out.extractor(shown)
    (pictures,) = spectrogram_pictures({"sounds": inputs["pixel_values"]}, inputs, held_out.extractor).values()
    titles = [f"{names[label]}, held out" for label in range(len(names))]
    titles += [""] * len(names) + [f"{names[label]}, drawn" for label in range(len(names))]
    return image_grid(pictures, len(names), titles)


if __name__ == "__main__":
    main()

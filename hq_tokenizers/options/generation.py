"""Options of the commands `generate`, `demo` and `env`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from hq_tokenizers.checks import Count, Length, Name, Range, Seed, check_fields

ClassId = Annotated[int, Range(-1, 1_000_000)]


@dataclass(kw_only=True)
class GenerateConfig:
    """Options of `generate`.

    Raises:
        ValueError: If a number is out of its range.
    """

    generator: Annotated[Name, "folder or Hub id of a generator, or a name of pretrained(), such as fashion-mnist"] = (
        "runs/prior/generator"
    )
    output_dir: Annotated[Name, "folder of the images or sounds to write"] = "runs/samples"
    class_labels: Annotated[
        Annotated[list[ClassId | Name], Length(1, 1_000_000)] | ClassId | Name | None,
        "class names or ids, as in [cat, dog], -1 for no class; null draws every class, or none",
    ] = None
    speakers: Annotated[
        Annotated[list[ClassId | Name], Length(1, 1_000_000)] | ClassId | Name | None,
        "speaker names or ids, of generators of sound that know speakers, -1 for no speaker; null draws every speaker "
        "of every class",
    ] = None
    num_images: Annotated[Count, "images or sounds per class and speaker"] = 8
    seed: Annotated[Seed, "image i has the noise of seed + i"] = 0
    batch_size: Annotated[Count, "images at a time; their codes do not depend on it, their pixels but for rounding"] = (
        64
    )
    generation: Annotated[
        dict[str, Any], "sampling settings, such as --generation.temperature 0.9; default: those saved with the prior"
    ] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(kw_only=True)
class DemoConfig:
    """Options of `demo`."""

    output_dir: Annotated[Name, "where everything goes; what is there already is not done again"] = "runs/demo"
    seed: Annotated[Seed, "seed of both trainings and of the samples"] = 0

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(kw_only=True)
class EnvConfig:
    """Options of `env`: none."""

"""The options of `evaluate`, and the section on metrics that training shares with it; nothing here imports torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any, Literal

from hq_tokenizers.checks import BeamWidth, Count, Name, Range, Seed, check_fields
from hq_tokenizers.options.data import DataConfig


@dataclass(kw_only=True)
class FeatureConfig:
    """On which features sets of images are compared.

    Raises:
        ValueError: If weights are given for a network that is left out.
    """

    features: Annotated[
        Literal["auto", "inception", "squeezenet"] | None,
        "network whose features the Fréchet distance compares: with inception it is FID, with squeezenet a number of "
        "its own; auto is inception, left out with a note where a tokenizer is judged without it; null leaves it out",
    ] = "auto"
    feature_weights: Annotated[
        Name | None, "file of that network's weights; null takes torch's hub cache, or downloads them"
    ] = None
    allow_few_images: Annotated[
        bool,
        "compute a Fréchet distance from no more images, or sounds, than there are features (inception 2048, "
        "squeezenet 512); such numbers compare only with others from as many images",
    ] = False

    def __post_init__(self) -> None:
        check_fields(self, prefix="metrics.")
        _check_weights(self, "features", "feature_weights")
        if self.allow_few_images and self.features is None:
            raise ValueError("metrics.allow_few_images is true, but metrics.features is null: leave one of them out.")


@dataclass(kw_only=True)
class MetricConfig(FeatureConfig):
    """Which pretrained networks judge images.

    Raises:
        ValueError: If weights are given for a network that is left out.
    """

    lpips: Annotated[
        Literal["auto", "squeeze", "alex", "vgg"] | None,
        "backbone of LPIPS; auto is squeeze, left out with a note where it cannot be had; null leaves it out",
    ] = "auto"
    lpips_weights: Annotated[
        Name | None, "file of the backbone's weights; null takes torch's hub cache, or downloads them"
    ] = None
    sound_network: Annotated[
        Name | None,
        "sounds: folder or Hub id of a model of transformers that takes waveforms, such as facebook/wav2vec2-base, on "
        "whose last hidden states, averaged over time, the Fréchet distance is computed; null leaves it out",
    ] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_weights(self, "lpips", "lpips_weights")


@dataclass(kw_only=True)
class EvaluateConfig:
    """Options of `evaluate`.

    Raises:
        ValueError: If not exactly one subject is given, an option is for another subject, or a number is out of range.
    """

    tokenizer: Annotated[
        Name | None,
        "folder or Hub id of a tokenizer or generator, or a name of pretrained(): judges its reconstructions",
    ] = None
    generator: Annotated[
        Name | None, "folder or Hub id of a generator, or a name of pretrained(): judges its samples against the data"
    ] = None
    images: Annotated[Name | None, "folder of images: judges these against the data"] = None
    output_dir: Annotated[Name, "where the report goes"] = "runs/evaluation"
    data: DataConfig = field(default_factory=DataConfig)
    reference: Annotated[
        Name | None,
        "generator, images: folder of images, or file that save_reference wrote, to compare with instead of the data",
    ] = None
    save_reference: Annotated[
        Name | None, "generator, images: file (.safetensors) for the statistics of the images that were compared with"
    ] = None
    metrics: MetricConfig = field(default_factory=MetricConfig)
    kid: Annotated[bool, "generator, images: also the kernel distance (KID with inception)"] = False
    kid_subset_size: Annotated[int, Range(2, 2**31 - 1), "images in each of KID's 100 random subsets"] = 1000
    inception_score: Annotated[bool, "generator, images: also the Inception Score, for which features is inception"] = (
        False
    )
    precision_recall: Annotated[bool, "generator, images: also precision and recall by 3 nearest neighbours"] = False
    pairs: Annotated[
        bool,
        "images: also compare each image with the one of the same name in the folder `reference`, as a reconstruction",
    ] = False
    num_images: Annotated[Count, "generator: samples to draw, of the classes in turn"] = 50_000
    seed: Annotated[Seed, "generator: sample i has the noise of seed + i"] = 0
    generation: Annotated[
        dict[str, Any],
        "generator: sampling settings, such as --generation.temperature 0.9; default: those saved with the prior",
    ] = field(default_factory=dict)
    images_dir: Annotated[
        Name | None, "generator: folder to keep the samples in, from which an interrupted run goes on; null keeps none"
    ] = None
    beam_width: Annotated[
        BeamWidth | None,
        "tokenizer: sums of codes to keep while the levels of a position are searched together, as for encode; null is "
        "what its configuration says, 1 unless it was set",
    ] = None
    batch_size: Annotated[Count, "images at a time and process"] = 64

    def __post_init__(self) -> None:
        check_fields(self)
        given = [name for name in ("tokenizer", "generator", "images") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                "evaluate takes exactly one of tokenizer, generator and images, got "
                f"{' and '.join(given) if given else 'none of them'}."
            )
        (subject,) = given
        self._check_subject(subject)
        self._check_set_metrics()

    def _check_subject(self, subject: str) -> None:
        of_sets = ("reference", "save_reference", "kid", "inception_score", "precision_recall")
        owners = dict.fromkeys(of_sets, ("generator", "images")) | {
            "pairs": ("images",),
            "generation": ("generator",),
            "images_dir": ("generator",),
            "beam_width": ("tokenizer",),
        }
        for name, accepted in owners.items():
            if getattr(self, name) and subject not in accepted:
                _refuse(name, f"an option of {' and '.join(accepted)}, not of {subject}")
        usual = {field.name: field.default for field in fields(self)}
        for name in ("num_images", "seed"):
            if getattr(self, name) != usual[name] and subject != "generator":
                _refuse(name, f"an option of generator, not of {subject}")
        if self.kid_subset_size != usual["kid_subset_size"] and not self.kid:
            _refuse("kid_subset_size", "an option of kid, which is false")
        for name in ("lpips", "lpips_weights"):
            if getattr(self.metrics, name) not in ("auto", None) and not (self.pairs or subject == "tokenizer"):
                _refuse(f"metrics.{name}", "for reconstructions: a tokenizer's, or those of images with pairs true")
        if self.data.label_map_classes is not None:
            for name, value in vars(self.metrics).items():
                if value not in ("auto", None, False):
                    _refuse(f"metrics.{name}", "for images, but data.label_map_classes says that these are label maps")
        if self.pairs and (self.reference is None or self.reference.endswith(".safetensors")):
            raise ValueError("pairs needs reference, the folder of the images with the same names.")
        if self.save_reference is not None and not self.save_reference.endswith(".safetensors"):
            raise ValueError(f"save_reference must end in .safetensors, got {self.save_reference!r}.")

    def _check_set_metrics(self) -> None:
        extra = [
            name for name in ("kid", "inception_score", "precision_recall", "save_reference") if getattr(self, name)
        ]
        if extra and self.metrics.features is None:
            raise ValueError(f"{extra[0]} needs a feature network, but metrics.features is null.")
        if self.generator is not None and self.metrics.features is None:
            raise ValueError("A generator is judged by a Fréchet distance, but metrics.features is null.")
        if self.images is not None and self.metrics.features is None and not self.pairs:
            raise ValueError("There is nothing to measure: metrics.features is null and pairs is false.")
        if self.inception_score and self.metrics.features == "squeezenet":
            raise ValueError(
                "inception_score needs class logits, which squeezenet lacks: set metrics.features inception."
            )


def check_unused_in_training(config: Any) -> None:
    """Checks that the options of a training without `evaluation_steps` ask for nothing that only evaluations need.

    Not a check of the options by themselves: a run that was evaluated may be continued without.

    Raises:
        ValueError: If they do.
    """
    if config.evaluation_steps is not None:
        return
    usual = type(config)()
    changed = [f"metrics.{name}" for name, value in vars(config.metrics).items() if value != vars(usual.metrics)[name]]
    for name in ("evaluation_reference", "evaluation_images"):
        changed += [name] if getattr(config, name, None) != getattr(usual, name, None) else []
    if changed:
        raise ValueError(
            f"Only evaluations need {', '.join(changed)}, and evaluation_steps is null: set evaluation_steps, or leave "
            "the others out, too."
        )


def _refuse(name: str, reason: str) -> None:
    raise ValueError(f"{name} is {reason}: leave it out.")


def _check_weights(config: FeatureConfig, network: str, weights: str) -> None:
    if getattr(config, network) is None and getattr(config, weights) is not None:
        raise ValueError(f"metrics.{weights} is set, but metrics.{network} is null: set both, or none.")

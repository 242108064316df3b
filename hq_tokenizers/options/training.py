"""Options of both trainings and of `encode` between them."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field, fields
from typing import Annotated, Any, Literal

from hq_tokenizers.checks import BeamWidth, Count, Length, Name, Range, Seed, Width, check_fields
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.evaluation import FeatureConfig, MetricConfig

# Both stages have these, with defaults of their own.
BatchSize = Annotated[Count, "images per optimiser step, over all processes and accumulation steps"]
Optimizer = Annotated[Literal["adam", "adamw"], "adam, or adamw with its decoupled weight decay"]
LearningRate = Annotated[float, Range(0, 1e3, above=True), "peak learning rate"]
AdamBetas = Annotated[
    list[Annotated[float, Range(0, 1, below=True)]], Length(2, 2), "decay rates of Adam's two moments"
]
WeightDecay = Annotated[float, Range(0, 1e3), "weight decay"]
Schedule = Annotated[
    Literal["plateau", "constant", "cosine"],
    "learning rate: lowered when the validation loss stops falling, constant, or cosine to 0",
]
WarmupSteps = Annotated[int, Range(0, 2**31 - 1), "steps of linear warm-up, for constant and cosine"]
MaxGradNorm = Annotated[
    Annotated[float, Range(0, 1e9, above=True)] | None, "clip the gradient's norm to this; null does not clip"
]
OutputDir = Annotated[Name, "where everything goes; a run that is there already is continued"]


@dataclass(kw_only=True)
class LoopConfig:
    """What both training stages share.

    Raises:
        ValueError: If a number is out of its range.
    """

    output_dir: OutputDir = "runs/training"
    seed: Annotated[Seed, "seed of initial weights, data order and noise"] = 0
    batch_size: BatchSize = 32
    gradient_accumulation: Annotated[Count, "parts that a batch is split into, one after the other, to save memory"] = 1
    epochs: Annotated[
        float,
        Range(0, 1e6, above=True),
        "passes over the training images; to be raised later only without schedule cosine",
    ] = 100.0
    max_steps: Annotated[Count | None, "optimiser steps, instead of epochs"] = None
    optimizer: Optimizer = "adam"
    learning_rate: LearningRate = 1e-3
    adam_betas: AdamBetas = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: WeightDecay = 0.0
    schedule: Schedule = "plateau"
    warmup_steps: WarmupSteps = 0
    plateau_factor: Annotated[
        float, Range(0, 1, above=True, below=True), "what a plateau multiplies the learning rate by"
    ] = 0.5
    plateau_patience: Annotated[int, Range(0, 2**31 - 1), "validations without improvement that make a plateau"] = 3
    max_grad_norm: MaxGradNorm = None
    ema_decay: Annotated[
        Annotated[float, Range(0, 1, above=True, below=True)] | None,
        "keep an exponential moving average of the weights, and end with it",
    ] = None
    mixed_precision: Annotated[
        Literal["no", "bf16", "fp16"],
        "type that the networks compute in, besides float32: bf16, or fp16 with a scaled loss (weights, quantiser and "
        "losses stay in float32)",
    ] = "no"
    compile: Annotated[bool, "torch.compile the training step: faster after minutes of compilation"] = False
    gradient_checkpointing: Annotated[
        bool, "compute activations again in the backward pass instead of keeping them: slower, in less memory"
    ] = False
    trackers: Annotated[
        Annotated[list[Literal["tensorboard", "wandb", "trackio"]], Length(0, 3)] | None,
        "where records go besides metrics.jsonl: any of tensorboard, wandb and trackio, [] for nowhere; null is "
        "tensorboard where it is installed",
    ] = None
    log_steps: Annotated[Count, "optimiser steps between log records"] = 50
    validation_steps: Annotated[Count | None, "optimiser steps between validations; null is once an epoch"] = None
    checkpoint_steps: Annotated[Count | None, "optimiser steps between checkpoints; null is once an epoch"] = None
    evaluation_steps: Annotated[
        Count | None, "optimiser steps between evaluations with pretrained networks, see `metrics`; null never does"
    ] = None
    keep_checkpoints: Annotated[Count, "newest checkpoints to keep"] = 2
    keep_best: Annotated[bool, "end with the weights of the lowest validation loss instead of the last ones"] = False
    dry_run: Annotated[
        bool,
        "only print what the run would take: parameters, memory, and seconds on this machine, measured by a few small "
        "steps on made-up data; reads no images and no codes, and writes nothing",
    ] = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.batch_size % self.gradient_accumulation:
            raise ValueError(
                f"batch_size must be a multiple of gradient_accumulation, got {self.batch_size} and "
                f"{self.gradient_accumulation}."
            )
        if self.warmup_steps and self.schedule == "plateau":
            raise ValueError("warmup_steps needs schedule constant or cosine; plateau has no warm-up.")


@dataclass(kw_only=True)
class PerceptualConfig:
    """A perceptual loss in the training of a tokenizer of images; no part of the tokenizer itself.

    Raises:
        ValueError: If a number is out of its range, or anything is set without `network`.
    """

    network: Annotated[
        Literal["squeeze", "alex", "vgg"] | None, "backbone of LPIPS to train with; null trains without it"
    ] = None
    weights: Annotated[
        Name | None, "file of the backbone's weights; null takes torch's hub cache, or downloads them"
    ] = None
    weight: Annotated[
        float,
        Range(0, 1e6, above=True),
        "what an LPIPS of 1 weighs beside a mean squared error of 1 per pixel value, of pixels in [0, 1]: the same for "
        "every size of images and every likelihood",
    ] = 0.05
    start_step: Annotated[int, Range(0, 2**31 - 1), "optimiser step from which on it counts"] = 0

    def __post_init__(self) -> None:
        check_fields(self, prefix="perceptual.")
        _check_switched_on(self, "perceptual", "network")


@dataclass(kw_only=True)
class AdversarialConfig:
    """An adversarial loss in the training of a tokenizer of images: a patch discriminator, no part of the tokenizer.

    Raises:
        ValueError: If a number is out of its range, or anything is set without `start_step`.
    """

    start_step: Annotated[
        Annotated[int, Range(0, 2**31 - 1)] | None,
        "optimiser step from which on the tokenizer trains against a discriminator; null trains without one",
    ] = None
    discriminator_warmup_steps: Annotated[
        int,
        Range(0, 2**31 - 1),
        "optimiser steps before start_step in which the discriminator trains already, so that its first gradients mean "
        "something",
    ] = 500
    weight: Annotated[
        float,
        Range(0, 1e6, above=True),
        "norm of the discriminator's gradient beside that of squared error and LPIPS, both at the decoder's last layer",
    ] = 0.5
    max_adaptive_weight: Annotated[
        float, Range(0, 1e9, above=True), "limit of the factor that makes the two norms equal"
    ] = 1e4
    norm: Annotated[
        Literal["spectral", "batch"],
        "what tames the discriminator: spectral norms of its weights, or batch norms as in VQGAN",
    ] = "spectral"
    num_layers: Annotated[
        int, Range(1, 8), "convolutions of stride 2; 3 judge patches of 70 pixels, 2 of 34, 1 of 16"
    ] = 3
    hidden_size: Annotated[Width, "channels after the first of them, doubled by each further one, 8 times at most"] = 64
    learning_rate_factor: Annotated[
        float, Range(0, 1e6, above=True), "learning rate of the discriminator relative to the tokenizer's, at any step"
    ] = 1.0
    adam_betas: Annotated[
        list[Annotated[float, Range(0, 1, below=True)]], Length(2, 2), "decay rates of its two moments in Adam"
    ] = field(default_factory=lambda: [0.5, 0.9])

    def __post_init__(self) -> None:
        check_fields(self, prefix="adversarial.")
        _check_switched_on(self, "adversarial", "start_step")


def _check_switched_on(section: Any, name: str, switch: str) -> None:
    """Refuses options of a section that is not switched on."""
    if getattr(section, switch) is not None:
        return
    for each in fields(section):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if getattr(section, each.name) != default:
            raise ValueError(f"{name}.{each.name} is set, but {name}.{switch} is null: set both, or none.")


@dataclass(kw_only=True)
class TokenizerTrainingConfig(LoopConfig):
    """Options of `train-tokenizer`."""

    output_dir: OutputDir = "runs/tokenizer"
    data: DataConfig = field(default_factory=DataConfig)
    model: Annotated[
        dict[str, Any],
        "the tokenizer: a preset (sq_vae, which is the default, vae, vq_vae, robust_vq_vae, sim_vq_vae, fsq_vae, "
        "rsq_vae, rq_vae, sq_vae_2, vq_vae_2, hybrid_vae) with a network (digits, mnist, cifar10, which is the "
        "default, celeba, ffhq256, imagenet256, debug, for label maps celebamask, for sounds speech, fsdd, "
        "urbansound), as {preset: sq_vae, network: mnist}; or {model_type: sq_vae} or hq_vae, whose fields start from "
        "the papers' settings; and any field of its configuration (--model.codebook_size 256), which `--help model` "
        "explains; image_size and num_channels come from the data. Or, with new codes between the encoder and the "
        "decoder of an autoencoder, its folder or Hub id: {from_autoencoder: PATH, code_groups: ['stride 8: 512 x 4']} "
        "(of diffusers' AutoencoderKL and VQModel, or what `convert` wrote; model_type sq_vae for one code a position)",
    ] = field(default_factory=dict)
    freeze: Annotated[
        Annotated[list[Literal["encoder", "decoder"]], Length(0, 2)],
        "networks that are not trained, batch statistics included: any of encoder and decoder",
    ] = field(default_factory=list)
    perceptual: PerceptualConfig = field(default_factory=PerceptualConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    metrics: MetricConfig = field(default_factory=MetricConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not {"model_type", "from_autoencoder"} & self.model.keys():
            self.model = {"preset": "sq_vae", **self.model}
        if self.data.streaming and self.max_steps is None:
            raise ValueError(
                "data.streaming needs max_steps: how many images an epoch has is not known. One pass over N images is "
                f"N / {self.batch_size} steps."
            )
        self._check_losses()

    def _check_losses(self) -> None:
        """Refuses what does not go together with losses beside the model's own."""
        used = [
            name
            for name, switch in (
                ("perceptual.network", self.perceptual.network),
                ("adversarial.start_step", self.adversarial.start_step),
            )
            if switch is not None
        ]
        if not used:
            return
        if self.schedule == "plateau" or self.keep_best:
            raise ValueError(
                "schedule plateau and keep_best go by the loss of validation, the model's own, which says nothing "
                f"about {' and '.join(used)}: choose schedule constant or cosine, and keep_best false."
            )
        if self.data.label_map_classes is not None:
            raise ValueError(f"{used[0]} is for images, but data.label_map_classes says that these are label maps.")
        if self.adversarial.start_step is not None and "decoder" in self.freeze:
            raise ValueError(
                "adversarial.start_step weighs the discriminator by gradients at the decoder's last layer, which "
                f"freeze {self.freeze} keeps from being trained: leave one of them out."
            )
        if self.compile and self.adversarial.start_step is not None:
            raise ValueError(
                "compile and adversarial.start_step do not go together: the adaptive weight needs gradients of a part "
                "of the decoder, which a compiled step does not have. Leave one of them out."
            )


@dataclass(kw_only=True)
class PriorTrainingConfig(LoopConfig):
    """Options of `train-prior`."""

    output_dir: OutputDir = "runs/prior"
    codes: Annotated[Name, "folder that `encode` wrote"] = "runs/codes"
    tokenizer: Annotated[
        Name | None,
        "folder of the tokenizer, or of a generator with it, or a name of pretrained(), for sample images; null takes "
        "the one that made the codes",
    ] = None
    conditional: Annotated[bool | None, "whether to condition on the classes; null does when there are classes"] = None
    soft_targets: Annotated[
        bool,
        "train towards the tokenizer's probabilities of the codes, which encode --soft_targets 8 stores, instead of "
        "the codes; the validation figures remain those of the codes",
    ] = False
    model: Annotated[
        dict[str, Any],
        "the prior: model_type, rq_prior unless masked_prior or contextual_prior is given, and any field of its "
        "configuration (--model.hidden_size 256), which `--help model` explains; the code layout and the number of "
        "classes come from the codes, and those that are given have to be the same",
    ] = field(default_factory=dict)
    generation: Annotated[dict[str, Any], "sampling defaults saved with the prior, such as {temperature: 0.9}"] = field(
        default_factory=dict
    )
    samples: Annotated[int, Range(0, 1_000_000), "images of the sample grid"] = 64
    evaluation_reference: Annotated[
        Name | None,
        "what samples are compared with every evaluation_steps: a folder of images, or a file that evaluate "
        "--save_reference wrote",
    ] = None
    evaluation_images: Annotated[int, Range(2, 2**31 - 1), "samples to draw for that"] = 5000
    metrics: FeatureConfig = field(default_factory=FeatureConfig)
    batch_size: BatchSize = 64
    optimizer: Optimizer = "adamw"
    learning_rate: LearningRate = 5e-4
    adam_betas: AdamBetas = field(default_factory=lambda: [0.9, 0.95])
    weight_decay: WeightDecay = 0.05
    schedule: Schedule = "cosine"
    warmup_steps: WarmupSteps = 100
    max_grad_norm: MaxGradNorm = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.model = {"model_type": "rq_prior", **self.model}
        if self.evaluation_steps is not None and self.evaluation_reference is None:
            raise ValueError("evaluation_steps needs evaluation_reference, the images to compare samples with.")


@dataclass(kw_only=True)
class EncodeConfig:
    """Options of `encode`."""

    tokenizer: Annotated[Name, "folder or Hub id of a trained tokenizer or generator, or a name of pretrained()"] = (
        "runs/tokenizer"
    )
    output_dir: Annotated[Name, "folder of the codes to write"] = "runs/codes"
    batch_size: Annotated[Count, "images at a time"] = 256
    soft_targets: Annotated[
        int,
        Range(0, 2**24),
        "likeliest codes to store for every code of the training images, with the probabilities that a stochastic "
        "tokenizer gives them, for train-prior --soft_targets true; 8 take 16 times the space of the codes, 0 none",
    ] = 0
    views: Annotated[
        int,
        Range(1, 10_000),
        "times to encode the training images, each time with other random changes (data.horizontal_flip, random_crop, "
        "random_resized_crop, color_jitter); 1 encodes them once, as they are",
    ] = 1
    seed: Annotated[Seed, "seed of the random changes: view k has those of epoch k of a training with this seed"] = 0
    beam_width: Annotated[
        BeamWidth | None,
        "sums of codes to keep while the levels of a position are searched together (rsq_vae, rq_vae, hybrid_vae): 1 "
        "chooses level after level, 4 takes some per cent off the error, and more time, and the first levels alone "
        "decode to more error; null is what the tokenizer's configuration says, 1 unless it was set",
    ] = None
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        check_fields(self)
        if self.views > 1 and not self.data.random_changes:
            raise ValueError(
                f"views is {self.views}, but nothing changes the training images, so that all views would be the same: "
                "set data.horizontal_flip, data.random_crop, data.random_resized_crop or data.color_jitter, or leave "
                "views at 1."
            )

"""Encoders and decoders of other people's autoencoders, on the blocks of diffusers, around codes of ours.

An autoencoder is its weights under diffusers' names: `encoder.…`, whose last convolution gives the latents themselves,
`post_quant_conv.…` where there is one, and `decoder.…`. What the networks are follows from names and shapes; other
sources are renamed to these names (`hq_tokenizers.conversion`).

Shape legend: resolutions r = 0 … R of stride 2^r, latents (B, d, h, w).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedConfig

from hq_tokenizers.checks import did_you_mean
from hq_tokenizers.hashing import tensors_sha256

from .configuration_hq_vae import HQVAEConfig, code_group_line, parse_code_group
from .configuration_sq_vae import SQVAEConfig
from .presets import Recipe, training_fields

_NUM_LEVELS, _CODEBOOK_SIZE = 4, 512
_QUANTIZERS = ("gaussian", "vq")


@dataclass(frozen=True)
class Autoencoder:
    """Encoder and decoder of an autoencoder.

    Args:
        weights: Tensors by diffusers' names, as above.
        norm_num_groups: Groups of the group norms.
        image_size: Height and width of the images that it was made for, an integer or a pair.
        output_activation: See `ImageTokenizerConfig`.
        latent_mean: What its configuration says of the mean of the latents; None where it says nothing.
        latent_deviation: Likewise of their standard deviation.

    Raises:
        ValueError: If the weights are not those of an encoder and a decoder that mirror each other.
    """

    weights: Mapping[str, torch.Tensor]
    norm_num_groups: int
    image_size: int | Sequence[int]
    output_activation: str = "linear"
    latent_mean: float | None = None
    latent_deviation: float | None = None

    def __post_init__(self) -> None:
        self._check_mirrored()

    @property
    def channels(self) -> list[int]:
        """c_r of every resolution."""
        return [
            self._width(f"encoder.down_blocks.{r}.resnets.0.conv1") for r in range(self._count("encoder.down_blocks"))
        ]

    @property
    def stride(self) -> int:
        """Pixels per latent position along each axis."""
        return 2 ** (len(self.channels) - 1)

    def fields(self) -> dict[str, Any]:
        """The fields of a tokenizer's configuration that the networks decide."""
        attention = [2**r for r in range(len(self.channels)) if self._attends(f"encoder.down_blocks.{r}")]
        post = "post_quant_conv.weight" in self.weights
        return {
            "backbone": "diffusers",
            "num_channels": self.weights["encoder.conv_in.weight"].shape[1],
            "block_out_channels": self.channels,
            "layers_per_block": self._count("encoder.down_blocks.0.resnets"),
            "norm_num_groups": self.norm_num_groups,
            "mid_block_attention": self._attends("encoder.mid_block"),
            "attention_strides": attention,
            "codebook_dim": self._width("encoder.conv_out"),
            "post_quant_channels": self._width("post_quant_conv") if post else None,
            "output_activation": self.output_activation,
        }

    def _check_mirrored(self) -> None:
        for name in ("encoder.conv_in.weight", "encoder.conv_out.weight", "decoder.conv_in.weight"):
            if name not in self.weights:
                raise ValueError(f"These weights are no encoder and decoder on diffusers' blocks: {name} is missing.")
        channels, layers = self.channels, self._count("encoder.down_blocks.0.resnets")
        last = len(channels) - 1
        first = "post_quant_conv" if "post_quant_conv.weight" in self.weights else "decoder.conv_in"
        found = {
            "channels": [self._width(f"decoder.up_blocks.{last - r}.resnets.0.conv1") for r in range(last + 1)],
            "attention": [self._attends(f"decoder.up_blocks.{last - r}") for r in range(last + 1)],
            "attention in the middle": self._attends("decoder.mid_block"),
            "residual layers": [self._count(f"decoder.up_blocks.{last - r}.resnets") for r in range(last + 1)],
            "residual layers of the encoder": [
                self._count(f"encoder.down_blocks.{r}.resnets") for r in range(last + 1)
            ],
            "image channels": self._width("decoder.conv_out"),
            "channels of the decoder's input": self._weight(first).shape[1],
        }
        wanted = {
            "channels": channels,
            "attention": [self._attends(f"encoder.down_blocks.{r}") for r in range(last + 1)],
            "attention in the middle": self._attends("encoder.mid_block"),
            "residual layers": [layers + 1] * (last + 1),
            "residual layers of the encoder": [layers] * (last + 1),
            "image channels": self._weight("encoder.conv_in").shape[1],
            "channels of the decoder's input": self._width("encoder.conv_out"),
        }
        for what, value in found.items():
            if value != wanted[what]:
                raise ValueError(
                    f"This autoencoder cannot be taken over: its decoder does not mirror its encoder ({what}: "
                    f"{wanted[what]} expected, {value} found)."
                )

    def _weight(self, module: str) -> torch.Tensor:
        try:
            return self.weights[f"{module}.weight"]
        except KeyError:
            raise ValueError(f"These weights are no autoencoder on diffusers' blocks: {module} is missing.") from None

    def _width(self, module: str) -> int:
        return self._weight(module).shape[0]

    def _attends(self, block: str) -> bool:
        return f"{block}.attentions.0.to_q.weight" in self.weights

    def _count(self, prefix: str) -> int:
        """Number of modules in a list of modules, such as "encoder.down_blocks.0.resnets"."""
        start = f"{prefix}."
        return len({name[len(start) :].partition(".")[0] for name in self.weights if name.startswith(start)})


def autoencoder_config(
    config_class: type[SQVAEConfig] | type[HQVAEConfig],
    autoencoder: Autoencoder,
    fields: Mapping[str, Any],
    recipe: Recipe = "tuned",
) -> SQVAEConfig | HQVAEConfig:
    """The configuration of a tokenizer around codes of ours.

    Latents of any scale are normalised for the codes, whose vectors get that scale back before the decoder.

    Args:
        config_class: Of the tokenizer.
        autoencoder: The networks.
        fields: Further fields; without `code_groups` a hierarchy has four levels of 512 codes at the latents' stride.
        recipe: See `presets`.

    Raises:
        ValueError: For an unknown field, one that the networks decide, a quantiser whose codes are not in the space of
            the latents, or a hierarchy that does not start at the stride of the latents.
    """
    networks, stride = autoencoder.fields(), autoencoder.stride
    accepted = [field.name for field in dataclasses.fields(config_class)]
    for name in fields:
        # Transformers stores any argument that it does not know.
        if name not in accepted:
            several = " Several codes and grids are an HQVAEModel's." if name == "code_groups" else ""
            hint = several or f" {did_you_mean(name, accepted)}".rstrip()
            raise ValueError(f"{config_class.__name__} has no field {name!r}.{hint}")
    if config_class is SQVAEConfig:
        networks["num_downsampling"] = stride.bit_length() - 1
    if fields.get("num_channels", networks["num_channels"]) != networks["num_channels"]:
        raise ValueError(
            f"The autoencoder is one of images of {networks['num_channels']} channels, got images of "
            f"{fields['num_channels']}."
        )
    for name, value in fields.items():
        if name in networks and value != networks[name]:
            raise ValueError(f"{name} is that of the autoencoder, {networks[name]!r}: leave it out, got {value!r}.")
    quantizer = fields.get("quantizer", "gaussian")
    if quantizer not in _QUANTIZERS:
        raise ValueError(
            f"Between an encoder and a decoder that exist, the quantizer is one of {', '.join(map(repr, _QUANTIZERS))}"
            f", whose codes lie where the latents are, got {quantizer!r}."
        )
    own: dict[str, Any] = {"image_size": _divisible(autoencoder.image_size, stride), "normalize_latents": True}
    own["restore_latent_scale"] = fields.get("normalize_latents", True)
    if config_class is HQVAEConfig:
        _check_coarsest(fields.get("code_groups"), stride)
        own["code_groups"] = [f"stride {stride}: {_CODEBOOK_SIZE} x {_NUM_LEVELS}"]
    groups = fields.get("code_groups")
    num_grids = len(groups) if isinstance(groups, list | tuple) else 1
    together = {**networks, **training_fields(recipe, fields, num_grids), **own, **fields}
    config = config_class(**together)
    if isinstance(config, HQVAEConfig) and len(config.groups) > 1 and "state_width" not in fields:
        return config_class(**together, state_width="coarser")
    return config


@torch.no_grad()
def load_networks(model: Any, autoencoder: Autoencoder) -> None:
    """Gives the encoder and the decoder of a tokenizer the weights of an autoencoder.

    In a hierarchy of several grids the finer groups change nothing yet: the decoder's state passes their codes by.

    Args:
        model: Built from `autoencoder_config`.
        autoencoder: The networks.

    Raises:
        ValueError: If names or shapes do not match.
    """
    names = dict(_tensor_names(model))
    missing, unused = set(names.values()) - set(autoencoder.weights), set(autoencoder.weights) - set(names.values())
    if missing or unused:
        some = ", ".join(sorted(missing or unused)[:3])
        raise ValueError(f"The autoencoder cannot be taken over: {some} {'is missing' if missing else 'has no place'}.")
    own = model.state_dict()
    for name, theirs in names.items():
        value = autoencoder.weights[theirs]
        if own[name].shape != value.shape:
            raise ValueError(
                f"The autoencoder cannot be taken over: {theirs} has the shape {tuple(value.shape)}, expected "
                f"{tuple(own[name].shape)}."
            )
        own[name].copy_(value)
    for block in list(getattr(model, "blocks", ()))[1:]:
        weight = block.state.weight
        torch.nn.init.zeros_(block.state.bias)
        weight.copy_(torch.eye(*weight.shape[:2], device=weight.device, dtype=weight.dtype)[..., None, None])
    if model.config.restore_latent_scale and autoencoder.latent_deviation is not None:
        norm = model.latent_norms[0][-1] if hasattr(model, "latent_norms") else model.latent_norm[-1]
        norm.running_mean.fill_(autoencoder.latent_mean or 0.0)
        norm.running_var.fill_(autoencoder.latent_deviation**2)


def networks_sha256(model: Any) -> str:
    """Hash of the weights that `load_networks` sets."""
    state = model.state_dict()
    return tensors_sha256({theirs: state[ours] for ours, theirs in _tensor_names(model)})


def autoencoder_of_tokenizer(model: Any) -> Autoencoder:
    """Encoder and decoder of a tokenizer of ours on one grid, with the backbone "diffusers".

    Raises:
        ValueError: For another tokenizer.
    """
    config: PreTrainedConfig = model.config
    several = isinstance(config, HQVAEConfig) and len(config.groups) > 1
    for refused, what in (
        (config.backbone != "diffusers", f"backbone {config.backbone!r}, and 'diffusers' is needed"),
        (several, "several grids"),
        (config.for_label_maps, "label maps for data"),
        (config.bottleneck_batch_norm, "a batch norm at its bottleneck"),
        (config.quantizer not in _QUANTIZERS, f"the quantizer {config.quantizer!r}, and 'gaussian' or 'vq' is needed"),
    ):
        if refused:
            raise ValueError(f"The encoder and decoder of this tokenizer cannot be taken over: it has {what}.")
    state = model.state_dict()
    weights = {theirs: state[ours].clone() for ours, theirs in _tensor_names(model)}
    if config.normalize_latents and not config.restore_latent_scale:
        # Its codes lie in the normalised space, and so do the inputs of its decoder.
        norm = model.latent_norms[0][-1] if isinstance(config, HQVAEConfig) else model.latent_norm[-1]
        deviation = (norm.running_var + norm.eps).sqrt()
        weights["encoder.conv_out.weight"] /= deviation[:, None, None, None]
        weights["encoder.conv_out.bias"] = (weights["encoder.conv_out.bias"] - norm.running_mean) / deviation
    return Autoencoder(weights, config.norm_num_groups, config.image_size, config.output_activation)


def folded_encoder(weights: Mapping[str, torch.Tensor], num_latents: int | None = None) -> dict[str, torch.Tensor]:
    """Weights in which the encoder's last convolution gives the latents: `quant_conv` becomes a part of it.

    Args:
        weights: Under diffusers' names, with a `quant_conv` or without.
        num_latents: The first channels to keep, of an encoder that gives mean and log-variance; None keeps all.
    """
    result = dict(weights)
    weight, bias = (result[f"encoder.conv_out.{name}"].double() for name in ("weight", "bias"))
    if "quant_conv.weight" in result:
        matrix, shift = result.pop("quant_conv.weight").double()[..., 0, 0], result.pop("quant_conv.bias").double()
        weight, bias = torch.einsum("oc,cihw->oihw", matrix, weight), matrix @ bias + shift
    result["encoder.conv_out.weight"], result["encoder.conv_out.bias"] = (
        tensor[:num_latents].float() for tensor in (weight, bias)
    )
    return {name: tensor.float() for name, tensor in result.items()}


def _tensor_names(model: Any) -> Iterator[tuple[str, str]]:
    """Our names of the tensors of encoder and decoder, and diffusers'."""
    prefixes = dict(_module_names(model))
    for name in model.state_dict():
        prefix = next((prefix for prefix in prefixes if name.startswith(prefix)), None)
        if prefix is not None:
            yield name, prefixes[prefix] + name[len(prefix) :]


def _module_names(model: Any) -> Iterator[tuple[str, str]]:
    config = model.config
    hierarchical = isinstance(config, HQVAEConfig)
    down, head = (
        ("bottom_up.", "blocks.0.latent_head.") if hierarchical else ("encoder.features.", "encoder.mean_head.")
    )
    yield f"{down}conv_in.", "encoder.conv_in."
    for r in range(len(config.resolution_channels)):
        if r:
            yield f"{down}stages.{r}.0.0.", f"encoder.down_blocks.{r - 1}.downsamplers.0."
        for layer in range(config.layers_per_block):
            for kind in ("resnets", "attentions"):
                # From the second resolution on, a halving comes before the layers.
                ours = f"{down}stages.{r}.{layer + (r > 0)}.0.{kind}.0."
                yield ours, f"encoder.down_blocks.{r}.{kind}.{layer}."
    yield f"{down}middle.", "encoder.mid_block."
    yield f"{head}0.", "encoder.conv_norm_out."
    yield f"{head}2.", "encoder.conv_out."
    yield from _decoder_names(model, hierarchical)


def _decoder_names(model: Any, hierarchical: bool) -> Iterator[tuple[str, str]]:
    config = model.config
    codes_in = ["decoder.conv_in."] if config.post_quant_channels is None else ["post_quant_conv.", "decoder.conv_in."]
    if hierarchical:
        single = len(codes_in) == 1
        yield from ((f"blocks.0.state.{'' if single else f'{i}.'}", name) for i, name in enumerate(codes_in))
    else:
        yield from ((f"decoder.layers.{i}.", name) for i, name in enumerate(codes_in))
    first = 0 if hierarchical else len(codes_in)
    finer = list(model.blocks)[1:] if hierarchical else []
    ours = [f"blocks.{g}.upsample.{i}." for g, block in enumerate(finer, 1) for i in range(len(block.upsample))]
    ours += [f"decoder.layers.{i}." for i in range(first, len(model.decoder.layers))]
    middle, *rest = ours
    yield middle, "decoder.mid_block."
    modules = iter(rest)
    last = len(config.resolution_channels) - 1
    for block in range(last + 1):
        for layer in range(config.layers_per_block + 1):
            module = next(modules)
            for kind in ("resnets", "attentions"):
                yield f"{module}0.{kind}.0.", f"decoder.up_blocks.{block}.{kind}.{layer}."
        if block < last:
            yield f"{next(modules)}0.", f"decoder.up_blocks.{block}.upsamplers.0."
    yield "decoder.head.0.", "decoder.conv_norm_out."
    yield "decoder.head.2.", "decoder.conv_out."


def _check_coarsest(code_groups: Any, stride: int) -> None:
    """Refuses a hierarchy that starts at another stride; what is no hierarchy, the configuration refuses."""
    lines = code_groups if isinstance(code_groups, list | tuple) else []
    found = [parse_code_group(code_group_line(line)).stride for line in lines[:1]]
    if found not in ([], [stride]):
        raise ValueError(
            f"The latents of the autoencoder have stride {stride}, which is that of the first line of code_groups "
            f"(those of further lines are smaller): got {found[0]}."
        )


def _divisible(image_size: int | Sequence[int], stride: int) -> int | list[int]:
    """The image size, or the nearest that the stride divides from below."""
    if isinstance(image_size, int):
        return max(1, image_size // stride) * stride
    return [max(1, side // stride) * stride for side in image_size]

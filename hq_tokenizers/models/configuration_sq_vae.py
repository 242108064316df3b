"""Configuration of the single-layer image tokenizers: SQ-VAE and, on the same networks, VQ-VAE, FSQ and VAE."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal

from hq_tokenizers.checks import CodebookSize, Length, NotNegative, Positive, Range, check_value

from .configuration_image_tokenizer import ImageTokenizerConfig, LogVariance

_FIELDS_OF_HIERARCHIES = (
    *("code_groups", "shared_codebook", "progressive", "learned_prior", "log_variance_range", "beam_width"),
    "state_width",
)
FSQLevel = Annotated[int, Range(2, 2**24)]


class SQVAEConfig(ImageTokenizerConfig):
    """Configuration of an `SQVAEModel`: the fields of `ImageTokenizerConfig` and the following.

    Args:
        num_downsampling: Halvings of the resolution; the stride is 2 to this power.
        quantizer: "gaussian" or "vmf" (von Mises–Fisher, unit vectors) for SQ-VAE, "vq" for VQ-VAE, "fsq" for finite
            scalar quantisation, "none" for the VAE with continuous latents.
        likelihood: What is modelled: "gaussian" images; label maps by a "categorical" or a von Mises–Fisher ("vmf")
            distribution at every pixel.
        num_classes: Classes of a label map; 0 for images. `num_channels` is then not used.
        codebook_size: Number of codes K; with "fsq" the product of `fsq_levels`.
        fsq_levels: With "fsq": values of every channel of the latents, whose width `codebook_dim` is their number.
        variance_type: Σ_φ of the Gaussian quantiser: "I" one scalar, "II" one per image, "III" one per position, "IV"
            one per position and channel.
        variance_parametrization: "released" adds exp(s) to the network's variance as the authors' code does; "plain"
            multiplies them. Type I has no network, so both are the same.
        variance_floor: Constant added to the variance. 1.0 with type I reproduces the authors' vision code;
            without it the first epochs on MNIST and CIFAR-10 ended with a lower error and a higher perplexity.
        initial_log_variance: Initial value of the scalar s.
        initial_log_concentration: Initial s of the vMF quantiser's κ_φ = 1 + exp(s).
        initial_label_concentration: Initial κ of the vMF likelihood.
        decoder_softplus: Whether the decoder of the vMF likelihood ends in Softplus before it is normalised, as the
            authors' does: directions then keep to where the classes are, the positive orthant.
        dequantization_noise: Whether noise N(0, Σ_φ) is added to the latents while training, as in the paper's text;
            the authors leave it out.
    """

    model_type = "sq_vae"
    stride_field = "num_downsampling"

    num_downsampling: Annotated[int, Range(1, 16)] = 2
    likelihood: Literal["gaussian", "categorical", "vmf"] = "gaussian"
    num_classes: Annotated[int, Range(0, 65_536)] = 0
    codebook_size: CodebookSize = 512
    fsq_levels: Annotated[list[FSQLevel] | tuple[FSQLevel, ...], Length(1, 24)] = (8, 5, 5, 5)
    variance_type: Literal["I", "II", "III", "IV"] = "I"
    variance_parametrization: Literal["released", "plain"] = "released"
    variance_floor: NotNegative = 0.0
    initial_log_variance: LogVariance = math.log(20)
    initial_log_concentration: LogVariance = math.log(0.05)
    initial_label_concentration: Positive = 100.0
    decoder_softplus: bool = False
    dequantization_noise: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        of_hierarchies = [name for name in _FIELDS_OF_HIERARCHIES if name in kwargs]
        if of_hierarchies:
            raise ValueError(
                f"{', '.join(of_hierarchies)}: of HQVAEConfig only (presets rsq_vae, rq_vae, sq_vae_2, vq_vae_2, "
                "hybrid_vae), a single layer has no such field."
            )
        super().__post_init__(**kwargs)

    def _check_relations(self) -> None:
        super()._check_relations()
        self._apply_fsq_levels()
        self._check_reservoir(self.codebook_size)
        if self.variance_update == "residual" and self.variance_type != "I":
            raise ValueError(
                f"variance_update='residual' ties one variance to what the codes leave over; variance_type "
                f"{self.variance_type!r} has a network for it: leave variance_type at 'I', or variance_update at "
                "'trained'."
            )
        if self.for_label_maps and self.num_classes < 2:
            raise ValueError(
                f"likelihood={self.likelihood!r} models label maps of num_classes ≥ 2 classes: {self.num_classes}."
            )
        if not self.for_label_maps and self.num_classes:
            raise ValueError("num_classes is for label maps: set likelihood to 'categorical' or 'vmf'.")
        if self.for_label_maps and self.is_deterministic:
            raise ValueError(f"quantizer={self.quantizer!r} has no objective for label maps; use 'gaussian' or 'vmf'.")

    def _apply_fsq_levels(self) -> None:
        if self.quantizer != "fsq":
            return
        check_value("The product of fsq_levels, which is the codebook size,", math.prod(self.fsq_levels), CodebookSize)
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        for name, value in self._implied().items():
            if getattr(self, name) == usual[name]:
                setattr(self, name, value)

    def _implied(self) -> dict[str, Any]:
        if self.quantizer != "fsq":
            return super()._implied()
        return {"codebook_dim": len(self.fsq_levels), "codebook_size": math.prod(self.fsq_levels)}

    @property
    def stride(self) -> int:
        """Pixels per code position along each axis."""
        return 2**self.num_downsampling

    @property
    def for_label_maps(self) -> bool:
        """Whether the model's data are label maps, LongTensors (B, H, W), instead of images."""
        return self.likelihood != "gaussian"

    @property
    def has_variance_head(self) -> bool:
        """Whether the encoder predicts a log-variance map v(x) beside the latents."""
        return self.quantizer == "none" or (self.quantizer == "gaussian" and self.variance_type != "I")

    def _purposes(self) -> dict[str, tuple[bool, str]]:
        gaussian = self.quantizer == "gaussian", "quantizer='gaussian'"
        return {
            **super()._purposes(),
            **dict.fromkeys(("variance_type", "variance_parametrization", "variance_floor"), gaussian),
            "dequantization_noise": gaussian,
            "fsq_levels": (self.quantizer == "fsq", "quantizer='fsq'"),
            "initial_log_concentration": (self.quantizer == "vmf", "quantizer='vmf'"),
            **dict.fromkeys(
                ("initial_label_concentration", "decoder_softplus"), (self.likelihood == "vmf", "likelihood='vmf'")
            ),
        }

"""SQ-VAE (Takida et al., ICML 2022): one grid of stochastically quantised codes.

    x → encoder → z → P̂(z_q | z) → z_q → decoder → x̂

Negative ELBO (eq. 8 of the paper, with its constants), which the paper minimises in encoder, decoder, codebook and
variances alike; the configuration has other ways for the encoder's gradient, the codebook and the variances:

    L = E[ ‖x − x̂‖² / (2σ²) + ½ Σ_i (z_i − z_{q,i})ᵀ Σ_φ⁻¹ (z_i − z_{q,i}) ] − E Σ_i H(P̂(·|z_i))
        + (D/2) log 2πσ² + N log K

Shape legend: B batch, C × H × W image (D values), h × w grid (N positions), d code width, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel as PreTrainedModel  # diffusers looks for it beside the class
from transformers import initialization as init

from hq_tokenizers.codes import CodeGroup, CodeLayout, Codes
from hq_tokenizers.losses.likelihoods import CategoricalLabels, GaussianImages, VonMisesFisherLabels, label_channels
from hq_tokenizers.padding import Padding, item_means
from hq_tokenizers.quantization.gaussian import GaussianVariance
from hq_tokenizers.quantization.hard_codes import for_codes
from hq_tokenizers.quantization.outputs import QuantizerOutput
from hq_tokenizers.quantization.von_mises_fisher import VonMisesFisherQuantizer
from hq_tokenizers.randomness import GeneratorLike

from .builders import (
    build_decoder,
    build_encoder,
    build_image_likelihood,
    build_label_likelihood,
    build_latent_norm,
    build_single_quantizer,
)
from .configuration_sq_vae import SQVAEConfig
from .input_checks import check_beam, check_codes, check_is_codes, check_label_map, check_layout, check_pixel_values
from .latent_scale import LatentScale
from .modeling_image_tokenizer import (
    ImageTokenizerPreTrainedModel,
    drops_labels,
    inference,
    level_diagnostics,
    unquantized,
)
from .modeling_outputs import ImageTokenizerOutput


class SQVAEModel(ImageTokenizerPreTrainedModel):
    """SQ-VAE image tokenizer.

    Args:
        config: The configuration.

    Examples:
        >>> import torch
        >>> from hq_tokenizers import SQVAEConfig, SQVAEModel
        >>> model = SQVAEModel(SQVAEConfig(image_size=32, codebook_size=512)).eval()
        >>> codes = model.encode(torch.rand(2, 3, 32, 32))
        >>> codes.layout
        CodeLayout(groups=(CodeGroup(height=8, width=8, codebook_sizes=(512,)),))
        >>> model.decode(codes).shape
        torch.Size([2, 3, 32, 32])
    """

    config_class = SQVAEConfig
    config: SQVAEConfig
    likelihood: GaussianImages | CategoricalLabels
    quantizer: Any  # a module of hq_tokenizers.quantization

    def __init__(self, config: SQVAEConfig):
        super().__init__(config)
        data_channels = label_channels(config.num_classes) if config.for_label_maps else config.num_channels
        self.encoder = build_encoder(config, data_channels)
        self.latent_norm = build_latent_norm(config)
        self.quantizer = build_single_quantizer(config)
        self.decoder = build_decoder(config, data_channels, config.stride, from_codes=True)
        self.likelihood = build_label_likelihood(config) if config.for_label_maps else build_image_likelihood(config)
        self._finish_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, GaussianVariance):
            init.constant_(module.log_variance, self.config.initial_log_variance)
        elif isinstance(module, VonMisesFisherQuantizer) and module.log_concentration is not None:
            init.constant_(module.log_concentration, self.config.initial_log_concentration)
        elif isinstance(module, VonMisesFisherLabels):
            init.constant_(module.log_inverse_concentration, -math.log(self.config.initial_label_concentration))

    @drops_labels
    def forward(
        self,
        pixel_values: torch.Tensor,
        return_loss: bool = True,
        attention_mask: torch.Tensor | None = None,
        speaker_ids: torch.Tensor | None = None,
    ) -> ImageTokenizerOutput:
        """Reconstructs images and computes the negative ELBO.

        In training mode the codes are samples, relaxed with the pathwise gradient, for whose model the loss is then an
        unbiased estimate, and while `warming_up` the decoder gets the latents instead; in evaluation mode the most
        probable codes are used and everything is deterministic.

        Args:
            pixel_values: (B, C, H, W), floats in [0, 1]; H and W multiples of the stride. A model of label maps takes
                them as LongTensors (B, H, W) instead, and its reconstruction is one; a model of sound takes what
                `HQFeatureExtractor` gives.
            return_loss: False skips the loss and its terms.
            attention_mask: Of sounds: (B, W), 1 for frames and 0 for the padding after them, which changes nothing.
            speaker_ids: Speakers (B,) of a model that has `num_speakers`.

        Returns:
            `ImageTokenizerOutput` with one level.

        Raises:
            ValueError: For a wrong shape or an image size that the stride does not divide.
            TypeError: For integer pixels.
        """
        temperature = self.temperature() if self.training else None
        padding = self._padding(pixel_values, attention_mask)
        targets = pixel_values if return_loss else None
        encoded = self._encoded(pixel_values, padding)
        return self._decoded(encoded, temperature, targets=targets, padding=padding, speaker_ids=speaker_ids)

    @inference
    def encode(
        self,
        pixel_values: torch.Tensor,
        sample: bool = False,
        generator: GeneratorLike = None,
        attention_mask: torch.Tensor | None = None,
        beam_width: int | None = None,
    ) -> Codes:
        """Codes of images.

        Args:
            pixel_values: (B, C, H, W), floats in [0, 1].
            sample: Draws the codes from P̂(z_q | z) instead of taking the most probable ones.
            generator: For `sample`: a `torch.Generator`, one per image, or an integer seed. An image's codes do not
                depend on the rest of the batch.
            attention_mask: Of sounds: (B, W), 1 for frames and 0 for the padding after them, whose codes are 0.
            beam_width: Accepted for the interface shared with the hierarchical tokenizers: there is nothing to search.

        Raises:
            TypeError: If the images are no tensor of floats.
            ValueError: For a wrong shape, for values outside of [0, 1] or NaN (looked for on a CPU only), a number of
                generators that is not the number of images, `sample` with a deterministic quantiser, or a beam.
        """
        check_beam(self.config, 1 if beam_width is None else beam_width, sample)
        generators = self._sampling_generators(sample, generator, pixel_values)
        padding = self._padding(pixel_values, attention_mask)
        encoded = self._encoded(pixel_values, padding)
        return self._codes(self._quantize(encoded, generators=generators, padding=padding, codes_only=True))

    @inference
    def decode(
        self,
        codes: Codes,
        num_levels: int | None = None,
        attention_mask: torch.Tensor | None = None,
        speaker_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Images of codes.

        Args:
            codes: Codes of this tokenizer, of any grid size.
            num_levels: Accepted for the interface shared with the hierarchical tokenizers; there is one level.
            attention_mask: As for `encode`.
            speaker_ids: As for `forward`.

        Returns:
            pixel_values (B, C, H, W), nominally in [0, 1], not clamped.

        Raises:
            ValueError: If the layout is not this tokenizer's.
        """
        check_is_codes(codes, self.code_layout().num_codes)
        if num_levels is not None:
            codes = codes.truncate(num_levels)
        (vectors,) = self.embed(codes)
        padding = self._decoding_padding(codes, attention_mask)
        decoded = self._decode_vectors(vectors, self._running_scale(self.latent_norm), padding, speaker_ids)
        return self._reconstruction(decoded, padding)

    def embed(self, codes: Codes) -> tuple[torch.Tensor, ...]:
        """The code vectors: a tuple with one tensor (B, h, w, d)."""
        check_codes(codes, self.code_layout().num_codes)
        group = codes.layout.groups[0]
        check_layout(codes, self._layout_of_grid(group.height, group.width))
        return tuple(self.quantizer.embed(codes.groups[0]))

    @inference
    def posterior(self, pixel_values: torch.Tensor, attention_mask: torch.Tensor | None = None) -> tuple[torch.Tensor]:
        """Log P̂(z_q | z) at every position: a tuple with one float32 tensor (B, h, w, K), normalised.

        Args:
            pixel_values: As for `encode`.
            attention_mask: As for `encode`; what padding gets means nothing.

        Raises:
            ValueError: For a quantiser that is not stochastic.
        """
        if not self.config.is_stochastic:
            raise ValueError(f"Only stochastic quantisers have a posterior over codes, not {self.config.quantizer!r}.")
        latents, log_variance, _ = self._encoded(pixel_values, self._padding(pixel_values, attention_mask))
        return (self.quantizer.log_probabilities(latents, log_variance),)

    def code_layout(self, image_size: int | Sequence[int] | None = None) -> CodeLayout:
        """Layout of the codes of images of a size, by default `config.image_size`.

        Raises:
            ValueError: If the stride does not divide the size.
        """
        size = self.config.image_size if image_size is None else image_size
        return self._layout_of_grid(*self.config.coarsest_grid(size))

    def _layout_of_grid(self, height: int, width: int) -> CodeLayout:
        return CodeLayout((CodeGroup(height, width, (self.config.codebook_size,)),))

    def _encoded(
        self, pixel_values: torch.Tensor, padding: Padding | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, LatentScale | None]:
        """Latents and log-variance map, (B, h, w, d), and the scale that code vectors get back."""
        if self.config.for_label_maps:
            check_label_map(self.config, pixel_values)
        else:
            check_pixel_values(self.config, pixel_values)
        inputs = self.likelihood.inputs(pixel_values if padding is None else padding.clear(pixel_values))
        latents, log_variance = self.encoder(inputs.to(self.dtype), *(() if padding is None else (padding,)))
        latents, scale = self._normalized(self.latent_norm, latents, padding)
        if log_variance is None:
            return latents, None, scale
        log_variance = log_variance.permute(0, 2, 3, 1)
        if padding is not None and self.config.variance_type == "II":
            log_variance = item_means(log_variance, padding)
        return latents, log_variance, scale

    def _quantize(
        self,
        encoded: Sequence[Any],
        temperature: torch.Tensor | None = None,
        generators: Sequence[torch.Generator] | None = None,
        padding: Padding | None = None,
        codes_only: bool = False,
    ) -> QuantizerOutput:
        latents, log_variance, _ = encoded
        quantizer = for_codes(self.quantizer) if codes_only else self.quantizer
        return self._run_quantizer(quantizer, padding, latents, temperature, log_variance, generators)

    def _decoded(
        self,
        encoded: Sequence[Any],
        temperature: torch.Tensor | None = None,
        generators: Sequence[torch.Generator] | None = None,
        targets: torch.Tensor | None = None,
        padding: Padding | None = None,
        speaker_ids: torch.Tensor | None = None,
    ) -> ImageTokenizerOutput:
        """Everything after the encoder; with targets also the loss."""
        quantized = self._quantize(encoded, temperature, generators, padding)
        decoded = self._decode_vectors(quantized.quantized, encoded[-1], padding, speaker_ids)
        codes = None if quantized.indices is None else self._codes(quantized)
        output = ImageTokenizerOutput(
            reconstruction=self._reconstruction(decoded, padding),
            codes=codes,
            diagnostics=level_diagnostics([quantized], codes, padding),
        )
        if targets is not None:
            output.terms = {"reconstruction": self._nll(decoded, targets, padding), **quantized.terms}
            output.loss = self._objective(output.terms)
        return output

    def _decode_vectors(
        self,
        vectors: torch.Tensor,
        scale: LatentScale | None,
        padding: Padding | None = None,
        speaker_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        return self._run_decoder(self._to_decoder(vectors, scale), padding, speaker_ids)

    def _decode_latents(self, encoded: Sequence[Any]) -> torch.Tensor:
        latents, _, scale = encoded
        return self._decode_vectors(unquantized(self.quantizer, latents), scale)

    def _parts(self) -> dict[str, list[nn.Module]]:
        return {"encoder": [self.encoder], "decoder": [self.decoder]}

    def _codes(self, quantized: QuantizerOutput) -> Codes:
        if quantized.indices is None:
            raise ValueError("A VAE (quantizer='none') has continuous latents and no codes: use `forward`.")
        return Codes((quantized.indices,), self._layout_of_grid(*quantized.indices.shape[1:3]))

"""HQ-VAE (Takida et al., TMLR 2024): hierarchical stochastic codes, coarse to fine.

A bottom-up path gives features H_g at every resolution; a top-down path quantises them, coarse to fine. A group g is
one resolution: an injected layer (the first group: the projected features) and the residual layers after it.

    Ẑ_g = G_g(H_g, Z_{<g}),  Z_l ~ P̂_{s_l²}(· | Ẑ_g − Σ_{l' < l in g} Z_{l'}),  Z_g = Σ_{l ∈ g} Z_l,  x̂ = f_θ(Z_{1:G})

    J = E[ −log N(x; x̂, σ² I) + Σ_g ‖Ẑ_g − Σ_{l∈g} Z_l‖² / (2 Σ_{l∈g} s_l²) − Σ_l H(P̂_l) ] + Σ_l N_l log K_l

SQ-VAE-2 is groups of one layer, RSQ-VAE one group, SQ-VAE one group of one layer. With `quantizer="vq"` the same
networks give VQ-VAE-2 and RQ-VAE.

Shape legend: B batch, C × H × W image, h_g × w_g grid of group g, d code width, L levels in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel as PreTrainedModel  # diffusers looks for it beside the class
from transformers import initialization as init

from hq_tokenizers.codes import CodeGroup, CodeLayout, Codes
from hq_tokenizers.losses.likelihoods import GaussianImages
from hq_tokenizers.padding import Padding
from hq_tokenizers.quantization.hard_codes import for_codes
from hq_tokenizers.quantization.outputs import QuantizerOutput
from hq_tokenizers.quantization.residual_gaussian import ResidualGaussianQuantizer
from hq_tokenizers.randomness import GeneratorLike

from .builders import (
    build_bottom_up,
    build_decoder,
    build_group_quantizer,
    build_image_likelihood,
    build_latent_norm,
    build_top_down,
)
from .configuration_hq_vae import HQVAEConfig
from .input_checks import check_beam, check_codes, check_is_codes, check_layout, check_pixel_values
from .latent_scale import LatentScale
from .masked_layers import run
from .modeling_image_tokenizer import ImageTokenizerPreTrainedModel, drops_labels, inference, level_diagnostics
from .modeling_outputs import ImageTokenizerOutput


class HQVAEModel(ImageTokenizerPreTrainedModel):
    """Hierarchical image tokenizer.

    Args:
        config: The configuration.

    Examples:
        >>> import torch
        >>> from hq_tokenizers import HQVAEConfig, HQVAEModel
        >>> model = HQVAEModel(HQVAEConfig(code_groups=["stride 8: 512", "stride 4: 512 x 2"])).eval()
        >>> codes = model.encode(torch.rand(2, 3, 32, 32))
        >>> str(codes.layout)
        '4×4×1 of 512 + 8×8×2 of 512'
        >>> model.decode(codes, num_levels=1).shape
        torch.Size([2, 3, 32, 32])
    """

    config_class = HQVAEConfig
    config: HQVAEConfig
    likelihood: GaussianImages
    quantizer: Any  # one module of hq_tokenizers.quantization per group
    blocks: Any  # a FirstBlock, then InjectedBlocks

    def __init__(self, config: HQVAEConfig):
        super().__init__(config)
        groups = config.groups
        self.bottom_up = build_bottom_up(config)
        self.blocks = nn.ModuleList(build_top_down(config))
        self.latent_norms = nn.ModuleList(build_latent_norm(config) for _ in groups)
        self.quantizer = nn.ModuleList(build_group_quantizer(config, index) for index in range(len(groups)))
        self.decoder = build_decoder(config, config.num_channels, groups[-1].stride, from_codes=False)
        num_levels = sum(len(group.codebook_sizes) for group in groups)
        self.likelihood = build_image_likelihood(config, num_levels if config.progressive else 1)
        self._finish_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ResidualGaussianQuantizer):
            if module.log_variances is not None:
                init.constant_(module.log_variances, self.config.initial_log_variance)
            if module.prior_log_variances is not None:
                init.constant_(module.prior_log_variances, self.config.initial_log_variance)

    @drops_labels
    def forward(
        self,
        pixel_values: torch.Tensor,
        return_loss: bool = True,
        attention_mask: torch.Tensor | None = None,
        speaker_ids: torch.Tensor | None = None,
    ) -> ImageTokenizerOutput:
        """Reconstructs images and computes the negative ELBO.

        In training mode the codes are samples, relaxed with the pathwise gradient, and while `warming_up` the decoder
        gets the latents instead; in evaluation mode the most probable codes are used, level after level, and everything
        is deterministic.

        Args:
            pixel_values: (B, C, H, W), floats in [0, 1]; H and W multiples of the coarsest stride. A model of sound
                takes what `HQFeatureExtractor` gives.
            return_loss: False skips the loss and its terms.
            attention_mask: Of sounds: (B, W), 1 for frames and 0 for the padding after them, which changes nothing.
            speaker_ids: Speakers (B,) of a model that has `num_speakers`.

        Returns:
            `ImageTokenizerOutput`. With progressive coding `terms` has "progressive", the reconstruction terms of
            levels 1 … L−1, besides "reconstruction", that of all levels.

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
            sample: Draws the codes from P̂, level after level, instead of taking the most probable ones.
            generator: For `sample`: a `torch.Generator`, one per image, or an integer seed. An image's codes do not
                depend on the rest of the batch.
            attention_mask: Of sounds: (B, W), 1 for frames and 0 for the padding after them, whose codes are 0.
            beam_width: Above 1 the levels of a position are searched together, with so many sums of codes kept from
                level to level, for the sum that is closest to the latents: less error from as many codes, in more time;
                the first levels alone then decode to more. With 1 they are chosen level after level, as `forward` does.
                By default `config.beam_width`, or 1 with `sample`.

        Raises:
            TypeError: If the images are no tensor of floats.
            ValueError: For a wrong shape, for values outside of [0, 1] or NaN (looked for on a CPU only), a number of
                generators that is not the number of images, `sample` with a deterministic quantiser or a beam, or a
                beam where no position has several codes.
        """
        if beam_width is None:
            beam_width = 1 if sample else self.config.beam_width
        beam_width = check_beam(self.config, beam_width, sample)
        generators = self._sampling_generators(sample, generator, pixel_values)
        padding = self._padding(pixel_values, attention_mask)
        encoded = self._encoded(pixel_values, padding)
        return self._codes(self._top_down(encoded, generators=generators, padding=padding, beam_width=beam_width)[0])

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
            codes: Codes of this tokenizer, of any grid size, all levels or the first few (`Codes.truncate`).
            num_levels: Number of levels to decode, by default all there are. Groups that are missing are predicted from
                the coarser ones when the model was configured with `progressive` or `learned_prior`, else zero.
            attention_mask: As for `encode`.
            speaker_ids: As for `forward`.

        Returns:
            pixel_values (B, C, H, W), nominally in [0, 1], not clamped.

        Raises:
            ValueError: If the layout is not this tokenizer's, or `num_levels` is out of range.
        """
        check_is_codes(codes, self.code_layout().num_codes)
        if num_levels is not None:
            codes = codes.truncate(num_levels)
        padding = self._decoding_padding(codes, attention_mask)
        vectors = iter(self.embed(codes))
        state = upsampled = None
        for block, norm, grid in zip(self.blocks, self.latent_norms, codes.groups, strict=False):
            upsampled = None if state is None else run(block.upsample, state, padding)
            # Summed in the order of `forward`, so that both give the same bits.
            total = torch.zeros(()).to(grid.device)
            for _ in range(grid.shape[-1]):
                total = total + next(vectors)
            state = block.next_state(upsampled, self._to_decoder(total, self._running_scale(norm)))
        assert state is not None
        finest = self._complete(state, len(codes.groups), padding)
        return self._reconstruction(self._decode_states([finest], padding, speaker_ids)[0], padding)

    def embed(self, codes: Codes) -> tuple[torch.Tensor, ...]:
        """The code vectors of every level: a tuple of (B, h_g, w_g, d)."""
        check_codes(codes, self.code_layout().num_codes)
        first = codes.layout.groups[0]
        layout = self._layout_of_grid(first.height, first.width)
        check_layout(codes, layout.truncate(min(codes.num_levels, layout.num_levels)))
        grids = zip(self.quantizer, codes.groups, strict=False)
        return tuple(vectors for quantizer, grid in grids for vectors in quantizer.embed(grid))

    @inference
    def posterior(
        self, pixel_values: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Normalised log P̂ of every level given the most probable codes before it: float32 (B, h_g, w_g, K_l).

        Args:
            pixel_values: As for `encode`.
            attention_mask: As for `encode`; what padding gets means nothing.

        Raises:
            ValueError: For a quantiser that is not stochastic.
        """
        if not self.config.is_stochastic:
            raise ValueError(f"Only stochastic quantisers have a posterior over codes, not {self.config.quantizer!r}.")
        result: list[torch.Tensor] = []
        state = None
        padding = self._padding(pixel_values, attention_mask)
        for index, features in enumerate(self._encoded(pixel_values, padding)):
            latents, upsampled, scale = self._latents(index, features, state, padding)
            quantized = for_codes(self.quantizer[index])(latents, None)
            vectors = self.quantizer[index].embed(quantized.indices)
            result += self.quantizer[index].log_probabilities(latents, vectors)
            state = self.blocks[index].next_state(upsampled, self._to_decoder(quantized.quantized, scale))
        return tuple(result)

    def code_layout(self, image_size: int | Sequence[int] | None = None) -> CodeLayout:
        """Layout of the codes of images of a size, by default `config.image_size`.

        Raises:
            ValueError: If the coarsest stride does not divide the size.
        """
        size = self.config.image_size if image_size is None else image_size
        return self._layout_of_grid(*self.config.coarsest_grid(size))

    def _layout_of_grid(self, height: int, width: int) -> CodeLayout:
        """The layout whose coarsest grid is height × width."""
        groups = self.config.groups
        factors = [groups[0].stride // group.stride for group in groups]
        return CodeLayout(
            tuple(CodeGroup(height * f, width * f, g.codebook_sizes) for f, g in zip(factors, groups, strict=True))
        )

    def _encoded(self, pixel_values: torch.Tensor, padding: Padding | None = None) -> list[torch.Tensor]:
        """The features of every resolution, coarse to fine."""
        check_pixel_values(self.config, pixel_values)
        if padding is None:
            return self.bottom_up(pixel_values.to(self.dtype))
        return self.bottom_up(padding.clear(pixel_values).to(self.dtype), padding)

    def _latents(
        self, index: int, features: torch.Tensor, state: torch.Tensor | None, padding: Padding | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None, LatentScale | None]:
        """Ẑ_g (B, h, w, d), the upsampled state (None in the first group), and the scale that its codes get back."""
        block = self.blocks[index]
        upsampled = None if state is None else run(block.upsample, state, padding)
        latents = block.latents(features, upsampled, padding)
        latents, scale = self._normalized(self.latent_norms[index], latents, padding)
        return latents, upsampled, scale

    def _decoded(
        self,
        encoded: Sequence[torch.Tensor],
        temperature: torch.Tensor | None = None,
        generators: Sequence[torch.Generator] | None = None,
        targets: torch.Tensor | None = None,
        padding: Padding | None = None,
        speaker_ids: torch.Tensor | None = None,
    ) -> ImageTokenizerOutput:
        """Everything after the bottom-up path; with targets also the loss."""
        partial = targets is not None and self.config.progressive
        quantized, states = self._top_down(encoded, temperature, generators, partial, padding)
        *previews, decoded = self._decode_states(states, padding, speaker_ids)
        codes = self._codes(quantized)
        output = ImageTokenizerOutput(
            reconstruction=self._reconstruction(decoded, padding),
            codes=codes,
            diagnostics=level_diagnostics(quantized, codes, padding),
        )
        if targets is not None:
            output.terms = {"reconstruction": self._nll(decoded, targets, padding)}
            if previews:
                per_level = [self._nll(preview, targets, padding, i) for i, preview in enumerate(previews)]
                output.terms["progressive"] = torch.stack(per_level).sum()
            for name in quantized[0].terms:
                output.terms[name] = torch.stack([group.terms[name] for group in quantized]).sum()
            output.loss = self._objective(output.terms)
        return output

    def _top_down(
        self,
        encoded: Sequence[torch.Tensor],
        temperature: torch.Tensor | None = None,
        generators: Sequence[torch.Generator] | None = None,
        partial: bool = False,
        padding: Padding | None = None,
        beam_width: int | None = None,
    ) -> tuple[list[QuantizerOutput], list[torch.Tensor]]:
        """Quantises all groups; also the finest state of the decode from all levels, or from every prefix of them.

        With a beam width, for encoding, without terms and entropies: see `for_codes`.
        """
        quantized: list[QuantizerOutput] = []
        states: list[torch.Tensor] = []
        state = None
        for index, features in enumerate(encoded):
            latents, upsampled, scale = self._latents(index, features, state, padding)
            prior = []
            if self.config.learned_prior and index > 0 and beam_width is None:
                prior.append(self.blocks[index].fill(upsampled, padding).permute(0, 2, 3, 1))
            quantizer = self.quantizer[index] if beam_width is None else for_codes(self.quantizer[index], beam_width)
            group = self._run_quantizer(quantizer, padding, latents, temperature, generators, *prior)
            quantized.append(group)
            for total in group.partial_sums if partial else group.partial_sums[-1:]:
                state = self.blocks[index].next_state(upsampled, self._to_decoder(total, scale))
                states.append(self._complete(state, index + 1, padding) if partial else state)
        return quantized, states if partial else states[-1:]

    def _complete(self, state: torch.Tensor, first_missing: int, padding: Padding | None) -> torch.Tensor:
        """The finest state when the groups from `first_missing` on have no codes."""
        for block, norm in list(zip(self.blocks, self.latent_norms, strict=True))[first_missing:]:
            upsampled = run(block.upsample, state, padding)
            filled = block.fill(upsampled, padding)
            if filled is None:
                filled = upsampled.new_zeros(upsampled.shape[0], self.config.codebook_dim, *upsampled.shape[2:])
            scale = self._running_scale(norm)
            if scale is not None:
                filled = self._to_decoder(filled.permute(0, 2, 3, 1), scale)
            state = block.next_state(upsampled, filled)
        return state

    def _decode_latents(self, encoded: Sequence[torch.Tensor]) -> torch.Tensor:
        state = None
        for index, features in enumerate(encoded):
            latents, upsampled, scale = self._latents(index, features, state)
            state = self.blocks[index].next_state(upsampled, self._to_decoder(latents, scale))
        assert state is not None
        return self._run_decoder(state, None, None)

    def _parts(self) -> dict[str, list[nn.Module]]:
        first, *finer = self.blocks
        return {
            "encoder": [self.bottom_up, first.latent_head],
            "decoder": [first.state, *(block.upsample for block in finer), self.decoder],
        }

    def _decode_states(
        self, states: list[torch.Tensor], padding: Padding | None, speaker_ids: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """The decoder's last layer for each of the finest states."""
        if self.training:
            # Together, so that batch normalisation sees in training the mixture that its running averages describe.
            copies = len(states)
            return list(self._run_decoder(torch.cat(states), padding, speaker_ids, copies).chunk(copies))
        return [self._run_decoder(state, padding, speaker_ids) for state in states]

    def _codes(self, quantized: Sequence[QuantizerOutput]) -> Codes:
        height, width = quantized[0].indices.shape[1:3]  # type: ignore[union-attr]
        return Codes(tuple(group.indices for group in quantized), self._layout_of_grid(height, width))  # type: ignore[misc]

"""A codebook whose codes are drawn from P̂(z_q = b_k | z).

Shape legend: B batch, h × w grid, d code width, K codes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F

from hq_tokenizers.quantization.codebook import Codebook
from hq_tokenizers.quantization.functional import Factors, entropy_of, in_chunks
from hq_tokenizers.quantization.moving_averages import MovingAverages
from hq_tokenizers.quantization.relaxed_sample import relaxed_quantize, sample_codes
from hq_tokenizers.quantization.snapshot import snapshot
from hq_tokenizers.randomness import sample_exponential

FactorsFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Factors]
Quantized = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class StochasticCodebook(Codebook):
    """A codebook whose codes are drawn from P̂(z_q = b_k | z).

    Args:
        num_codes: Codebook size K.
        code_dim: Code width d.
        factors: Maps latents (M, d), codebook (K, d) and the precision to the factors (M, r) and (K, r) of the logits
            of P̂ (M, K).
        max_elements: Bound on the size of the latents × codes matrix held at once; beyond it, it is computed in
            slices.
        averages: The moving averages of the latents at their most probable codes, which the code vectors follow; None
            makes them a parameter, learned by gradient.
        exact_samples: Whether training draws codes as they are, without a gradient to the latents, instead of relaxed
            samples.
    """

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        factors: FactorsFunction,
        max_elements: int,
        averages: MovingAverages | None = None,
        exact_samples: bool = False,
    ):
        super().__init__(num_codes, code_dim, averages, max_elements)
        self.exact_samples = exact_samples
        self.factors = factors

    @property
    def codes(self) -> torch.Tensor:
        """The code vectors (K, d) in float32."""
        return self._weight_now()

    def _weight_now(self) -> torch.Tensor:
        # A method: the compiler does not trace `super()` in front of a property.
        if self.averages is None:
            return self.weight.float()
        # Moving averages overwrite the vectors at the end of a forward pass, whose backward pass needs the old ones.
        return snapshot(self.weight).to(torch.float32, copy=True)

    def forward(
        self,
        latents: torch.Tensor,
        precision: torch.Tensor,
        temperature: torch.Tensor | None,
        generators: Sequence[torch.Generator] | None = None,
        codes_only: bool = False,
    ) -> Quantized:
        """Quantises a grid.

        With a temperature the code vectors are samples for training, relaxed or exact. Without, they are those of the
        most probable codes, or of a categorical sample when `generators` are given.

        Args:
            latents: (B, h, w, d), float32.
            precision: Diagonal of Σ⁻¹, four dimensions that broadcast to the latents'; all leading ones must be those
                of the latents unless every one is 1.
            temperature: Gumbel temperature τ of relaxed samples, a scalar tensor; None outside of training.
            generators: One per image, for sampled hard codes.
            codes_only: Leaves out the entropies of hard codes, which take longer than the codes.

        Returns:
            Code vectors (B, h, w, d), hard codes (B, h, w) and the entropy of P̂ (B, h, w) in nats, or zeros.
        """
        batch, height, width, dim = latents.shape
        codes = self.codes
        if temperature is None:
            quantized, indices, entropy = self._hard(latents, precision, generators, codes, codes_only)
        else:
            flat = latents.reshape(-1, dim)
            query, key = self.factors(flat, codes, _flat_precision(precision, latents))
            if self.exact_samples:
                samples, entropy, indices = sample_codes(query, key, self.max_elements)
                quantized = F.embedding(samples, codes)
            else:
                quantized, entropy, indices = relaxed_quantize(query, key, codes, temperature, self.max_elements)
            if self.averages is not None:
                self.averages.observe(flat.detach(), indices)
        grid = (batch, height, width)
        return quantized.reshape(*grid, dim), indices.reshape(grid), entropy.reshape(grid)

    def _hard(
        self,
        latents: torch.Tensor,
        precision: torch.Tensor,
        generators: Sequence[torch.Generator] | None,
        codes: torch.Tensor,
        codes_only: bool,
    ) -> Quantized:
        """The vectors (M, d), indices (M,) and entropies (M,) of the most probable or of sampled codes."""
        batch, height, width, dim = latents.shape
        num_images = max(1, self.max_elements // (height * width * len(codes)))
        if generators is not None and num_images < batch:
            # The noise is as large as the matrix that it is for.
            hard = partial(self._hard, codes=codes, codes_only=codes_only)
            return in_image_parts(hard, latents, precision, generators, num_images)
        noise = None
        if generators is not None:
            noise = sample_exponential((height * width, len(codes)), generators, latents.device).flatten(0, 1)

        def quantize(z: torch.Tensor, w: torch.Tensor) -> Quantized:
            logits = self._logits(z, codes, w)
            indices = (logits if noise is None else logits - noise.log()).argmax(dim=-1)
            entropy = logits.new_zeros(len(logits)) if codes_only else entropy_of(logits)
            return F.embedding(indices, codes), indices, entropy

        return in_chunks(
            quantize,
            latents.reshape(-1, dim),
            _flat_precision(precision, latents),
            num_codes=len(codes),
            max_elements=self.max_elements if noise is None else max(self.max_elements, noise.numel()),
        )

    def _logits(self, latents: torch.Tensor, codes: torch.Tensor, precision: torch.Tensor) -> torch.Tensor:
        query, key = self.factors(latents, codes, precision)
        return query @ key.T

    def cross_entropy(
        self,
        latents: torch.Tensor,
        precision: torch.Tensor,
        prior_latents: torch.Tensor,
        prior_precision: torch.Tensor,
    ) -> torch.Tensor:
        """−Σ_k P̂_k(latents) log P̂_k(prior_latents) in nats, (B, h, w).

        Args:
            latents: (B, h, w, d).
            precision: As in `forward`.
            prior_latents: (B, h, w, d).
            prior_precision: As in `forward`.
        """
        # Not in `compute`, which the backward pass may run again, when the codes have moved.
        codes = self.codes

        def compute(
            z: torch.Tensor, prior: torch.Tensor, w: torch.Tensor, prior_w: torch.Tensor
        ) -> tuple[torch.Tensor]:
            probabilities = torch.softmax(self._logits(z, codes, w), dim=-1)
            prior_log_probabilities = F.log_softmax(self._logits(prior, codes, prior_w), dim=-1)
            return (-(probabilities * prior_log_probabilities).sum(dim=-1),)

        (result,) = in_chunks(
            compute,
            latents.flatten(0, 2),
            prior_latents.flatten(0, 2),
            _flat_precision(precision, latents),
            _flat_precision(prior_precision, latents),
            num_codes=len(self.weight),
            max_elements=self.max_elements,
        )
        return result.unflatten(0, latents.shape[:3])

    def log_probabilities(self, latents: torch.Tensor, precision: torch.Tensor) -> torch.Tensor:
        """Log P̂(z_q = b_k | z): latents (B, h, w, d) → (B, h, w, K)."""
        logits = self._logits(latents.flatten(0, 2), self.codes, _flat_precision(precision, latents))
        return F.log_softmax(logits, dim=-1).unflatten(0, latents.shape[:3])


def in_image_parts(
    function: Callable[[torch.Tensor, torch.Tensor, Sequence[torch.Generator]], Quantized],
    latents: torch.Tensor,
    precision: torch.Tensor,
    generators: Sequence[torch.Generator],
    num_images: int,
) -> Quantized:
    """Applies `function` to the latents, precision and generators of `num_images` images at a time."""
    parts = []
    for start in range(0, len(latents), num_images):
        part = slice(start, start + num_images)
        own_precision = precision[part] if len(precision) > 1 else precision
        parts.append(function(latents[part], own_precision, generators[part]))
    quantized, indices, entropy = (torch.cat(column) for column in zip(*parts, strict=True))
    return quantized, indices, entropy


def _flat_precision(precision: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """A precision of four dimensions as (M, d or 1), or (1, 1) where it is one number."""
    if precision.numel() > 1:
        precision = precision.expand(*latents.shape[:3], -1)
    return precision.reshape(-1, precision.shape[-1])


class UnitCodebook(StochasticCodebook):
    """A codebook of unit vectors."""

    @property
    def codes(self) -> torch.Tensor:
        """The code vectors (K, d) in float32, normalised."""
        return F.normalize(self._weight_now(), dim=-1)

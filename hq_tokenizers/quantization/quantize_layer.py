"""What the layers of `layers.py` share: layouts, padding masks, float32 inside, codes and back.

Shape legend: B batch, … at most three sizes of a grid (N positions in all), d code width, K codes, D codes a position.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from hq_tokenizers.checks import check_value
from hq_tokenizers.codes import check_code_values, values_are_at_hand
from hq_tokenizers.evaluation_mode import evaluation_mode
from hq_tokenizers.quantization.codebook import Codebook
from hq_tokenizers.quantization.finite_batches import FiniteBatchNorm1d
from hq_tokenizers.quantization.full_precision import without_rounding
from hq_tokenizers.quantization.hard_codes import for_codes
from hq_tokenizers.quantization.outputs import QuantizerOutput
from hq_tokenizers.quantization.vector_codebook import VectorCodebook

MASKED_CODE = -1


class QuantizeLayer(nn.Module):
    """What the four layers share: layouts of the input, padding masks, float32 inside, codes and back.

    Args:
        dim: Code width d, the channels of the input.
        quantizer: The module that the models have too.
        channel_last: Whether the input is (B, …, d), or (B, d, …).
        normalize: Whether a batch norm without learned scale comes before the codes.
        one_code: Whether codes have the shape of the grid, without a last dimension for the levels.
    """

    def __init__(self, dim: int, quantizer: nn.Module, channel_last: bool, normalize: bool, one_code: bool):
        super().__init__()
        check_value("channel_last", channel_last, bool)
        check_value("normalize", normalize, bool)
        self.dim = dim
        self.channel_last = channel_last
        self.one_code = one_code
        self.norm = FiniteBatchNorm1d(dim) if normalize else None
        self.quantizer: Any = quantizer
        for module in self.modules():
            if isinstance(module, Codebook):
                _init_codebook(module)

    @property
    def num_quantizers(self) -> int:
        """Codes of a position, D."""
        return len(self.quantizer.level_codebooks())

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, return_terms: bool = False
    ) -> tuple[torch.Tensor, ...] | tuple[torch.Tensor, torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        """Quantises a batch; in training mode the moving averages and variances learn from it.

        Args:
            x: Floats (B, …, d), with `channel_last=False` (B, d, …): a sequence, an image, a volume, or vectors (B, d).
            mask: Bools (B, …), False for padding: it comes out as zeros, has the code −1, and counts in no loss and no
                average. Without a mask nothing waits for the device.
            return_terms: Whether to return the terms of the loss as well.

        Returns:
            quantized: The code vectors, summed over the levels, in the shape and type of `x`. With `normalize` they lie
                in the space of the normalised input.
            codes: LongTensor (B, …), of the residual layers (B, …, D): the most probable codes, or the nearest. In
                training `quantized` of a stochastic layer is a sample, in evaluation mode the vectors of `codes`.
            loss: A float32 scalar to add to a mean squared error, see the class.
            terms: With `return_terms` a dict of scalars, see the class.

        Raises:
            ValueError: For a wrong shape, a batch without a vector that is no padding, or in training with `normalize`
                one of a single vector.
            TypeError: If `x` is no tensor of floats or the mask none of bools.
        """
        latents = self._latents(x, mask)
        with torch.autocast(x.device.type, enabled=False):
            output = self.quantizer(latents, self._temperature() if self.training else None)
            terms = self._terms(output.terms, num_positions=latents.shape[1])
            loss = self._loss(output, terms)
        quantized = self._in_layout(_placed(output.quantized, self._leading(x), mask, 0.0).to(x.dtype))
        results = (quantized, self._codes(output, x, mask), loss)
        return (*results, terms) if return_terms else results

    @torch.no_grad()
    def get_codes(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The codes that `forward` gives in evaluation mode, also while the layer trains; nothing is learned."""
        with evaluation_mode(self):
            return self._codes(for_codes(self.quantizer)(self._latents(x, mask), None), x, mask)

    def from_codes(self, codes: torch.Tensor) -> torch.Tensor:
        """The code vectors that `forward` gives in evaluation mode for these codes, in float32.

        Args:
            codes: Integers (B, …), of the residual layers (B, …, D') with all levels or the first D' of them; −1 for
                padding, whose vectors are zero.

        Returns:
            (B, …, d), with `channel_last=False` (B, d, …).

        Raises:
            ValueError: If there are no levels, more than the layer has, or on a CPU a code that no codebook has.
            TypeError: If the codes are no tensor of integers.
        """
        if not isinstance(codes, torch.Tensor):
            raise TypeError(f"codes must be a tensor of integers, got {type(codes).__name__}.")
        if codes.is_floating_point() or codes.dtype == torch.bool:
            raise TypeError(f"codes must be integers, got {codes.dtype}.")
        if not codes.ndim:
            raise ValueError(f"codes must have a batch dimension, got the single number {codes}.")
        levels = codes.unsqueeze(-1) if self.one_code else codes
        if not 1 <= levels.shape[-1] <= self.num_quantizers:
            raise ValueError(
                f"The last dimension of codes is that of the levels, 1 to {self.num_quantizers}, got "
                f"{tuple(codes.shape)}."
            )
        if values_are_at_hand(levels):
            for level, values in enumerate(levels.unbind(-1)):
                check_code_values(values, len(self.quantizer.level_codebooks()[level].weight), level, padded=True)
        total = torch.zeros((), device=codes.device)
        present = (levels >= 0).unsqueeze(-1).unbind(-2)
        for vectors, known in zip(self.quantizer.embed(levels.clamp_min(0)), present, strict=True):
            total = total + vectors * known
        return self._in_layout(total)

    def extra_repr(self) -> str:
        """The sizes."""
        sizes = [len(book.weight) for book in self.quantizer.level_codebooks()]
        return f"dim={self.dim}, codebook_sizes={sizes}, channel_last={self.channel_last}"

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> QuantizeLayer:
        """Moves or converts the layer with the model around it; it is never rounded to 16 bits."""
        return super()._apply(without_rounding(fn, self), recurse)

    def _latents(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """What is quantised, in float32, as `_grid` has it."""
        latents = self._grid(x, mask).float()
        with torch.autocast(x.device.type, enabled=False):
            return latents if self.norm is None else self.norm(latents.flatten(0, 2)).reshape(latents.shape)

    def _codes(self, output: QuantizerOutput, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        assert output.indices is not None  # no layer is continuous
        codes = _placed(output.indices, self._leading(x), mask, MASKED_CODE)
        return codes[..., 0] if self.one_code else codes

    def _leading(self, x: torch.Tensor) -> tuple[int, ...]:
        """The shape of the vectors, without their width."""
        return (x.shape[0], *(x.shape[1:-1] if self.channel_last else x.shape[2:]))

    def _grid(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """The vectors as a grid (B, N, 1, d), those that a mask leaves as one of (1, M, 1, d)."""
        self._check(x, mask)
        vectors = x if self.channel_last else x.movedim(1, -1)
        if mask is None:
            grid = vectors.reshape(x.shape[0], -1, 1, self.dim) if x.numel() else x
        else:
            grid = vectors[mask].reshape(1, -1, 1, self.dim)
        if not grid.numel():
            raise ValueError("There is no vector to quantise: the batch is empty, or all of it is padding.")
        if self.norm is not None and self.norm.training and grid.numel() == self.dim:
            raise ValueError(
                "A single vector has no variance to be normalised by: train with more in a batch, or make the layer "
                "with normalize=False."
            )
        return grid

    def _check(self, x: torch.Tensor, mask: torch.Tensor | None) -> None:
        if not isinstance(x, torch.Tensor) or not x.is_floating_point():
            raise TypeError(
                f"x must be a tensor of floats, got {x.dtype if isinstance(x, torch.Tensor) else type(x).__name__}."
            )
        axis = -1 if self.channel_last else 1
        if not 2 <= x.ndim <= 5 or x.shape[axis] != self.dim:
            shape = f"(batch, …, {self.dim})" if self.channel_last else f"(batch, {self.dim}, …)"
            other = x.ndim > 1 and x.shape[1 if self.channel_last else -1] == self.dim
            raise ValueError(
                f"x must have shape {shape} with at most three sizes in place of …, got {tuple(x.shape)}"
                + (f"; channel_last={not self.channel_last} is for the other layout." if other else ".")
            )
        if mask is None:
            return
        leading = self._leading(x)
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
            got = mask.dtype if isinstance(mask, torch.Tensor) else type(mask).__name__
            raise TypeError(f"mask must be a tensor of bools, True for what is no padding, got {got}.")
        if tuple(mask.shape) != leading:
            raise ValueError(f"mask must have the shape of the codes, {leading}, got {tuple(mask.shape)}.")

    def _in_layout(self, vectors: torch.Tensor) -> torch.Tensor:
        return vectors if self.channel_last else vectors.movedim(-1, 1)

    def _temperature(self) -> torch.Tensor:
        """What tells the quantiser that it is trained."""
        raise NotImplementedError

    def _terms(self, terms: dict[str, torch.Tensor], num_positions: int) -> dict[str, torch.Tensor]:
        """The quantiser's terms, of `num_positions` positions each, as the class says."""
        raise NotImplementedError

    def _loss(self, output: QuantizerOutput, terms: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss of these terms."""
        raise NotImplementedError


@torch.no_grad()
def _init_codebook(codebook: Codebook) -> None:
    """Normal code vectors, of unit norm before the linear layer of SimVQ, and the averages that give them."""
    linear = isinstance(codebook, VectorCodebook) and codebook.projection is not None
    nn.init.normal_(codebook.weight, std=codebook.weight.shape[1] ** -0.5 if linear else 1.0)
    if codebook.averages is not None:
        codebook.averages.start(codebook.weight)


def _placed(values: torch.Tensor, leading: tuple[int, ...], mask: torch.Tensor | None, fill: float) -> torch.Tensor:
    """Values (B, N, 1, c), or with a mask (1, M, 1, c), as (B, …, c), with `fill` where the mask is False."""
    width = values.shape[-1]
    if mask is None:
        return values.reshape(*leading, width)
    placed = values.new_full((*leading, width), fill)
    placed[mask] = values.reshape(-1, width)
    return placed

"""Items of different lengths in one batch: what is padding, and computing as if there were none.

Only the last axis, time, is padded, and only at its end. Codes cover whole positions, so that a position counts as
real when one of its frames is. Codes of padding are 0, by which the length of a sound can be read off its codes.

Shape legend: B batch, W frames, h × w grid of positions, M real positions of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from hq_tokenizers.codes import CodeLayout, Codes
from hq_tokenizers.quantization.outputs import QuantizerOutput


@dataclass(frozen=True)
class Padding:
    """Which frames of a batch are real.

    Args:
        frames: Booleans (B, W), True where a frame is real.
        stride: Frames per position of the coarsest grid.
    """

    frames: torch.Tensor
    stride: int

    @classmethod
    def of(cls, attention_mask: torch.Tensor | None, width: int, stride: int) -> Padding | None:
        """The padding that a mask means; None where there is none, as far as that is known without waiting.

        Args:
            attention_mask: (B, W), 1 for real frames and 0 for padding, which follows them; or None.
            width: W.
            stride: Frames per position of the coarsest grid.

        Raises:
            ValueError: For a mask of another shape, an item without a real frame, or padding before real frames.
        """
        if attention_mask is None:
            return None
        if attention_mask.ndim != 2 or attention_mask.shape[1] != width:
            raise ValueError(
                f"attention_mask must have shape (batch, {width}), one value per frame, got "
                f"{tuple(attention_mask.shape)}."
            )
        frames = attention_mask.bool()
        if frames.device.type == "cpu" and not torch.compiler.is_compiling():
            if frames.all():
                return None
            if not frames[:, 0].all() or (frames[:, 1:] & ~frames[:, :-1]).any():
                raise ValueError(
                    "attention_mask must be 1 for the frames of an item, at least one, and 0 after them: pad at the "
                    "end, as HQFeatureExtractor does."
                )
        return cls(frames, stride)

    def positions(self, width: int) -> torch.Tensor:
        """Which columns of a grid of `width` columns are real: booleans (B, width).

        Args:
            width: A multiple of the coarsest grid's, and a divisor of W or the same.
        """
        coarse = self.frames.unflatten(1, (-1, self.stride)).any(-1)
        return coarse.repeat_interleave(width // coarse.shape[1], dim=1)

    def clear(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The same frames (B, C, H, W), 0 where there is padding."""
        return pixel_values * self.frames[:, None, None].to(pixel_values.dtype)

    def pack(self, values: torch.Tensor) -> torch.Tensor:
        """The real frames of (B, C, H, W), one after the other: (M, C, H)."""
        return values.movedim(-1, 1)[self.frames]

    def per_item(self, term: torch.Tensor) -> torch.Tensor:
        """A mean over the real frames as a mean over the items of their sums."""
        return term * self.frames.sum() / len(self.frames)


def quantize_real(
    quantizer: Callable[..., QuantizerOutput],
    padding: Padding,
    latents: torch.Tensor,
    temperature: torch.Tensor | None,
    *others: Any,
    sums: bool,
    one_by_one: bool,
) -> QuantizerOutput:
    """What a quantiser makes of the real positions: padding has no code, no term, no usage, and teaches nothing.

    Args:
        quantizer: Called as quantizer(latents, temperature, *others).
        padding: Of the batch.
        latents: (B, h, w, d).
        temperature: Of the relaxed samples, or None.
        *others: Further arguments: maps (B, h, w, d), a generator per item, or None.
        sums: Whether its terms are sums over the positions of an item, not means over all values.
        one_by_one: Whether its noise belongs to an item: each is then quantised as if it were alone.

    Returns:
        The quantiser's output with 0 as the codes and vectors of padding; its terms are per item.
    """
    if one_by_one:
        return _quantize_each(quantizer, padding, latents, temperature, *others)
    batch, height, width, _ = latents.shape
    real = padding.positions(width)[:, None].expand(batch, height, width)

    def packed(value: Any) -> Any:
        same = isinstance(value, torch.Tensor) and value.shape[:3] == latents.shape[:3]
        return value[real][:, None, None] if same else value

    def spread(values: torch.Tensor) -> torch.Tensor:
        grid = values.new_zeros(batch, height, width, values.shape[-1])
        return grid.index_put((real,), values[:, 0, 0])

    # A position of an item is quantised like an item of one position.
    output = quantizer(packed(latents), temperature, *map(packed, others))
    positions_per_item = real.sum() / batch
    return replace(
        output,
        partial_sums=tuple(map(spread, output.partial_sums)),
        indices=None if output.indices is None else spread(output.indices),
        terms={name: term * positions_per_item if sums else term for name, term in output.terms.items()},
    )


def _quantize_each(
    quantizer: Callable[..., QuantizerOutput], padding: Padding, latents: torch.Tensor, *others: Any
) -> QuantizerOutput:
    """Every item without its padding, through the quantiser by itself."""
    width = latents.shape[2]
    outputs = []
    for item, length in enumerate(padding.positions(width).sum(1).tolist()):

        def own(value: Any, item: int = item, length: int = length) -> Any:
            if isinstance(value, torch.Tensor) and value.ndim == 4:
                return value[item : item + 1, :, :length]
            return value[item : item + 1] if isinstance(value, Sequence) else value

        outputs.append(quantizer(own(latents), *map(own, others)))

    def joined(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.cat([torch.nn.functional.pad(part, (0, 0, 0, width - part.shape[2])) for part in parts])

    def mean(parts: Sequence[torch.Tensor]) -> torch.Tensor:
        return torch.stack(list(parts)).mean(0)

    first = outputs[0]
    averaged = {
        name: mean([getattr(output, name) for output in outputs])
        for name, value in vars(first).items()
        if isinstance(value, torch.Tensor) and name != "indices"
    }
    return replace(
        first,
        partial_sums=tuple(joined(level) for level in zip(*(output.partial_sums for output in outputs), strict=True)),
        indices=None if first.indices is None else joined([output.indices for output in outputs]),  # type: ignore[misc]
        terms={name: mean([output.terms[name] for output in outputs]) for name in first.terms},
        **averaged,
    )


def item_means(values: torch.Tensor, padding: Padding) -> torch.Tensor:
    """Each item's mean over channels and real positions, at all of them: (B, h, w, d) → the same shape."""
    real = padding.positions(values.shape[2])[:, None, :, None].to(values.dtype)
    total = (values * real).sum(dim=(1, 2, 3), keepdim=True)
    number = real.sum(dim=2, keepdim=True) * values.shape[1] * values.shape[3]
    return (total / number).expand_as(values)


def real_codes(codes: Codes, padding: Padding | None) -> list[torch.Tensor]:
    """The codes of every level, without those of padding: LongTensors (M,), or (B, h, w) where there is no padding."""
    levels = list(codes.levels())
    if padding is None:
        return levels
    return [level[padding.positions(level.shape[-1])[:, None].expand_as(level)] for level in levels]


def code_lengths(codes: Codes) -> torch.Tensor:
    """Where sounds end, by their codes: LongTensor (B,), columns of the coarsest grid, at least 1.

    Codes of padding are 0: a sound ends before the last columns of which more than half of the codes, of all rows,
    levels and groups, are. A prior learns them like any others, and may make a mistake in some. Of grids with one code
    per column, a sound that does end with code 0 loses its last columns.
    """
    coarse = codes.groups[0].shape[2]
    columns = [group.unflatten(2, (coarse, -1)).transpose(1, 2).flatten(2) for group in codes.groups]
    sounding = (torch.cat(columns, dim=2) != 0).float().mean(dim=2) >= 0.5
    return (sounding * torch.arange(1, coarse + 1, device=sounding.device)).amax(dim=1).clamp_min(1)


def frame_mask(lengths: torch.Tensor, num_columns: int, stride: int) -> torch.Tensor:
    """The `attention_mask` of sounds: LongTensor (B, num_columns · stride).

    Args:
        lengths: (B,), in columns.
        num_columns: Of the coarsest grid.
        stride: Frames per column.
    """
    frames = torch.arange(num_columns * stride, device=lengths.device)
    return (frames < lengths[:, None] * stride).long()


def padding_of_codes(layout: CodeLayout, lengths: torch.Tensor) -> list[torch.Tensor]:
    """Which codes are those of padding: one BoolTensor (B, h_g, w_g, D_g) per group.

    Args:
        layout: Of the codes.
        lengths: (B,), in columns of the coarsest grid.
    """
    coarse, masks = layout.groups[0].width, []
    for group in layout.groups:
        columns = torch.arange(group.width, device=lengths.device) // (group.width // coarse)
        padded = (columns >= lengths[:, None])[:, None, :, None]
        masks.append(padded.expand(-1, group.height, -1, group.depth))
    return masks

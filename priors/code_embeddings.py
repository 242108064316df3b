"""Embeddings of codes and of where they stand.

Shape legend: B batch, P positions of all groups (P_g of one group), D codes per position, K codes of a level,
d width of an embedding before the projection, H width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn

from hq_tokenizers.codes import CodeLayout, Codes

_ROTARY_BASE = 100.0


class CodeEmbedding(nn.Module):
    """One learned table per level, e_l(k), of the model's own width (d = H)."""

    def __init__(self, layout: CodeLayout, hidden_size: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(size, hidden_size) for size in layout.codebook_sizes)

    def lookup(self, level: int, codes: torch.Tensor) -> torch.Tensor:
        """e_l(k): LongTensor (…) → (…, d)."""
        return self.tables[level](codes)

    def project(self, group: int, summed: torch.Tensor) -> torch.Tensor:
        """A sum of embeddings of one group's codes as the transformer takes it: (…, d) → (…, H)."""
        return summed

    def forward(self, codes: Codes) -> tuple[torch.Tensor, ...]:
        """Embeds every code: one tensor (B, P_g, D_g, d) per group."""
        return _embed_groups(self.lookup, codes)


class CodeVectorEmbedding(nn.Module):
    """The tokenizer's code vectors, fixed, with a linear projection per group; the interface of `CodeEmbedding`.

    The vectors of a group are divided by one number, so that a sum of independent codes of all depths has a mean square
    of 1 whatever the tokenizer's scale is, and the levels keep their ratio. Until they are set they are NaN.
    """

    nan_when_unset = True
    """That its buffers may be NaN in a saved model."""

    def __init__(self, layout: CodeLayout, hidden_size: int, vector_dims: Sequence[int]) -> None:
        super().__init__()
        self.layout = layout
        for level, (group, _) in enumerate(layout.levels()):
            vectors = torch.full((layout.codebook_sizes[level], vector_dims[group]), math.nan)
            self.register_buffer(f"vectors_{level}", vectors)
        self.projections = nn.ModuleList(nn.Linear(dim, hidden_size, bias=False) for dim in vector_dims)

    def vectors(self, level: int) -> torch.Tensor:
        """The scaled code vectors of a level, (K, d)."""
        return self.get_buffer(f"vectors_{level}")

    @torch.no_grad()
    def set_vectors(self, codebooks: Sequence[torch.Tensor]) -> None:
        """Takes the code vectors of each level, (K, d), coarse to fine.

        Raises:
            ValueError: If their number or a shape is not the layout's, or a value is not finite.
        """
        if len(codebooks) != self.layout.num_levels:
            raise ValueError(f"The layout has {self.layout.num_levels} levels, got {len(codebooks)} codebooks.")
        squares = [0.0] * len(self.layout.groups)
        for level, ((group, _), codebook) in enumerate(zip(self.layout.levels(), codebooks, strict=True)):
            expected = tuple(self.vectors(level).shape)
            if tuple(codebook.shape) != expected:
                raise ValueError(f"The codebook of level {level + 1} must be {expected}, got {tuple(codebook.shape)}.")
            if not codebook.isfinite().all():
                raise ValueError(f"The codebook of level {level + 1} has values that are not finite.")
            squares[group] += codebook.double().square().mean().item()
        for level, ((group, _), codebook) in enumerate(zip(self.layout.levels(), codebooks, strict=True)):
            # A codebook of zeros stays zero.
            self.vectors(level).copy_(codebook.double() / math.sqrt(squares[group] or 1.0))

    def lookup(self, level: int, codes: torch.Tensor) -> torch.Tensor:
        """The vector of a code: LongTensor (…) → (…, d)."""
        return nn.functional.embedding(codes, self.vectors(level))

    def project(self, group: int, summed: torch.Tensor) -> torch.Tensor:
        """A sum of vectors of one group's codes as the transformer takes it: (…, d) → (…, H)."""
        return self.projections[group](summed)

    def forward(self, codes: Codes) -> tuple[torch.Tensor, ...]:
        """Embeds every code: one tensor (B, P_g, D_g, d) per group."""
        return _embed_groups(self.lookup, codes)


def _embed_groups(lookup: Callable[[int, torch.Tensor], torch.Tensor], codes: Codes) -> tuple[torch.Tensor, ...]:
    levels = iter(enumerate(codes.levels()))
    return tuple(
        torch.stack([lookup(level, values.flatten(1)) for level, values in (next(levels) for _ in range(g.depth))], 2)
        for g in codes.layout.groups
    )


class PositionEmbedding(nn.Module):
    """Row plus column plus group embedding of every position."""

    def __init__(self, layout: CodeLayout, hidden_size: int) -> None:
        super().__init__()
        self.rows = nn.ModuleList(nn.Embedding(group.height, hidden_size) for group in layout.groups)
        self.columns = nn.ModuleList(nn.Embedding(group.width, hidden_size) for group in layout.groups)
        self.groups = nn.Embedding(len(layout.groups), hidden_size)

    def forward(self) -> torch.Tensor:
        """(P, H), groups in order, raster within a group."""
        axes = zip(self.rows.parameters(), self.columns.parameters(), self.groups.weight, strict=True)
        return torch.cat([(row[:, None] + column + group).flatten(0, 1) for row, column, group in axes])


class GroupEmbedding(nn.Module):
    """Group embedding of every position, for a transformer that knows rows and columns by rotation."""

    def __init__(self, layout: CodeLayout, hidden_size: int) -> None:
        super().__init__()
        self.sizes = [group.num_positions for group in layout.groups]
        self.groups = nn.Embedding(len(layout.groups), hidden_size)

    def forward(self) -> torch.Tensor:
        """(P, H), groups in order."""
        pairs = zip(self.groups.weight, self.sizes, strict=True)
        return torch.cat([group.expand(size, -1) for group, size in pairs])


def rotary_angles(layout: CodeLayout, head_dim: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Angles of the 2-D rotary embedding: float32 (P, head_dim / 2), half of them for the row, half for the column.

    Angle j of a coordinate x is x·100^(−j/(head_dim/4)). Coordinates are the centres of cells, in cells of the finest
    grid, so that positions of two groups over the same part of the image are turned alike.
    """
    frequencies = _ROTARY_BASE ** (-torch.arange(head_dim // 4, device=device) * 4 / head_dim)
    finest_height = max(group.height for group in layout.groups)
    finest_width = max(group.width for group in layout.groups)
    angles = []
    for group in layout.groups:
        rows = (torch.arange(group.height, device=device) + 0.5) * (finest_height / group.height)
        columns = (torch.arange(group.width, device=device) + 0.5) * (finest_width / group.width)
        axes = torch.meshgrid(rows, columns, indexing="ij")
        angles.append(torch.cat([axis.reshape(-1, 1) * frequencies for axis in axes], dim=-1))
    return torch.cat(angles)


def rotate(states: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Turns each pair (x_j, x_{j+d/2}) of queries or keys (…, T, d) by the angles (T, d/2), in float32 or more."""
    cosine, sine = angles.cos(), angles.sin()
    first, second = states.to(torch.promote_types(states.dtype, torch.float32)).chunk(2, dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], dim=-1).to(states.dtype)

"""The one container every stage speaks: discrete codes of an image, coarse to fine, and their layout.

Shape legend: B batch, g group (one spatial resolution), h_g × w_g its grid, D_g its depth (code levels per position),
T the number of codes of one image. A *level* is one codebook: level indices run over groups, then over depth.

| tokenizer | groups | depth |
|---|---|---|
| SQ-VAE | 1 | 1 |
| RSQ-VAE | 1 | L |
| SQ-VAE-2 | L | 1 |
| hybrid | any | any |
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data._utils.collate import default_collate_fn_map


@dataclass(frozen=True)
class CodeGroup:
    """One grid of code positions, with one codebook size per depth level.

    Args:
        height: Rows of the grid, at least 1.
        width: Columns of the grid, at least 1.
        codebook_sizes: Number of codes K of each depth level, coarse to fine, each at least 1.

    Raises:
        TypeError: If one of them is no integer.
        ValueError: If a dimension or a codebook size is below 1, or no codebook size is given.
    """

    height: int
    width: int
    codebook_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "codebook_sizes", tuple(self.codebook_sizes))
        for name, value in (
            ("height", self.height),
            ("width", self.width),
            *(("codebook size", k) for k in self.codebook_sizes),
        ):
            if isinstance(value, float | str | bool):
                raise TypeError(f"The {name} of a code group is an integer, got {value!r}.")
        if self.height < 1 or self.width < 1:
            raise ValueError(f"A code grid needs a height and width of at least 1, got {self.height}×{self.width}.")
        if not self.codebook_sizes or min(self.codebook_sizes) < 1:
            raise ValueError(
                f"A code group needs one codebook size of at least 1 per depth level, got {self.codebook_sizes}."
            )

    @property
    def depth(self) -> int:
        """Number of codes per position."""
        return len(self.codebook_sizes)

    @property
    def num_positions(self) -> int:
        """Number of positions, height × width."""
        return self.height * self.width

    @property
    def num_codes(self) -> int:
        """Number of codes, positions × depth."""
        return self.num_positions * self.depth

    def __str__(self) -> str:
        same = len(set(self.codebook_sizes)) == 1
        sizes = str(self.codebook_sizes[0]) if same else "/".join(map(str, self.codebook_sizes))
        return f"{self.height}×{self.width}×{self.depth} of {sizes}"


@dataclass(frozen=True)
class CodeLayout:
    """The ordered groups, coarse to fine, that the codes of one image consist of.

    The layout is a property of a tokenizer *for a given image size*: convolutional tokenizers accept any size that
    their stride divides.

    Args:
        groups: The groups, coarse to fine; at least one.

    Raises:
        ValueError: If there is no group.
    """

    groups: tuple[CodeGroup, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        if not self.groups:
            raise ValueError("A code layout needs at least one group.")

    @property
    def num_levels(self) -> int:
        """Number of codebooks, summed over the groups."""
        return sum(group.depth for group in self.groups)

    @property
    def num_codes(self) -> int:
        """Number of codes T of one image."""
        return sum(group.num_codes for group in self.groups)

    @property
    def num_positions(self) -> int:
        """Number of positions of all groups; each holds `depth` codes."""
        return sum(group.num_positions for group in self.groups)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Codebook size K of every level, coarse to fine."""
        return tuple(size for group in self.groups for size in group.codebook_sizes)

    @property
    def bits_per_image(self) -> float:
        """Bits of one image under a uniform prior, Σ_l N_l log2 K_l."""
        return math.fsum(g.num_positions * math.log2(size) for g in self.groups for size in g.codebook_sizes)

    def levels(self) -> Iterator[tuple[int, int]]:
        """(group, depth) index of every level, coarse to fine."""
        for index, group in enumerate(self.groups):
            for depth in range(group.depth):
                yield index, depth

    def first_level(self, group: int) -> int:
        """The first level of a group, by its index: how many levels come before it; for one past the last, all."""
        return sum(item.depth for item in self.groups[:group])

    def level_of_code(self) -> torch.Tensor:
        """Level of each of the T codes in flattened order: LongTensor (T,)."""
        parts, first = [], 0
        for group in self.groups:
            parts.append(torch.arange(first, first + group.depth).repeat(group.num_positions))
            first += group.depth
        return torch.cat(parts)

    def truncate(self, num_levels: int) -> CodeLayout:
        """The layout of the first `num_levels` levels.

        Raises:
            ValueError: If `num_levels` is not between 1 and the number of levels.
        """
        self._check_num_levels(num_levels)
        groups, left = [], num_levels
        for group in self.groups:
            if left == 0:
                break
            depth = min(left, group.depth)
            groups.append(CodeGroup(group.height, group.width, group.codebook_sizes[:depth]))
            left -= depth
        return CodeLayout(tuple(groups))

    def unflatten(self, flat: torch.Tensor | Sequence[Any]) -> Codes:
        """The inverse of `Codes.flatten`.

        Args:
            flat: Integers (B, T), group-major, raster within a group, depth innermost: a tensor or array, a list, or a
                column of `datasets`.

        Raises:
            ValueError: If `flat` is not of shape (B, T).
        """
        if not isinstance(flat, torch.Tensor):
            flat = torch.stack([torch.as_tensor(row) for row in flat]) if len(flat) else torch.empty(0, self.num_codes)
        if flat.ndim != 2 or flat.shape[1] != self.num_codes:
            raise ValueError(
                f"Flat codes of the layout {self} have shape (batch, {self.num_codes}), got {tuple(flat.shape)}."
            )
        parts = flat.split([group.num_codes for group in self.groups], dim=1)
        grids = (part.reshape(-1, g.height, g.width, g.depth) for part, g in zip(parts, self.groups, strict=True))
        return Codes(tuple(grids), self)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description, the inverse of `from_dict`."""
        return {
            "groups": [
                {"height": int(g.height), "width": int(g.width), "codebook_sizes": list(map(int, g.codebook_sizes))}
                for g in self.groups
            ]
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CodeLayout:
        """Builds a layout from the output of `to_dict`.

        Raises:
            ValueError: If a key is missing.
        """
        try:
            groups = [CodeGroup(g["height"], g["width"], tuple(g["codebook_sizes"])) for g in data["groups"]]
        except (KeyError, TypeError) as error:
            raise ValueError(
                'A code layout is described as {"groups": [{"height": …, "width": …, "codebook_sizes": […]}, …]}, '
                f"got {data!r}."
            ) from error
        return cls(tuple(groups))

    @classmethod
    def parse(cls, description: CodeLayout | Mapping[str, Any] | str) -> CodeLayout:
        """Builds a layout from what a user wrote: as `to_dict` describes it, or as it is printed.

        Args:
            description: {"groups": …}, or text such as "8x8 of 512", "8×8×4 of 512" (four codes at every position) or
                "4x4 of 512 + 8x8x2 of 256/128", coarse to fine; or a layout.

        Raises:
            ValueError: If it is none of these.
        """
        if isinstance(description, cls):
            return description
        if isinstance(description, Mapping):
            return cls.from_dict(description)
        if not isinstance(description, str):
            raise ValueError(
                "A code layout is a CodeLayout, a dictionary from to_dict, or text such as '8x8x4 of 512', got "
                f"{description!r}."
            )
        return cls(tuple(_parse_group(part, description) for part in description.split("+")))

    def _check_num_levels(self, num_levels: int) -> None:
        if not 1 <= num_levels <= self.num_levels:
            raise ValueError(f"num_levels must be between 1 and {self.num_levels} for the layout {self}: {num_levels}.")

    def __str__(self) -> str:
        return " + ".join(map(str, self.groups))


_MOST_CODES_AT_A_POSITION = 256
_GROUP = re.compile(r"(\d{1,12})[x×](\d{1,12})(?:[x×](\d{1,12}))? of (\d{1,12}(?:/\d{1,12})*)", re.ASCII)


def _parse_group(text: str, whole: str) -> CodeGroup:
    found = _GROUP.fullmatch(text.strip())
    if found is None:
        raise ValueError(
            "A code layout is written as '8x8 of 512', '8x8x4 of 512' or '4x4 of 512 + 8x8x2 of 256/128', "
            f"got {whole!r}."
        )
    height, width, depth, sizes = found.groups()
    codebook_sizes = tuple(map(int, sizes.split("/")))
    depth = len(codebook_sizes) if depth is None else int(depth)
    if not 1 <= depth <= _MOST_CODES_AT_A_POSITION:
        raise ValueError(f"A position has from 1 to {_MOST_CODES_AT_A_POSITION} codes, got {depth} in {whole!r}.")
    if len(codebook_sizes) == 1:
        codebook_sizes *= depth
    if len(codebook_sizes) != depth:
        raise ValueError(
            f"{text.strip()!r} in {whole!r} has {depth} codes at a position and {len(codebook_sizes)} codebook sizes: "
            "give one size for all of them, or as many as there are codes."
        )
    try:
        return CodeGroup(int(height), int(width), codebook_sizes)
    except ValueError as error:
        raise ValueError(f"{whole!r}: {error}") from error


@dataclass(frozen=True, eq=False)
class Codes:
    """Discrete codes of a batch of images.

    Args:
        groups: One LongTensor (B, h_g, w_g, D_g) per group of the layout, coarse to fine, values in [0, K_level).
            Other integer types are converted.
        layout: The layout the tensors follow.

    Raises:
        TypeError: If a tensor does not hold integers.
        ValueError: If the number of tensors or a shape disagrees with the layout, or batch sizes differ.
    """

    groups: tuple[torch.Tensor, ...]
    layout: CodeLayout

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", tuple(self.groups))
        if len(self.groups) != len(self.layout.groups):
            raise ValueError(f"The layout {self.layout} has {len(self.layout.groups)} groups, got {len(self.groups)}.")
        for tensor, group in zip(self.groups, self.layout.groups, strict=True):
            expected = (*self.groups[0].shape[:1], group.height, group.width, group.depth)
            if tuple(tensor.shape) != expected:
                raise ValueError(f"Codes of the group {group} have shape {expected}, got {tuple(tensor.shape)}.")
            if tensor.dtype.is_floating_point or tensor.dtype.is_complex or tensor.dtype == torch.bool:
                raise TypeError(f"Codes are integers, got {tensor.dtype}.")
        # Embeddings and losses take int64 only; a no-op where the codes are that already.
        object.__setattr__(self, "groups", tuple(tensor.long() for tensor in self.groups))

    @property
    def batch_size(self) -> int:
        """Number of images B."""
        return self.groups[0].shape[0]

    @property
    def device(self) -> torch.device:
        """The device of the code tensors."""
        return self.groups[0].device

    @property
    def num_levels(self) -> int:
        """Number of levels of the layout."""
        return self.layout.num_levels

    @property
    def bits_per_image(self) -> float:
        """Bits of one image under a uniform prior."""
        return self.layout.bits_per_image

    def numel(self) -> int:
        """Number of codes of the batch, B · T; transformers' Trainer counts what a model was shown by it."""
        return self.batch_size * self.layout.num_codes

    def levels(self) -> tuple[torch.Tensor, ...]:
        """The codes level by level: one LongTensor (B, h, w) per level, coarse to fine."""
        return tuple(tensor[..., depth] for tensor in self.groups for depth in range(tensor.shape[-1]))

    def flatten(self) -> torch.Tensor:
        """LongTensor (B, T): group-major, raster within a group, depth innermost."""
        return torch.cat([tensor.flatten(1) for tensor in self.groups], dim=1)

    def truncate(self, num_levels: int) -> Codes:
        """The first `num_levels` levels.

        Raises:
            ValueError: If `num_levels` is not between 1 and the number of levels.
        """
        layout = self.layout.truncate(num_levels)
        return Codes(
            tuple(t[..., : g.depth] for t, g in zip(self.groups, layout.groups, strict=False)),
            layout,
        )

    def to(self, *args: Any, **kwargs: Any) -> Codes:
        """Moves the tensors as `torch.Tensor.to` does."""
        return Codes(tuple(tensor.to(*args, **kwargs) for tensor in self.groups), self.layout)

    def validate(self) -> Codes:
        """Checks every value against its codebook size and returns self. Reads the values, hence synchronises.

        Raises:
            ValueError: Naming the level and the offending value.
        """
        for level, (values, size) in enumerate(zip(self.levels(), self.layout.codebook_sizes, strict=True)):
            check_code_values(values, size, level)
        return self

    @staticmethod
    def cat(codes: Sequence[Codes]) -> Codes:
        """Concatenates batches of equal layout.

        Raises:
            ValueError: If the list is empty or the layouts differ.
        """
        if not codes:
            raise ValueError("Codes.cat needs at least one batch of codes.")
        layout = codes[0].layout
        for other in codes:
            if other.layout != layout:
                raise ValueError(f"Only codes of one layout can be concatenated: {layout} and {other.layout} differ.")
        return Codes(tuple(torch.cat(parts) for parts in zip(*(c.groups for c in codes), strict=True)), layout)

    def __getitem__(self, index: int | slice | Sequence[int] | torch.Tensor) -> Codes:
        """Selects images of the batch; an integer keeps a batch of one."""
        if hasattr(index, "__index__") and not isinstance(index, torch.Tensor):
            index = operator.index(index)
            if not -self.batch_size <= index < self.batch_size:
                raise IndexError(f"Index {index} is out of range for a batch of {self.batch_size} codes.")
            index = slice(index, index + 1 or None)
        elif isinstance(index, tuple):
            raise TypeError("Codes are indexed by image only; use .groups or .levels() for positions.")
        return Codes(tuple(tensor[index] for tensor in self.groups), self.layout)

    def __len__(self) -> int:
        return self.batch_size

    def __iter__(self) -> Iterator[Codes]:
        return (self[index] for index in range(self.batch_size))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Codes):
            return NotImplemented
        return self.layout == other.layout and all(
            torch.equal(a, b) for a, b in zip(self.groups, other.groups, strict=True)
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Codes(batch_size={self.batch_size}, layout={self.layout}, device={self.device})"


def check_code_values(values: torch.Tensor, codebook_size: int, level: int, padded: bool = False) -> None:
    """Checks the codes of a level against the size of its codebook. Reads the values, hence synchronises.

    Args:
        values: Integers of any shape.
        codebook_size: K.
        level: Index of the level; the error counts from 1, as pictures and curves do.
        padded: Whether −1 is accepted as well.

    Raises:
        ValueError: Naming the level and the offending value.
    """
    if not values.numel():
        return
    low, high = (int(bound) for bound in values.aminmax())
    if low < -padded or high >= codebook_size:
        padding = ", or be -1 for padding" if padded else ""
        raise ValueError(
            f"Codes of level {level + 1} must lie in [0, {codebook_size}), the size of its codebook{padding}: found "
            f"{low if low < -padded else high}."
        )


def values_are_at_hand(tensor: torch.Tensor) -> bool:
    """Whether reading values makes no device wait, and there are any: subclasses may stand for values only."""
    return tensor.device.type == "cpu" and type(tensor) is torch.Tensor and not torch.compiler.is_compiling()


def _flatten_codes(codes: Codes) -> tuple[list[torch.Tensor], CodeLayout]:
    return list(codes.groups), codes.layout


def _unflatten_codes(groups: Any, layout: CodeLayout) -> Codes:
    # pytree utilities rebuild containers from arbitrary leaves (shapes, None, …), which validation would refuse.
    codes = object.__new__(Codes)
    object.__setattr__(codes, "groups", tuple(groups))
    object.__setattr__(codes, "layout", layout)
    return codes


torch.utils._pytree.register_pytree_node(
    Codes, _flatten_codes, _unflatten_codes, serialized_type_name="hq_tokenizers.Codes"
)


def _collate_codes(batch: Sequence[Codes], *, collate_fn_map: Any = None) -> Codes:
    return Codes.cat(batch)


# A DataLoader of data sets whose items are, or contain, the codes of single images gives batches of codes.
default_collate_fn_map[Codes] = _collate_codes

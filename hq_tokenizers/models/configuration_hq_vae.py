"""Configuration of the hierarchical image tokenizers: SQ-VAE-2, RSQ-VAE, hybrids, and VQ-VAE-2 and RQ-VAE."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from hq_tokenizers.checks import BeamWidth, CodebookSize, Length, check_value

from .configuration_image_tokenizer import ImageTokenizerConfig, LogVariance

_FIELDS_OF_SINGLE_LAYER = (
    *("num_downsampling", "variance_type", "variance_parametrization", "variance_floor", "dequantization_noise"),
    *("likelihood", "num_classes", "initial_log_concentration", "initial_label_concentration", "fsq_levels"),
    "decoder_softplus",
)


_MOST_LEVELS = 256
_LARGEST_STRIDE = 2**16


@dataclass(frozen=True)
class GroupSpec:
    """One resolution: its stride in pixels, and the codebook size of each of its levels."""

    stride: int
    codebook_sizes: tuple[int, ...]


class HQVAEConfig(ImageTokenizerConfig):
    """Configuration of an `HQVAEModel`: the fields of `ImageTokenizerConfig` and the following.

    The hierarchy is written as one line per resolution, coarse to fine: the stride, then the codebook sizes of its
    levels, of which the first is an injected (or the very first) layer and the others are residual layers.

    | system | code_groups |
    |---|---|
    | SQ-VAE-2 with 4×4 and 8×8 codes of a 32×32 image | `["stride 8: 512", "stride 4: 512"]` |
    | RSQ-VAE with 4 codes per position | `["stride 4: 512 x 4"]` |
    | hybrid | `["stride 8: 512 x 2", "stride 4: 512, 256"]` |

    Args:
        code_groups: The hierarchy, coarse to fine; strides are powers of two that fall.
        quantizer: "gaussian" for HQ-VAE, "vq" for VQ-VAE-2 and RQ-VAE.
        shared_codebook: Whether the levels of one group share a codebook; they must then have equal sizes.
        initial_log_variance: Initial log s_l² of every level.
        log_variance_range: Smallest and largest log s_l².
        learned_prior: Whether codes have a learned prior given the coarser groups, instead of the uniform one; the
            discrete term becomes KL(P̂ ‖ prior). The first group's prior stays uniform.
        progressive: Whether every level l adds the reconstruction from levels 1 … l to the loss (progressive coding);
            missing groups are then filled by a network instead of zeros.
        state_width: With `backbone="diffusers"` and several groups: width of the decoder's state where a finer group
            joins it, that of its "resolution", or that of the "coarser" one it comes from, as in diffusers' decoder.
        beam_width: How `encode` chooses the codes of several levels when nothing else is said: level after level with
            1, else together, with so many sums of codes kept from level to level. Training and `forward` know only 1.
    """

    model_type = "hq_vae"
    stride_field = "code_groups"

    code_groups: Annotated[list[str] | tuple[str, ...], Length(1, 16)] = ("stride 8: 512", "stride 4: 512")
    quantizer: Literal["gaussian", "vq"] = "gaussian"
    shared_codebook: bool = False
    initial_log_variance: LogVariance = math.log(60)
    log_variance_range: Annotated[list[LogVariance] | tuple[LogVariance, ...], Length(2, 2)] = (-14.0, 8.0)
    learned_prior: bool = False
    progressive: bool = False
    state_width: Literal["resolution", "coarser"] = "resolution"
    beam_width: BeamWidth = 1

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.code_groups, list | tuple):
            raise ValueError(f"code_groups is a list with one line per resolution, got {self.code_groups!r}.")
        self.code_groups = [code_group_line(item) for item in self.code_groups]
        if "codebook_size" in kwargs:
            raise ValueError(
                "A hierarchy has no single codebook_size: write the sizes into code_groups, as in 'stride 4: 512 x 4'."
            )
        single = [name for name in _FIELDS_OF_SINGLE_LAYER if name in kwargs]
        if single:
            raise ValueError(f"{', '.join(single)}: of SQVAEConfig only, a hierarchy has no such field.")
        if self.quantizer == "fsq":
            raise ValueError(
                "quantizer='fsq' has one code per position, and a hierarchy several: use SQVAEConfig (model_type "
                "sq_vae, preset fsq_vae), or quantizer 'gaussian' or 'vq'."
            )
        super().__post_init__(**kwargs)

    def _check_relations(self) -> None:
        super()._check_relations()
        groups = self.groups
        if any(coarse.stride <= fine.stride for coarse, fine in itertools.pairwise(groups)):
            raise ValueError(f"The strides of code_groups must fall, coarse to fine: {list(self.code_groups)}.")
        if self.shared_codebook and any(len(set(group.codebook_sizes)) > 1 for group in groups):
            raise ValueError(f"shared_codebook needs equal codebook sizes within a group: {list(self.code_groups)}.")
        if self.grid_dims == 1 and len(groups) > 1:
            raise ValueError(
                f"grid_dims=1 has one resolution, got {list(self.code_groups)}: leave grid_dims at 2 for several, or "
                "write one line with several levels, 'stride 2: 512 x 4'."
            )
        if self.learned_prior and len(groups) == 1:
            raise ValueError("learned_prior predicts finer groups from coarser ones, and there is one group only.")
        if self.learned_prior and not self.is_stochastic:
            raise ValueError("learned_prior needs quantizer='gaussian'.")
        self._check_reservoir(max(size for group in groups for size in group.codebook_sizes))
        low, high = self.log_variance_range
        if not low < high:
            raise ValueError(f"log_variance_range must be [smallest, largest], got {self.log_variance_range}.")
        if not low <= self.initial_log_variance <= high:
            raise ValueError(
                f"initial_log_variance must lie in log_variance_range {self.log_variance_range}, got "
                f"{self.initial_log_variance}."
            )

    def _purposes(self) -> dict[str, tuple[bool, str]]:
        several = self.backbone == "diffusers" and len(self.groups) > 1
        return {
            **super()._purposes(),
            "state_width": (several, "backbone='diffusers' with several groups"),
            "beam_width": (self.has_residual_levels, "a group with several levels"),
        }

    @property
    def groups(self) -> tuple[GroupSpec, ...]:
        """`code_groups`, parsed."""
        return tuple(parse_code_group(code_group_line(item)) for item in self.code_groups)

    @property
    def has_residual_levels(self) -> bool:
        """Whether a grid has several codes per position."""
        return any(len(group.codebook_sizes) > 1 for group in self.groups)

    @property
    def stride(self) -> int:
        """Pixels per position of the coarsest group along each axis."""
        return self.groups[0].stride


def code_group_line(item: Any) -> str:
    """A line of the hierarchy as text; YAML reads it as a mapping, {"stride 4": 512}, where it has no quotes.

    Raises:
        ValueError: If it is neither.
    """
    if isinstance(item, Mapping) and len(item) == 1:
        ((stride, sizes),) = item.items()
        return f"{stride}: {sizes}"
    if isinstance(item, str):
        return item
    raise ValueError(f"A line of code_groups is text, 'stride 4: 512, 256', in quotes if it has commas, got {item!r}.")


def parse_code_group(text: str) -> GroupSpec:
    """Parses one line of the hierarchy: "stride 4: 512 x 4" or "stride 8: 512, 256".

    Raises:
        ValueError: If the line does not follow the grammar, or the stride is not a power of two of at least 2.
    """
    match = re.fullmatch(
        r"\s*stride\s+(\d+)\s*:\s*(\d+(?:\s*[x×]\s*\d+)?(?:\s*,\s*\d+(?:\s*[x×]\s*\d+)?)*)\s*", text, re.I
    )
    if match is None:
        raise ValueError(
            "A line of code_groups is written 'stride S: K', 'stride S: K x LEVELS' or 'stride S: K1, K2, …', got "
            f"{text!r}."
        )
    stride = _number(match[1])
    if not 2 <= stride <= _LARGEST_STRIDE or stride & (stride - 1):
        raise ValueError(
            f"A stride of code_groups must be a power of two of at least 2 and at most {_LARGEST_STRIDE:,}, got "
            f"{stride} in {text!r}."
        )
    sizes: list[int] = []
    for item in match[2].split(","):
        size, *times = map(_number, re.split(r"[xX×]", item))
        sizes += [size] * min(times[0] if times else 1, _MOST_LEVELS + 1)
    if not 1 <= len(sizes) <= _MOST_LEVELS:
        raise ValueError(f"A line of code_groups has at least one level and at most {_MOST_LEVELS:,}, got {text!r}.")
    for size in sizes:
        check_value(f"Each codebook size of code_groups, in {text!r},", size, CodebookSize)
    return GroupSpec(stride, tuple(sizes))


def _number(digits: str) -> int:
    """An integer of any length of digits, at most 10¹²: Python refuses to read thousands of digits."""
    return int(digits) if len(digits.strip()) <= 12 else 10**12

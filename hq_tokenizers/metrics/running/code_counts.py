"""How often each code of each level was used."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from hq_tokenizers.codes import CodeLayout, Codes
from hq_tokenizers.metrics.running.set_identity import SetIdentity


@dataclass
class CodeCounts:
    """Running counts per level.

    Args:
        identity: Which codes were seen, an image's flattened codes being one item.
        layout: Their layout; None while there are none.
        counts: One LongTensor (K_l,) per level.
    """

    identity: SetIdentity = field(default_factory=SetIdentity)
    layout: CodeLayout | None = None
    counts: list[torch.Tensor] = field(default_factory=list)

    @property
    def num_images(self) -> int:
        """Number of images whose codes were seen."""
        return self.identity.num_images

    def update(self, codes: Codes) -> None:
        """Adds the codes of a batch of images.

        Raises:
            ValueError: If a code is outside its codebook or the layout differs from that of earlier codes.
        """
        self._check_layout(codes.validate().layout)
        sizes = codes.layout.codebook_sizes
        counts = [
            torch.bincount(level.flatten().long(), minlength=size).cpu()
            for level, size in zip(codes.levels(), sizes, strict=True)
        ]
        self._add(codes.layout, counts)
        self.identity.update(codes.flatten().long(), "codes")

    def merge(self, other: CodeCounts) -> None:
        """Adds the codes another one has seen.

        Raises:
            ValueError: If the layouts differ.
        """
        if other.layout is None:
            return
        self._check_layout(other.layout)
        self._add(other.layout, other.counts)
        self.identity.merge(other.identity, "codes")

    def _add(self, layout: CodeLayout, counts: list[torch.Tensor]) -> None:
        old = self.counts if self.layout is not None else [torch.zeros_like(count) for count in counts]
        self.layout, self.counts = layout, [a + b for a, b in zip(old, counts, strict=True)]

    def _check_layout(self, layout: CodeLayout) -> None:
        if self.layout is not None and layout != self.layout:
            raise ValueError(
                f"Codes of one layout are counted together: so far {self.layout}, now {layout}. Use a metric for each."
            )

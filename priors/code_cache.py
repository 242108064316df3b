"""Keys and values of the positions seen so far, in memory allocated once."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicCache


class PreallocatedLayer(CacheLayerMixin):
    """One layer's keys and values, (B, heads, max_length, head_dim), filled from the front by slices.

    A growing cache copies everything at every step. transformers' static one returns the unwritten part too, which
    then has to be masked, and counts on the device. This one returns views of what has been written.
    """

    is_sliding = False
    keys: torch.Tensor
    values: torch.Tensor

    def __init__(self, max_length: int) -> None:
        super().__init__()
        self.max_length = max_length
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Allocates for the batch size, type and device of the first states."""
        self.dtype, self.device = key_states.dtype, key_states.device
        batch_size, num_heads, _, head_dim = key_states.shape
        self.keys = key_states.new_empty(batch_size, num_heads, self.max_length, head_dim)
        self.values = torch.empty_like(self.keys)
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Writes the new states behind the old ones and returns all that is written."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        added = key_states.shape[2]
        self.keys.narrow(2, start, added).copy_(key_states)
        self.values.narrow(2, start, added).copy_(value_states)
        return self.keys.narrow(2, 0, self.length), self.values.narrow(2, 0, self.length)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length of the keys that `query_length` more queries will see, and the offset of the first."""
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        """Number of positions written."""
        return self.length

    def get_max_length(self) -> int:
        """Number of positions there is room for."""
        return self.max_length

    def reset(self) -> None:
        """Forgets what is written; the memory is kept."""
        self.length = 0


def new_cache(implementation: str, num_layers: int, max_length: int) -> Cache:
    """An empty cache: `"static"` is allocated once for `max_length` positions, `"dynamic"` grows."""
    if implementation == "dynamic":
        return DynamicCache()
    return Cache(layers=[PreallocatedLayer(max_length) for _ in range(num_layers)])

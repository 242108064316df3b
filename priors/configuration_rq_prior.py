"""Configuration of the spatial and depth transformer prior."""

from __future__ import annotations

from typing import Any, Literal

from .configuration_code_prior import CodePriorConfig, Layers


class RQPriorConfig(CodePriorConfig):
    """Configuration of `RQPriorModel`.

    Args:
        num_depth_layers: Layers of the depth transformer, which runs over the codes of one position; it has the width
            and the heads of the spatial one. A layout that has one code at every position needs no depth transformer
            and gets none.
        position_embedding: How the spatial transformer knows where a position is: "learned" embeddings of row and
            column, or "rotary", queries and keys turned by angles in proportion to row and column, measured in cells
            of the finest grid. Rotary needs a width per head that is a multiple of 4. Both know the group.
        **kwargs: The fields of `CodePriorConfig`.

    Raises:
        ValueError: Naming the field, its value and what is accepted.
    """

    model_type = "rq_prior"

    num_depth_layers: Layers = 2
    position_embedding: Literal["learned", "rotary"] = "learned"

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        head_dim = self.hidden_size // self.num_attention_heads
        if self.position_embedding == "rotary" and head_dim % 4:
            raise ValueError(
                'position_embedding="rotary" turns pairs of values for rows and for columns: hidden_size / '
                f"num_attention_heads must be a multiple of 4, got {head_dim}."
            )

"""What priors share whose depth transformer is autoregressive over the codes of a position.

With h_t the state that a spatial transformer gives position t, e the embedding of a code, A the projection of
embeddings (none when they are learned) and p_l the embedding of a level:

    v_{t,1} = h_t,    v_{t,d} = A Σ_{d'<d} e(k_{t,d'})
    p(k_{t,d} | k_{t,<d}, h_t) = softmax W_l Depth(v_{t,1} + p_l, …, v_{t,d} + p_l)_d,    l the level of depth d

Shape legend: B batch, P_g positions of group g, D_g its depth, K codes of a level, H width, d width of an embedding,
R rows, one for each position of each image.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers.cache_utils import Cache

from .code_cache import new_cache
from .configuration_contextual_prior import ContextualPriorConfig
from .configuration_rq_prior import RQPriorConfig
from .modeling_code_prior import CodePriorModel
from .transformer import CausalTransformer


class DepthPriorModel(CodePriorModel):
    """Base class of the priors with a depth transformer; a subclass has a `level_embedding` and makes the transformer.

    Args:
        config: An `RQPriorConfig` or a `ContextualPriorConfig`.
    """

    config: RQPriorConfig | ContextualPriorConfig
    level_embedding: nn.Embedding
    depth_transformer: CausalTransformer

    def make_depth_transformer(self) -> CausalTransformer:
        """The depth transformer, without layers where no position has several codes."""
        # Attention over a single code would be the identity with idle query and key weights.
        has_depth = any(group.depth > 1 for group in self.layout.groups)
        return CausalTransformer(self.config, self.config.num_depth_layers if has_depth else 0)

    def depth_logits(
        self, spatial: torch.Tensor, embedded: torch.Tensor, group: int, first_level: int
    ) -> list[torch.Tensor]:
        """Teacher-forced logits of a group, per depth (B, P_g, K).

        Args:
            spatial: h, (B, P_g, H).
            embedded: Embedded codes, (B, P_g, D_g, d).
            group: The group.
            first_level: Its first level.
        """
        batch_size, num_positions, depth, _ = embedded.shape
        sums = self.code_embedding.project(group, embedded[:, :, :-1].cumsum(dim=2))
        inputs = torch.cat([spatial[:, :, None], sums], dim=2)
        inputs = self.dropout(inputs + self.level_embedding.weight[first_level : first_level + depth])
        # Positions are independent given the spatial output: they join the batch.
        hidden_states = self.depth_transformer(inputs.flatten(0, 1)).unflatten(0, (batch_size, num_positions))
        return [self.heads[first_level + index](hidden_states[:, :, index]) for index in range(depth)]

    @property
    def _num_layers(self) -> int:
        return self.config.num_hidden_layers + self.config.num_depth_layers


class CachedDepth:
    """The depth transformer at work on R rows, depth after depth: a `DepthPredictor`.

    Args:
        model: The prior.
    """

    def __init__(self, model: DepthPriorModel) -> None:
        self.model = model
        self.max_depth = max(group.depth for group in model.layout.groups)
        self.num_rows = 0
        self.cache = Cache(layers=[])

    def start(self, num_rows: int) -> None:
        """Begins with the first depth of R positions."""
        if num_rows == self.num_rows:
            self.cache.reset()
            return
        # Never longer than a few codes, so it is always allocated once.
        self.cache = new_cache("static", len(self.model.depth_transformer.layers), self.max_depth)
        self.num_rows = num_rows

    def logits(self, depth_inputs: torch.Tensor, level: int) -> torch.Tensor:
        """Logits (R, K) of a level, given v_{t,d}, (R, 1, H); the cache holds v_{t,<d}."""
        inputs = depth_inputs + self.model.level_embedding.weight[level]
        return self.model.heads[level](self.model.depth_transformer(inputs, self.cache))[:, 0]

    def embed(self, level: int, codes: torch.Tensor) -> torch.Tensor:
        """e(k), (R, 1, d), of codes (R,) of a level."""
        return self.model.code_embedding.lookup(level, codes)[:, None]

    def project(self, group: int, summed: torch.Tensor) -> torch.Tensor:
        """A Σ e(k), (R, 1, H)."""
        return self.model.code_embedding.project(group, summed)

"""RQ-Transformer prior: a spatial transformer over positions, a depth transformer over the codes of a position.

With k_{t,d} the code at position t and depth d, e its embedding, A the projection of embeddings (none when they are
learned) and c_t the embedding of position, group and class:

    h_t = Spatial(u_1, …, u_t)_t,    u_t = c_t + A Σ_d e(k_{t−1,d})     (no sum at t = 1)
    p(k_{t,d} | k_{<t}, k_{t,<d}) = p(k_{t,d} | k_{t,<d}, h_t)    by the depth transformer, see `modeling_depth_prior`

Positions run over the groups in order, raster within a group. Unlike in the original, the class reaches every position,
not only the first one, which costs nothing and makes labels harder to forget over long sequences. Conditioning vectors
are attended to by every layer of the spatial transformer.

Shape legend: B batch, P positions of all groups, P_g positions of group g, K codes of a level, L levels, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel as PreTrainedModel  # diffusers looks for it beside the class
from transformers.utils import ModelOutput

from hq_tokenizers.codes import Codes

from .code_cache import new_cache
from .code_embeddings import GroupEmbedding, PositionEmbedding, rotary_angles
from .conditions import Conditions
from .configuration_code_generation import CodeGenerationConfig
from .configuration_rq_prior import RQPriorConfig
from .fast_layers import with_fast_layers
from .generation_rq_prior import AutoregressiveSampler
from .known_codes import KnownCodes
from .likelihood import code_cross_entropy, level_targets
from .modeling_code_prior import refuses_labels
from .modeling_depth_prior import CachedDepth, DepthPriorModel
from .progress import OnStep
from .transformer import CausalTransformer


@dataclass
class RQPriorOutput(ModelOutput):
    """Output of `RQPriorModel.forward`.

    Args:
        loss: Mean cross-entropy in nats per code, a scalar.
        logits: One tensor (B, P_g, K) per level, coarse to fine; teacher-forced.
    """

    loss: torch.Tensor | None = None
    logits: tuple[torch.Tensor, ...] | None = None


class RQPriorModel(DepthPriorModel):
    """Autoregressive transformer over the codes of any `CodeLayout` (Lee et al., CVPR 2022, arXiv 2203.01941).

    Args:
        config: An `RQPriorConfig`.
    """

    config: RQPriorConfig
    config_class = RQPriorConfig
    spatial_transformer: CausalTransformer
    _supports_flash_attn = True

    def __init__(self, config: RQPriorConfig) -> None:
        super().__init__(config)
        learned = config.position_embedding == "learned"
        self.position_embedding = (PositionEmbedding if learned else GroupEmbedding)(self.layout, config.hidden_size)
        self.level_embedding = nn.Embedding(self.layout.num_levels, config.hidden_size)
        has_memory = config.cross_attention_dim is not None
        self.spatial_transformer = CausalTransformer(config, config.num_hidden_layers, has_memory)
        self.depth_transformer = self.make_depth_transformer()
        self.post_init()

    @refuses_labels
    def forward(
        self,
        codes: Codes | torch.Tensor,
        class_labels: torch.Tensor | None = None,
        soft_targets: Sequence[torch.Tensor] | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        return_loss: bool = True,
        speaker_ids: torch.Tensor | None = None,
    ) -> RQPriorOutput:
        """Teacher-forced pass.

        Args:
            codes: Codes of the config's layout, B images; or flat (B, T), as `Codes.flatten` gives them.
            class_labels: LongTensor (B,) in [0, num_classes), −1 for no class; None gives all images no class.
            soft_targets: Per level the probabilities (B, P_g, K) that the tokenizer's posterior gives each code; the
                loss is the cross-entropy with them instead of the codes, which remain the model's input.
            encoder_hidden_states: Conditioning vectors (B, S, E), E = `config.cross_attention_dim`; None for none. In
                training the whole condition of an image is hidden with probability `config.label_dropout`.
            encoder_attention_mask: (B, S), True where a vector counts; a row without any is unconditional.
            return_loss: False skips the loss.
            speaker_ids: LongTensor (B,) in [0, num_speakers), −1 for no speaker; None gives no image a speaker.

        Returns:
            `RQPriorOutput`; its loss has label smoothing in training only.

        Raises:
            TypeError: If `codes` are no integers.
            ValueError: If the layout differs from the model's, a shape is wrong, or (checked where reading values does
                not make a device wait) a value is out of range.
        """
        codes, conditions = self._check_inputs(
            codes, class_labels, encoder_hidden_states, encoder_attention_mask, speaker_ids
        )
        conditions = self._hide_conditions(conditions)
        targets = level_targets(codes, soft_targets)
        logits = self._teacher_forced_logits(codes, conditions)
        if not return_loss:
            return RQPriorOutput(logits=logits)
        smoothing = self.config.label_smoothing if self.training else 0.0
        losses = [code_cross_entropy(p, q, smoothing) for p, q in zip(logits, targets, strict=True)]
        return RQPriorOutput(loss=torch.cat(losses, dim=1).mean(), logits=logits)

    def log_prob_per_level(
        self,
        codes: Codes | torch.Tensor,
        class_labels: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        speaker_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Exact log-probability in nats of the codes of each level, given those before them: (B, L).

        Args:
            codes: As in `forward`.
            class_labels: As in `forward`.
            encoder_hidden_states: As in `forward`.
            encoder_attention_mask: As in `forward`.
            speaker_ids: As in `forward`.

        Raises:
            TypeError: As `forward` does.
            ValueError: As `forward` does.
        """
        codes, conditions = self._check_inputs(
            codes, class_labels, encoder_hidden_states, encoder_attention_mask, speaker_ids
        )
        logits, targets = self._teacher_forced_logits(codes, conditions), level_targets(codes, None)
        losses = [code_cross_entropy(p, k).sum(dim=1) for p, k in zip(logits, targets, strict=True)]
        return -torch.stack(losses, dim=1)

    def num_sampling_steps(self, config: CodeGenerationConfig) -> int:
        """One step per position."""
        return self.layout.num_positions

    def sample(
        self,
        conditions: Conditions,
        generators: Sequence[torch.Generator],
        config: CodeGenerationConfig,
        known: KnownCodes | None,
        on_step: OnStep,
    ) -> Codes:
        """Samples position by position, see `AutoregressiveSampler`."""

        def predictor_for(rows: Conditions) -> RQPredictor:
            return RQPredictor(self, rows, config.cache_implementation or "static")

        sampler = AutoregressiveSampler(
            layout=self.layout,
            predictor_for=predictor_for,
            conditions=conditions,
            generators=generators,
            config=config,
            known=known,
            on_step=on_step,
        )
        return sampler.run()

    def position_angles(self) -> torch.Tensor | None:
        """Rotary angles of the positions, (P, head_dim / 2); None with learned positions."""
        if self.config.position_embedding == "learned":
            return None
        return rotary_angles(self.layout, self.config.hidden_size // self.config.num_attention_heads, self.device)

    def _teacher_forced_logits(self, codes: Codes, conditions: Conditions) -> tuple[torch.Tensor, ...]:
        embedded = self.code_embedding(codes)
        summed = [self.code_embedding.project(index, group.sum(dim=2)) for index, group in enumerate(embedded)]
        previous = F.pad(torch.cat(summed, dim=1)[:, :-1], (0, 0, 1, 0))
        inputs = self.dropout(self.position_context(conditions.labels, conditions.speakers) + previous)
        hidden_states = self.spatial_transformer(
            inputs, angles=self.position_angles(), memory=self.encode_conditions(conditions)
        )
        logits: list[torch.Tensor] = []
        sizes = [group.num_positions for group in self.layout.groups]
        for index, (spatial, group) in enumerate(zip(hidden_states.split(sizes, dim=1), embedded, strict=True)):
            logits += self.depth_logits(spatial, group, index, first_level=len(logits))
        return tuple(logits)


class RQPredictor:
    """The model at work on B' rows, position after position: a `PositionPredictor`.

    Args:
        model: The prior.
        conditions: Of the rows.
        cache_implementation: Of the keys and values of the positions so far, see `new_cache`.
    """

    def __init__(self, model: RQPriorModel, conditions: Conditions, cache_implementation: str) -> None:
        self.model = with_fast_layers(model, len(conditions))
        self.depth = CachedDepth(self.model)
        self.context = model.position_context(conditions.labels, conditions.speakers)
        self.angles = model.position_angles()
        self.memory = model.encode_conditions(conditions)
        num_positions = model.layout.num_positions
        self.spatial_cache = new_cache(cache_implementation, len(model.spatial_transformer.layers), num_positions)
        self.position = 0

    def next_position(self, previous: torch.Tensor | None) -> torch.Tensor:
        """h_t = v_{t,1} of the next position, (B', 1, H), given A Σ_d e(k_{t−1,d})."""
        inputs = self.context[:, self.position, None]
        if previous is not None:
            inputs = inputs + previous
        angles = None if self.angles is None else self.angles[self.position, None]
        self.position += 1
        return self.model.spatial_transformer(inputs, self.spatial_cache, angles, self.memory)

"""Contextual RQ-Transformer prior: positions in any order, many at a time; the codes of a position one by one.

Groups are taken coarse to fine. Within a group positions are hidden as a whole and predicted from all visible ones, on
both sides, by a bidirectional spatial transformer; the codes of a position by a depth transformer (Lee et al.,
Draft-and-Revise, NeurIPS 2022, arXiv 2206.04452). With k_t the D_g codes of position t, V the visible positions of its
group, k_{<g} the codes of the coarser groups:

    p(k) = Π_g p(k_g | k_{<g}),      p(k_t | k_V, k_{<g}) = Π_d p(k_{t,d} | k_{t,<d}, h_t)    for every hidden t
    h = Spatial(x),      x_t = c_t + A Σ_d e(k_{t,d})  where t is visible,      x_t = c_t + m_g  where it is hidden

c_t embeds position, group and class, e a code, m_g a hidden position, and A projects (nothing when embeddings are
learned). The depth transformer is that of `modeling_depth_prior`. A position attends to its own group and the coarser
ones.

Shape legend: B batch, P_g positions of group g, D_g its depth, K codes of a level, L levels, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput

from hq_tokenizers.codes import Codes
from hq_tokenizers.randomness import GeneratorLike

from .code_embeddings import PositionEmbedding
from .conditions import Conditions
from .configuration_code_generation import CodeGenerationConfig
from .configuration_contextual_prior import ContextualPriorConfig
from .generation_contextual_prior import DraftAndReviseSampler, draft_settings, rounds_per_group
from .groupwise_inputs import GroupwiseInputs
from .known_codes import KnownCodes
from .likelihood import code_cross_entropy, level_targets, masked_cross_entropy
from .masking import bound_masks, draw_counts, draw_parts, mask_generators, ranks, split_estimation
from .modeling_code_prior import refuses_labels
from .modeling_depth_prior import CachedDepth, DepthPriorModel
from .progress import OnStep
from .transformer import GroupwiseTransformer


@dataclass
class ContextualPriorOutput(ModelOutput):
    """Output of `ContextualPriorModel.forward`.

    Args:
        loss: Mean cross-entropy in nats per code of the hidden positions of the group drawn for each image, a scalar.
        logits: One tensor (B, P_g, K) per level, coarse to fine; over the depths of a position teacher-forced. They
            mean something where `predicted` is True.
        predicted: One BoolTensor (B, P_g) per level, True for the codes that were hidden and asked for.
    """

    loss: torch.Tensor | None = None
    logits: tuple[torch.Tensor, ...] | None = None
    predicted: tuple[torch.Tensor, ...] | None = None


class ContextualPriorModel(DepthPriorModel):
    """Bidirectional transformer over the positions of any `CodeLayout`, with a depth transformer in each.

    Args:
        config: A `ContextualPriorConfig`.
    """

    config: ContextualPriorConfig
    config_class = ContextualPriorConfig
    spatial_transformer: GroupwiseTransformer

    def __init__(self, config: ContextualPriorConfig) -> None:
        super().__init__(config)
        self.position_embedding = PositionEmbedding(self.layout, config.hidden_size)
        self.mask_embedding = nn.Embedding(len(self.layout.groups), config.hidden_size)
        self.level_embedding = nn.Embedding(self.layout.num_levels, config.hidden_size)
        self.spatial_transformer = GroupwiseTransformer(
            config, self.layout, config.num_hidden_layers, has_memory=config.cross_attention_dim is not None
        )
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
    ) -> ContextualPriorOutput:
        """Training pass: draws a group for every image and hides random positions of it, and all finer groups.

        Groups are drawn in proportion to their number of codes, evenly spread over the batch. The draws come from
        torch's global generator, in evaluation mode too; `log_prob` is the reproducible figure.

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
            `ContextualPriorOutput`; its loss has label smoothing in training only.

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
        hidden, asked = self._draw_hidden(codes.batch_size, codes.device)
        predicted = tuple(asked[group] for group, _ in self.layout.levels())
        logits = self._logits(codes, hidden, conditions)
        if not return_loss:
            return ContextualPriorOutput(logits=logits, predicted=predicted)
        smoothing = self.config.label_smoothing if self.training else 0.0
        loss = masked_cross_entropy(logits, targets, predicted, smoothing)
        return ContextualPriorOutput(loss=loss, logits=logits, predicted=predicted)

    def log_prob_per_level(
        self,
        codes: Codes | torch.Tensor,
        class_labels: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        speaker_ids: torch.Tensor | None = None,
        num_masks: int = 8,
        generator: GeneratorLike = None,
    ) -> torch.Tensor:
        """Estimates a lower bound of the log-probability of the codes, level by level: (B, L).

        The model has one likelihood for each order σ in which a group's positions can be drafted one by one. The bound
        is their mean, and that of the mixture of all orders, which a draft with a step per position and no revision
        samples (Uria et al., ICML 2014), is at least as high:

            log E_σ p_σ(k_g | k_{<g}) ≥ E_σ log p_σ(k_g | k_{<g})

        Within a position the terms of the depths are exact, and a level gets those of its depth. The estimate, from
        random masks, is unbiased, see `bound_masks`. Drafts in fewer steps, and revised ones, follow another
        distribution, for which there is no figure.

        Args:
            codes: As in `forward`.
            class_labels: As in `forward`.
            encoder_hidden_states: As in `forward`.
            encoder_attention_mask: As in `forward`.
            speaker_ids: As in `forward`.
            num_masks: Masks per group, hence passes through the model.
            generator: Noise of the masks, see `sample_generators`. None hides the same positions in every image, so
                that the value depends on the image only and images can be ranked by it; averages over a data set want
                a seed.

        Raises:
            TypeError: As `forward` does.
            ValueError: As `forward` does, or if `num_masks` is below 1.
        """
        codes, conditions = self._check_inputs(
            codes, class_labels, encoder_hidden_states, encoder_attention_mask, speaker_ids
        )
        generators = mask_generators(num_masks, generator, codes.batch_size)
        predictor, bounds = ContextualPredictor(self, conditions), []
        for group in codes.groups:
            values = group.flatten(1, 2)
            bounds += self._group_bounds(predictor, values, num_masks, generators)
            predictor.finish_group(values)
        return torch.stack(bounds, dim=1)

    def log_prob_of_split(
        self,
        codes: Codes,
        class_labels: torch.Tensor | None,
        indices: Sequence[int],
        num_images: int,
        speaker_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As the base class says; with as many masks per image and group as make 10,000 of all images, at most 8."""
        estimation = split_estimation(indices, num_images)
        return self.log_prob_per_level(codes, class_labels, speaker_ids=speaker_ids, **estimation)

    def num_sampling_steps(self, config: CodeGenerationConfig) -> int:
        """The steps of all rounds of all groups."""
        return sum(map(sum, rounds_per_group(self.layout, config)))

    def step_settings(self, config: CodeGenerationConfig) -> dict[str, int | Sequence[int]]:
        """The steps of a group's draft, those of a revision, and how many revisions there are."""
        return draft_settings(config)

    def sample(
        self,
        conditions: Conditions,
        generators: Sequence[torch.Generator],
        config: CodeGenerationConfig,
        known: KnownCodes | None,
        on_step: OnStep,
    ) -> Codes:
        """Drafts and revises group by group, see `DraftAndReviseSampler`."""

        def predictor_for(rows: Conditions) -> ContextualPredictor:
            return ContextualPredictor(self, rows)

        sampler = DraftAndReviseSampler(
            layout=self.layout,
            predictor_for=predictor_for,
            conditions=conditions,
            generators=generators,
            config=config,
            known=known,
            on_step=on_step,
        )
        return sampler.run()

    def embed_positions(self, group: int, embedded: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """A Σ_d e(k), or m_g where hidden: (B, P_g, D_g, d) and BoolTensor (B, P_g) → (B, P_g, H)."""
        visible = self.code_embedding.project(group, embedded.sum(dim=2))
        return torch.where(hidden[..., None], self.mask_embedding.weight[group], visible)

    def _logits(self, codes: Codes, hidden: Sequence[torch.Tensor], conditions: Conditions) -> tuple[torch.Tensor, ...]:
        """Logits (B, P_g, K) of every level with the positions `hidden`, one BoolTensor (B, P_g) per group, hidden."""
        embedded = self.code_embedding(codes)
        positions = [
            self.embed_positions(index, *pair) for index, pair in enumerate(zip(embedded, hidden, strict=True))
        ]
        inputs = self.dropout(
            self.position_context(conditions.labels, conditions.speakers) + torch.cat(positions, dim=1)
        )
        states = self.spatial_transformer(inputs, len(self.layout.groups), self.encode_conditions(conditions))
        per_group = states.split([group.num_positions for group in self.layout.groups], dim=1)
        logits: list[torch.Tensor] = []
        for index, (spatial, values) in enumerate(zip(per_group, embedded, strict=True)):
            logits += self.depth_logits(spatial, values, index, first_level=len(logits))
        return tuple(logits)

    def _draw_hidden(
        self, batch_size: int, device: torch.device
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """Training's masks per group: hidden positions, and those to predict, (B, P_g) each."""
        groups = self.layout.groups
        chosen = draw_parts(torch.tensor([group.num_codes for group in groups]).to(device), batch_size)
        sizes = torch.tensor([group.num_positions for group in groups]).to(device)
        counts = draw_counts(self.config.masking_schedule, sizes[chosen])
        hidden, asked = [], []
        for index, group in enumerate(groups):
            drawn = ranks(torch.rand(batch_size, group.num_positions, device=device)) < counts[:, None]
            asked.append(drawn & (chosen == index)[:, None])
            hidden.append(asked[-1] | (chosen < index)[:, None])
        return tuple(hidden), tuple(asked)

    def _group_bounds(
        self,
        predictor: ContextualPredictor,
        codes: torch.Tensor,
        num_masks: int,
        generators: Sequence[torch.Generator],
    ) -> list[torch.Tensor]:
        """The bound for each level of the next group, (B,), from its codes (B, P_g, D_g)."""
        totals = [torch.zeros(len(codes), device=codes.device) for _ in range(codes.shape[-1])]
        for hidden, weights in bound_masks(codes.shape[1], num_masks, generators, codes.device):
            for depth, logits in enumerate(predictor.logits(codes, hidden)):
                losses = code_cross_entropy(logits, codes[..., depth])
                totals[depth] = totals[depth] - (losses * hidden).sum(dim=1) * weights
        return totals


class ContextualPredictor:
    """The model at work on B rows, group after group: a `GroupPredictor`, in sampling and in `log_prob`.

    Args:
        model: The prior.
        conditions: Of the B rows.
    """

    def __init__(self, model: ContextualPriorModel, conditions: Conditions) -> None:
        self.model = model
        self.depth = CachedDepth(model)
        self.inputs = GroupwiseInputs(model, conditions)

    def finish_group(self, codes: torch.Tensor) -> None:
        """Takes the codes (B, P_g, D_g) of the next group, all of which are known now."""
        visible = torch.zeros_like(codes[..., 0], dtype=torch.bool)
        self.inputs.finish(self.model.embed_positions(self.inputs.group, self._embed(codes), visible))

    def states(self, codes: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """h, (B, P_g, H), of the group that follows the finished ones.

        Args:
            codes: (B, P_g, D_g); those of hidden positions do not matter.
            hidden: BoolTensor (B, P_g).
        """
        return self.inputs.states(self.model.embed_positions(self.inputs.group, self._embed(codes), hidden))

    def logits(self, codes: torch.Tensor, hidden: torch.Tensor) -> list[torch.Tensor]:
        """Teacher-forced logits of that group, per depth (B, P_g, K); arguments as of `states`."""
        group, layout = self.inputs.group, self.model.layout
        return self.model.depth_logits(self.states(codes, hidden), self._embed(codes), group, layout.first_level(group))

    def _embed(self, codes: torch.Tensor) -> torch.Tensor:
        """e(k) of codes of the next group, (B, P_g, D_g, d)."""
        first = self.model.layout.first_level(self.inputs.group)
        lookup = self.model.code_embedding.lookup
        return torch.stack([lookup(first + depth, values) for depth, values in enumerate(codes.unbind(-1))], dim=2)

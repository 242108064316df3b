"""The schedule by which a masked prior reveals the codes of a level, in the manner of diffusers' schedulers.

Importing this module imports diffusers, which is slow; the model does so when it needs its scheduler.

Shape legend: B samples, P positions of a level, K codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils import BaseOutput

from hq_tokenizers.randomness import sample_gumbel

from .masking import check_decoding, num_hidden, ranks
from .sampling import LevelSampling, sample_codes


@dataclass
class MaskedCodeSchedulerOutput(BaseOutput):
    """Output of `MaskedCodeScheduler.step`.

    Args:
        prev_sample: Codes (B, P) after the step, `hidden_code` where they are not revealed yet.
        pred_original_sample: Codes (B, P) with the present guess at every position, for previews.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor


# diffusers' own two base classes disagree on the type of the file's name.
class MaskedCodeScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Reveals the codes of a level in a few steps (Chang et al., CVPR 2022, arXiv 2202.04200, section 3.2).

    Every step samples a code at each hidden position from the model's distribution and keeps those with the highest

        log p(code) + choice_temperature · (1 − steps done / steps) · Gumbel noise

    so many that the share of hidden codes follows the mask schedule. p is the model's distribution after guidance,
    before temperature and filters. With the order "random" the positions kept are drawn evenly instead: with as many
    steps as positions the samples then follow the model's distribution, averaged over all orders of positions.

    Args:
        num_steps: Steps per level; an integer, or a list of one per level.
        masking_schedule: How the share of hidden codes falls, see `masking.mask_ratio`.
        decoding_order: "confidence" or "random".
        choice_temperature: Strength of the noise on the confidences, ≥ 0.

    Raises:
        ValueError: Naming the setting, its value and what is accepted.
    """

    order = 1
    hidden_code = -1

    @register_to_config
    def __init__(
        self,
        num_steps: int | list[int] = 12,
        masking_schedule: str = "cosine",
        decoding_order: str = "confidence",
        choice_temperature: float = 4.5,
    ) -> None:
        settings = check_decoding(
            num_steps=num_steps,
            masking_schedule=masking_schedule,
            decoding_order=decoding_order,
            choice_temperature=choice_temperature,
        )
        # Again, as plain Python, which can be saved.
        self.register_to_config(**settings)
        self.timesteps = torch.empty(0, dtype=torch.long)

    def set_timesteps(self, num_inference_steps: int) -> None:
        """Prepares a level that is to be revealed in `num_inference_steps` steps.

        `timesteps` then holds num_inference_steps − 1, …, 0: the steps that remain after each one.
        """
        self.timesteps = torch.arange(num_inference_steps).flip(0)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int,
        sample: torch.Tensor,
        num_unknown: torch.Tensor,
        sampling: LevelSampling,
        generators: Sequence[torch.Generator],
    ) -> MaskedCodeSchedulerOutput:
        """Reveals some of the hidden codes.

        Args:
            model_output: Logits (B, P, K), after guidance.
            timestep: The entry of `timesteps`.
            sample: LongTensor (B, P), `hidden_code` (−1) where a code is hidden.
            num_unknown: LongTensor (B,), how many codes were hidden before the first step.
            sampling: Temperature and filters of the level.
            generators: One per sample.
        """
        num_steps = len(self.timesteps)
        done = num_steps - int(timestep)
        hidden = sample == self.hidden_code
        gumbel = sample_gumbel(model_output.shape[1:], generators, model_output.device)
        guess = torch.where(hidden, sample_codes(model_output, gumbel, sampling), sample)
        scores = sample_gumbel(sample.shape[1:], generators, model_output.device)
        if self.config["decoding_order"] == "confidence":
            log_probabilities = model_output.float().log_softmax(-1)
            confidence = log_probabilities.gather(-1, guess[..., None])[..., 0]
            scores = confidence + self.config["choice_temperature"] * (1 - done / num_steps) * scores
        remaining = num_hidden(self.config["masking_schedule"], done, num_steps, num_unknown)
        # What is revealed stays so: it ranks behind all that is hidden.
        stay_hidden = ranks(scores.masked_fill(~hidden, torch.inf)) < remaining[:, None]
        return MaskedCodeSchedulerOutput(guess.masked_fill(stay_hidden, self.hidden_code), guess)

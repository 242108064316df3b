"""Configuration of the masked prior."""

from __future__ import annotations

from typing import Any

from .configuration_code_prior import CodePriorConfig
from .masking import MaskingSchedule, scheduler_settings


class MaskedPriorConfig(CodePriorConfig):
    """Configuration of `MaskedPriorModel`.

    Args:
        masking_schedule: Distribution of the share of codes that training hides: γ(u) of this schedule, u uniform in
            [0, 1], see `masking.mask_ratio`. With "linear" the loss is the bound that `log_prob` estimates; "cosine"
            gives more weight to nearly empty images, from which sampling starts.
        scheduler_config: Settings of the `MaskedCodeScheduler` that reveals the codes; None for its defaults. Follows
            `model.scheduler`.
        **kwargs: The fields of `CodePriorConfig`.

    Raises:
        ValueError: Naming the field, its value and what is accepted.
    """

    model_type = "masked_prior"

    masking_schedule: MaskingSchedule = "cosine"
    scheduler_config: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.scheduler_config is not None:
            self.scheduler_config = scheduler_settings(self.scheduler_config, "scheduler_config.")

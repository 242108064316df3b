"""Configuration of the contextual prior."""

from __future__ import annotations

from .configuration_code_prior import CodePriorConfig, Layers
from .masking import MaskingSchedule


class ContextualPriorConfig(CodePriorConfig):
    """Configuration of `ContextualPriorModel`.

    Args:
        num_depth_layers: Layers of the depth transformer, which runs over the codes of one position; it has the width
            and the heads of the spatial one. A layout that has one code at every position needs no depth transformer
            and gets none.
        masking_schedule: Distribution of the share of positions that training hides: γ(u) of this schedule, u uniform
            in [0, 1], see `masking.mask_ratio`. With "linear" the loss is the bound that `log_prob` estimates;
            "cosine", the paper's, gives more weight to nearly empty images, from which sampling starts.
        **kwargs: The fields of `CodePriorConfig`.

    Raises:
        ValueError: Naming the field, its value and what is accepted.
    """

    model_type = "contextual_prior"

    num_depth_layers: Layers = 2
    masking_schedule: MaskingSchedule = "cosine"

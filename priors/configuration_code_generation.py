"""The one configuration of how codes are sampled from a prior; saved beside it as generation_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from transformers import GenerationConfig

from hq_tokenizers.checks import Count, Fraction, Length, NotNegative, Number, Positive, Range, check_value, converted

from .masking import DECODING_SETTINGS, check_decoding
from .sampling import GuidanceSchedule, LevelSampling, guidance_scales

DRAFT_SETTINGS: dict[str, Any] = {
    "num_draft_steps": Count | Annotated[list[Count], Length(1, 10_000)] | None,
    "num_revise_steps": Annotated[int, Range(2, 2**31 - 1)] | None,
    "num_revisions": Annotated[int, Range(0, 10_000)] | None,
}
"""How contextual priors draft and revise, with what is accepted."""
_DEFAULTS: dict[str, Any] = {
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "guidance_scale": 1.0,
    "guidance_schedule": "constant",
    "guidance_power": 1.0,
    "guidance_interval": [0.0, 1.0],
    "num_candidates": 1,
    "cache_implementation": None,
    **dict.fromkeys(DECODING_SETTINGS),
    **dict.fromkeys(DRAFT_SETTINGS),
    # Fixed, so that transformers does not call sampling settings useless; temperature 0 is the greedy choice.
    "do_sample": True,
}
_METADATA = ("transformers_version",)
# Settings that only one kind of prior understands; None leaves the choice to the model.
_OF_ONE_MODEL = {
    "cache_implementation": "rq_prior",
    **dict.fromkeys(DECODING_SETTINGS, "masked_prior"),
    **dict.fromkeys(DRAFT_SETTINGS, "contextual_prior"),
}
_PER_LEVEL: dict[str, Any] = {
    "temperature": NotNegative,
    "top_k": Annotated[int, Range(0, 2**31 - 1)],
    "top_p": Annotated[Number, Range(0, 1, above=True)],
    "min_p": Fraction,
}
"""What each level's sampling accepts, one value for all levels or a list of one per level."""
_OF_A_CALL: dict[str, Any] = {
    "guidance_scale": NotNegative,
    "guidance_schedule": GuidanceSchedule,
    "guidance_power": Positive,
    "guidance_interval": Annotated[list[Annotated[Number, Range(0, 1)]], Length(2, 2)],
    "num_candidates": Annotated[int, Range(1, 1_000_000)],
    "cache_implementation": Literal["static", "dynamic"] | None,
}
_CHECKED: dict[str, Any] = (
    _OF_A_CALL
    | DRAFT_SETTINGS
    | {
        name: hint | Annotated[list[hint], Length(1, 10_000)]  # type: ignore[valid-type]
        for name, hint in _PER_LEVEL.items()
    }
)


def settings_from_options(section: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by name, in which numbers may be texts, as 1e-1 is in YAML; unknown names are left as they are."""
    hints = DECODING_SETTINGS | _CHECKED
    return {name: converted(hints.get(name, Any), value, texts=True) for name, value in section.items()}


class CodeGenerationConfig(GenerationConfig):
    """How a prior samples codes: one configuration for all priors.

    A setting that only one kind of prior understands is None unless it is given, and refused by the other kinds.
    Everything that is "one or one per level" takes a number, used for every level, or a list with one number for each
    level of the layout, coarse to fine.

    Args:
        temperature: Divides the logits, ≥ 0; one or one per level. 1 samples the model's distribution, 0 takes the
            likeliest code.
        top_k: Keep the k likeliest codes, 0 keeps all; one or one per level.
        top_p: Keep the fewest likeliest codes that hold this share of the probability, in (0, 1]; one or one per level.
        min_p: Drop codes below this share of the likeliest code's probability, in [0, 1); one or one per level.
        guidance_scale: s in u + s·(c − u), ≥ 0; 1 turns guidance off. Needs a conditional prior.
        guidance_schedule: "constant", "linear", "power-cosine" or "interval", see `guidance_scales`.
        guidance_power: Exponent of the power-cosine schedule, > 0.
        guidance_interval: [first, last] of the interval schedule, fractions of the steps with 0 ≤ first ≤ last ≤ 1.
        num_candidates: Rejection sampling: candidates drawn for each sample, of which the one with the highest score
            is kept; 1 turns it off. Time grows in proportion, memory does not.
        cache_implementation: Autoregressive priors: "static" (allocated once, fastest; the default) or "dynamic"
            (grows; less memory at first). Both give the same samples.
        num_steps: Masked priors: steps in which a level's codes are revealed, ≥ 1; one or one per level. Never more
            than the level has positions are taken.
        masking_schedule: Masked priors: how many codes remain hidden, see `masking.mask_ratio`.
        decoding_order: Masked priors: "confidence" reveals the codes first of which the model is surest, "random" any.
        choice_temperature: Masked priors: strength, ≥ 0, of the noise on the confidences; falls to 0 at the last step.
            Where one of these four is not given, the model's scheduler says.
        num_draft_steps: Contextual priors: steps in which all positions of a group are drafted, ≥ 1; one or one per
            group. Never more than the group has positions are taken. Default 12.
        num_revise_steps: Contextual priors: steps in which a revision draws them anew, ≥ 2. Default 2.
        num_revisions: Contextual priors: how often they are revised, ≥ 0. Default 2.
        **kwargs: Settings inherited from transformers' `GenerationConfig` that mean nothing here are refused unless
            None.

    Raises:
        ValueError: Naming the setting, its value and what is accepted.
    """

    guidance_schedule: str
    guidance_power: float
    guidance_interval: list[float]
    num_candidates: int
    num_steps: int | list[int] | None
    masking_schedule: str | None
    decoding_order: str | None
    choice_temperature: float | None
    num_draft_steps: int | list[int] | None
    num_revise_steps: int | None
    num_revisions: int | None

    def __init__(self, **kwargs: Any) -> None:
        given = {name: value for name, value in kwargs.items() if value is not None}
        # Lists are copied: a default is not shared, and what is saved reads back equal.
        values = {name: list(v) if isinstance(v, (list, tuple)) else v for name, v in (_DEFAULTS | given).items()}
        super().__init__(**values)

    @staticmethod
    def setting_names() -> tuple[str, ...]:
        """The names of all settings, those of one kind of prior included."""
        return tuple(name for name in _DEFAULTS if name != "do_sample")

    @classmethod
    def from_generation_config(cls, config: GenerationConfig) -> CodeGenerationConfig:
        """Reads a plain `GenerationConfig`, which is what transformers loads generation_config.json into.

        Raises:
            TypeError: If it is none.
        """
        if isinstance(config, cls):
            return config
        if not isinstance(config, GenerationConfig):
            raise TypeError(
                f"generation_config must be a CodeGenerationConfig, got {type(config).__name__}; settings can also be "
                "given by name, as in temperature=0.9."
            )
        # transformers derives one from the model's config when there is no file; nothing in it was chosen by anyone.
        return cls() if config._from_model_config else cls(**config.to_dict())

    def with_overrides(self, **overrides: Any) -> CodeGenerationConfig:
        """A validated copy with some settings replaced; None leaves a setting as it is.

        Raises:
            ValueError: If a setting is unknown or its value is not accepted.
        """
        given = {name: value for name, value in overrides.items() if value is not None}
        return type(self)(**self.to_dict() | given) if given else self

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Checks every setting that does not depend on a model; runs when built, updated and saved.

        Raises:
            ValueError: Naming the setting, its value and what is accepted.
        """
        self._refuse_foreign_settings()
        for name, hint in _CHECKED.items():
            setattr(self, name, check_value(name, getattr(self, name), hint))
        first, last = self.guidance_interval
        if first > last:
            raise ValueError(
                f"guidance_interval must be [first, last] with first ≤ last, got {self.guidance_interval}."
            )
        given = {name: getattr(self, name) for name in DECODING_SETTINGS if getattr(self, name) is not None}
        for name, value in check_decoding(**given).items():
            setattr(self, name, value)
        super().validate(*args, **kwargs)

    def check_model(self, model_type: str) -> None:
        """Checks that a kind of prior understands all that is set.

        Raises:
            ValueError: Naming a setting that another kind of prior has.
        """
        for name, owner in _OF_ONE_MODEL.items():
            if owner != model_type and getattr(self, name) is not None:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is a setting of {owner} models, this is a {model_type}: leave it "
                    "out."
                )

    def level_sampling(self, num_levels: int) -> tuple[LevelSampling, ...]:
        """The settings of each level.

        Raises:
            ValueError: If a list does not have one entry per level.
        """
        columns = {name: per_level(name, getattr(self, name), num_levels) for name in _PER_LEVEL}
        return tuple(
            LevelSampling(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)
        )

    def guidance_scales(self, num_steps: int) -> tuple[float, ...]:
        """The guidance scale of each of `num_steps` steps."""
        return guidance_scales(
            self.guidance_schedule, self.guidance_scale, num_steps, self.guidance_power, self.guidance_interval
        )

    def _refuse_foreign_settings(self) -> None:
        for name, value in vars(self).items():
            if name in _DEFAULTS or name in _METADATA or name.startswith("_") or value is None:
                continue
            raise ValueError(
                f"{name}={value!r} means nothing to a prior over codes; accepted settings are "
                f"{', '.join(self.setting_names())}."
            )
        if self.do_sample is not True:
            raise ValueError(
                f"do_sample={self.do_sample!r} is not accepted; use temperature=0 for the likeliest codes."
            )


def per_level(name: str, value: Any, number: int, unit: str = "level") -> list[Any]:
    """One value per level, or per group, from a list of as many or a single value for all.

    Raises:
        ValueError: If a list does not have one entry for each.
    """
    values = list(value) if isinstance(value, (list, tuple)) else [value] * number
    if len(values) != number:
        raise ValueError(
            f"{name} lists {len(values)} values ({values}), the layout has {number} {unit}s: give one number per "
            f"{unit}, or a single number for all."
        )
    return values

"""Configuration of the generator: an image tokenizer and a prior over its codes."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig

from hq_tokenizers.checks import check_fields, class_names
from hq_tokenizers.remote_code import forget_exported_code

from .code_decoding import num_speakers
from .sub_models import build_sub_config


class HQGeneratorConfig(PreTrainedConfig):
    """Configuration of an `HQGeneratorModel`.

    Args:
        image_tokenizer_config: Configuration of the tokenizer, or a dictionary with its "model_type". Any registered
            image tokenizer will do.
        prior_config: Configuration of the prior, or a dictionary with its "model_type". Any registered prior will do.
        id2label: Class names, {0: "cat", …}; by default the prior's. Empty for an unconditional prior.

    Raises:
        ValueError: If a model_type is unknown or of the other kind, the tokenizer has no codes, or `id2label` does not
            name each class of the prior once.

    Examples:
        >>> from hq_tokenizers import HQGeneratorConfig, HQGeneratorModel
        >>> model = HQGeneratorModel(HQGeneratorConfig())
        >>> model.code_layout
        CodeLayout(groups=(CodeGroup(height=8, width=8, codebook_sizes=(512,)),))
    """

    model_type = "hq_generator"
    sub_configs: ClassVar[dict[str, type]] = {"image_tokenizer_config": AutoConfig, "prior_config": AutoConfig}

    image_tokenizer_config: dict | PreTrainedConfig | None = None
    prior_config: dict | PreTrainedConfig | None = None
    id2label: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        check_fields(self, below=PreTrainedConfig)
        self.image_tokenizer_config = build_sub_config("image_tokenizer_config", self.image_tokenizer_config)
        self.prior_config = build_sub_config("prior_config", self.prior_config)
        self._check_kinds()
        forget_exported_code(__name__, kwargs)
        self._set_class_names(kwargs)
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As transformers has it, and of the parts, too, without the folders on this machine that they came from."""
        values = super().to_dict()
        for field in self.sub_configs:
            values[field].pop("_name_or_path", None)
        return values

    @property
    def num_classes(self) -> int:
        """Number of classes of the prior; 0 when it is unconditional."""
        return self.prior_config.num_classes  # type: ignore[union-attr]

    @property
    def decodes_for_speaker(self) -> bool:
        """Whether the tokenizer's decoder has to be told who speaks."""
        return num_speakers(self.image_tokenizer_config) > 0

    @property
    def speaker_names(self) -> dict[int, str]:
        """Names of the speakers by id, numbers where they have none; empty where neither part knows speakers."""
        names = getattr(self.prior_config, "speaker_names", None)
        if names is not None:
            return dict(enumerate(names))
        known = max(num_speakers(self.image_tokenizer_config), num_speakers(self.prior_config))
        return {index: str(index) for index in range(known)}

    def _check_kinds(self) -> None:
        """Tells the kinds apart by what a generator asks of them, so that own classes are welcome."""
        for field, attribute in (("image_tokenizer_config", "image_size"), ("prior_config", "code_layout")):
            part = getattr(self, field)
            if not hasattr(part, attribute):
                raise ValueError(f"{field} must have {attribute}, but a {part.model_type} has none.")
        numbers = [n for n in map(num_speakers, (self.image_tokenizer_config, self.prior_config)) if n]
        if len(set(numbers)) > 1:
            raise ValueError(f"The tokenizer decodes for {numbers[0]} speakers, but the prior knows {numbers[1]}.")
        if not getattr(self.image_tokenizer_config, "has_codes", True):
            raise ValueError(
                'image_tokenizer_config has quantizer "none", and a prior needs codes: choose another quantizer.'
            )

    def _set_class_names(self, kwargs: dict[str, Any]) -> None:
        given = self.prior_config.id2label if self.id2label is None else self.id2label  # type: ignore[union-attr]
        names = class_names({} if given is None else given)
        if sorted(names) != list(range(self.num_classes)):
            raise ValueError(
                f"id2label must name the classes 0 to {self.num_classes - 1} of the prior, got {sorted(names)}."
                if self.num_classes
                else f"id2label must be empty for an unconditional prior, got {names}."
            )
        self.id2label = names
        self.label2id = {name: label for label, name in names.items()}
        kwargs.pop("num_labels", None)

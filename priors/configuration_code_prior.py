"""Fields that the configurations of all priors over codes share."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from transformers import PreTrainedConfig

from hq_tokenizers.checks import (
    CodebookSize,
    Fraction,
    Length,
    Number,
    Range,
    Width,
    check_fields,
    check_value,
    class_names,
)
from hq_tokenizers.codes import CodeGroup, CodeLayout
from hq_tokenizers.remote_code import forget_exported_code

_DEFAULT_LAYOUT = CodeLayout((CodeGroup(8, 8, (512,)),))
Layers = Annotated[int, Range(1, 1000)]
Small = Annotated[Number, Range(0, 1, above=True)]


class CodePriorConfig(PreTrainedConfig):
    """Fields of every prior over codes.

    Args:
        code_layout: `CodeLayout.to_dict()` of the codes to model; also a `CodeLayout`, or text that `CodeLayout.parse`
            reads, such as "8x8x4 of 512", which become that. Default: one 8×8 grid of 512 codes.
        num_classes: Number of classes; 0 for a prior without classes. Sets `id2label` unless it is given.
        num_speakers: Number of speakers, a second condition beside the class; 0 for a prior without speakers.
        speaker_names: Names of the speakers, in the order of their ids; None where they have none.
        cross_attention_dim: Width E of the free-form conditioning vectors (`encoder_hidden_states`), which every layer
            then attends to; None for a prior without them.
        hidden_size: Width of the transformer, a multiple of `num_attention_heads`.
        num_hidden_layers: Layers of the transformer that runs over positions.
        num_attention_heads: Attention heads.
        block_type: What the layers are made of: "llama" is RMSNorm and SwiGLU without biases, "gpt" the classic block
            of GPT-2 and the RQ-Transformer, LayerNorm and GELU with biases.
        intermediate_size: Width inside the feed-forward blocks; default 4 · `hidden_size` for "gpt", and for "llama"
            8/3 of it, rounded up to a multiple of 64, which costs the same.
        input_embeddings: How codes enter: "learned" tables, or the tokenizer's "code_vectors", which are kept as they
            are (`set_code_vectors` takes them), summed over depth and projected linearly to `hidden_size`.
        code_vector_dim: Width of the code vectors, one for all groups or a list of one per group; needed with
            "code_vectors", None otherwise.
        dropout: Probability of dropping a value of the embeddings, of the attention weights and of every residual
            branch, in training.
        label_dropout: Probability of hiding an image's whole condition (class, speaker and conditioning vectors) in
            training; classifier-free guidance needs it above 0.
        label_smoothing: Share of the target spread evenly over the codebook, in the training loss only.
        initializer_range: Standard deviation of the initial weights.
        norm_eps: Added to the mean square (RMSNorm) or the variance (LayerNorm) in the norms.

    Raises:
        ValueError: Naming the field, its value and what is accepted.
    """

    base_config_key = "prior_config"

    code_layout: dict | str | CodeLayout | None = None
    num_classes: Annotated[int, Range(0, 1_000_000)] = 0
    num_speakers: Annotated[int, Range(0, 1_000_000)] = 0
    speaker_names: Annotated[list[str], Length(1, 1_000_000)] | None = None
    cross_attention_dim: Width | None = None
    hidden_size: Width = 256
    num_hidden_layers: Layers = 8
    num_attention_heads: Width = 4
    block_type: Literal["llama", "gpt"] = "llama"
    intermediate_size: Annotated[int, Range(1, 2**20)] | None = None
    input_embeddings: Literal["learned", "code_vectors"] = "learned"
    code_vector_dim: Width | Annotated[list[Width] | tuple[Width, ...], Length(1, 16)] | None = None
    dropout: Fraction = 0.1
    label_dropout: Fraction = 0.1
    label_smoothing: Fraction = 0.0
    initializer_range: Small = 0.02
    norm_eps: Small = 1e-6
    id2label: Any = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.code_layout is None or isinstance(self.code_layout, CodeLayout):
            self.code_layout = (self.code_layout or _DEFAULT_LAYOUT).to_dict()
        check_fields(self, below=PreTrainedConfig)
        forget_exported_code(__name__, kwargs)
        self._check_sizes()
        self._check_speakers()
        self._check_code_vectors()
        if self.intermediate_size is None:
            gated = -(-self.hidden_size * 8 // (3 * 64)) * 64
            self.intermediate_size = 4 * self.hidden_size if self.block_type == "gpt" else gated
        if self.id2label is None or not (self.id2label or self.num_classes):
            self.id2label = None
            kwargs["num_labels"] = self.num_classes
        else:
            self.id2label = self._one_name_per_class(self.id2label)
        super().__post_init__(**kwargs)

    def _one_name_per_class(self, id2label: dict) -> dict[int, str]:
        names = class_names(id2label)
        if len(names) != self.num_classes:
            raise ValueError(
                f"id2label names {len(names)} classes, num_classes is {self.num_classes}: give one name per "
                "class, or leave id2label out."
            )
        return names

    @property
    def layout(self) -> CodeLayout:
        """The layout of the codes."""
        assert self.code_layout is not None  # __post_init__ filled it in
        return CodeLayout.parse(self.code_layout)

    @property
    def is_conditional(self) -> bool:
        """Whether there is a condition, classes, speakers or vectors, that guidance can pull towards."""
        return self.num_classes > 0 or self.num_speakers > 0 or self.cross_attention_dim is not None

    @property
    def code_vector_dims(self) -> tuple[int, ...]:
        """Width of the code vectors of each group."""
        dims = self.code_vector_dim
        return tuple(dims) if isinstance(dims, (list, tuple)) else (dims or 0,) * len(self.layout.groups)

    def _check_sizes(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}: "
                f"each head needs the same width."
            )
        # Builds the layout so that a wrong description fails here, not when the first batch arrives.
        try:
            groups = self.layout.groups
            self.code_layout = self.layout.to_dict()
        except (TypeError, ValueError) as error:
            raise ValueError(f"code_layout describes no layout: {error}") from error
        for group in groups:
            for name, value in (("height", group.height), ("width", group.width)):
                check_value(f"The {name} of a grid of code_layout", value, Width)
            for size in group.codebook_sizes:
                check_value("A codebook size of code_layout", size, CodebookSize)

    def _check_speakers(self) -> None:
        if self.speaker_names is not None and len(self.speaker_names) != self.num_speakers:
            raise ValueError(
                f"speaker_names names {len(self.speaker_names)} speakers, num_speakers is {self.num_speakers}: give "
                "one name per speaker, or leave speaker_names out."
            )

    def _check_code_vectors(self) -> None:
        given, groups = self.code_vector_dim, len(self.layout.groups)
        if self.input_embeddings == "learned":
            if given is not None:
                raise ValueError(f'code_vector_dim={given!r} needs input_embeddings="code_vectors"; leave it out.')
            return
        dims = given if isinstance(given, (list, tuple)) else [given] * groups
        if len(dims) != groups or not all(isinstance(dim, int) and dim >= 1 for dim in dims):
            raise ValueError(
                'input_embeddings="code_vectors" needs code_vector_dim, the width of the tokenizer\'s code vectors: an '
                f"integer of at least 1, or a list of one per group ({groups} here), got {given!r}."
            )

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hq_tokenizers.codes import CodeGroup, CodeLayout, Codes
from hq_tokenizers.priors import (
    ContextualPriorConfig,
    ContextualPriorModel,
    MaskedPriorConfig,
    MaskedPriorModel,
    RQPriorConfig,
    RQPriorModel,
)
from hq_tokenizers.priors.modeling_code_prior import CodePriorModel

LAYOUTS = {
    "one_code": CodeLayout((CodeGroup(3, 4, (7,)),)),
    "residual": CodeLayout((CodeGroup(2, 3, (5, 7, 3, 11)),)),
    "mixed": CodeLayout((CodeGroup(1, 1, (4,)), CodeGroup(2, 2, (3, 5)), CodeGroup(3, 2, (6, 2, 7)))),
}


def with_code_vectors(model: CodePriorModel) -> CodePriorModel:
    """Gives a prior that wants code vectors random ones, of another scale at each level."""
    if model.config.input_embeddings == "code_vectors":
        dims = model.config.code_vector_dims
        model.set_code_vectors(
            [
                torch.randn(size, dims[group]) / (level + 1)
                for level, ((group, _), size) in enumerate(
                    zip(model.layout.levels(), model.layout.codebook_sizes, strict=True)
                )
            ]
        )
    return model


@pytest.fixture(params=LAYOUTS.values(), ids=LAYOUTS.keys())
def layout(request: pytest.FixtureRequest) -> CodeLayout:
    return request.param


@pytest.fixture
def mixed_layout() -> CodeLayout:
    return LAYOUTS["mixed"]


def tiny_prior(config_class: type, model_class: type, layout: CodeLayout, settings: dict) -> CodePriorModel:
    """A tiny prior in eval mode, with weights large enough that every input matters."""
    fields = {"num_classes": 3, "hidden_size": 16, "num_hidden_layers": 2}
    fields |= {"num_attention_heads": 2, "dropout": 0.0, "initializer_range": 0.2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config_class(code_layout=layout.to_dict(), **fields | settings)).eval()
        return with_code_vectors(model)


@pytest.fixture
def make_prior() -> Callable[..., RQPriorModel]:
    return lambda layout, **settings: tiny_prior(RQPriorConfig, RQPriorModel, layout, settings)


@pytest.fixture
def make_masked_prior() -> Callable[..., MaskedPriorModel]:
    return lambda layout, **settings: tiny_prior(MaskedPriorConfig, MaskedPriorModel, layout, settings)


@pytest.fixture
def make_contextual_prior() -> Callable[..., ContextualPriorModel]:
    return lambda layout, **settings: tiny_prior(ContextualPriorConfig, ContextualPriorModel, layout, settings)


@pytest.fixture(params=["make_prior", "make_masked_prior", "make_contextual_prior"])
def make_any(request: pytest.FixtureRequest) -> Callable[..., CodePriorModel]:
    """Builds one kind of prior, then each of the others."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def random_codes() -> Callable[..., Codes]:
    def draw(layout: CodeLayout, batch_size: int, seed: int = 0) -> Codes:
        generator = torch.Generator().manual_seed(seed)
        levels = layout.level_of_code()
        sizes = torch.tensor(layout.codebook_sizes)[levels]
        uniform = torch.rand(batch_size, layout.num_codes, generator=generator)
        return layout.unflatten((uniform * sizes).long())

    return draw

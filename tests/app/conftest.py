from __future__ import annotations

import pytest
import torch
from PIL import Image

from hq_tokenizers import (
    ContextualPriorModel,
    HQGenerationPipeline,
    HQGeneratorModel,
    HQVAEConfig,
    HQVAEModel,
    MaskedPriorModel,
    RQPriorModel,
    SQVAEModel,
    sq_vae,
)

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "initializer_range": 0.5}


def build_pipeline(tokenizer, prior_class=RQPriorModel, **settings):
    """An untrained generator; of a large initial range, so that classes and codes differ in probability."""
    layout = tokenizer.code_layout().to_dict()
    prior = prior_class(prior_class.config_class(code_layout=layout, **SMALL | settings)).eval()
    return HQGenerationPipeline(HQGeneratorModel.from_sub_models(tokenizer, prior))


def build_tokenizer():
    return SQVAEModel(sq_vae("digits", hidden_size=8, codebook_size=16, codebook_dim=4)).eval()


@pytest.fixture(scope="session")
def pipe():
    """One grid of codes, three classes."""
    torch.manual_seed(0)
    return build_pipeline(build_tokenizer(), num_classes=3, id2label={0: "cat", 1: "dog", 2: "frog"})


@pytest.fixture(scope="session")
def unconditional_pipe():
    torch.manual_seed(1)
    return build_pipeline(build_tokenizer())


@pytest.fixture(scope="session")
def hierarchical_pipe():
    """Two grids, three levels, colour, not square, a masked prior."""
    torch.manual_seed(2)
    groups = ["stride 4: 16", "stride 2: 8 x 2"]
    settings = {"image_size": [8, 12], "num_channels": 3, "hidden_size": 8, "code_groups": groups, "codebook_dim": 4}
    tokenizer = HQVAEModel(HQVAEConfig(**settings)).eval()
    return build_pipeline(tokenizer, MaskedPriorModel, num_classes=2, id2label={0: "cat", 1: "dog"})


@pytest.fixture(scope="session")
def contextual_pipe():
    """One grid of codes, a contextual prior."""
    torch.manual_seed(3)
    return build_pipeline(build_tokenizer(), ContextualPriorModel)


@pytest.fixture(params=["pipe", "unconditional_pipe", "hierarchical_pipe", "contextual_pipe"])
def any_pipe(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def image_file(tmp_path):
    """A photograph of another size than any generator's."""
    path = tmp_path / "photo.png"
    pixels = (torch.rand(40, 60, 3, generator=torch.Generator().manual_seed(0)) * 255).byte()
    Image.fromarray(pixels.numpy()).save(path)
    return str(path)

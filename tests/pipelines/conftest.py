from __future__ import annotations

import copy

import pytest
import torch

from hq_tokenizers import (
    ContextualPriorConfig,
    ContextualPriorModel,
    HQGeneratorModel,
    HQVAEConfig,
    HQVAEModel,
    MaskedPriorConfig,
    MaskedPriorModel,
    RQPriorConfig,
    RQPriorModel,
    SQVAEConfig,
    SQVAEModel,
)
from hq_tokenizers.priors.modeling_code_prior import CodePriorModel

CLASS_NAMES = {0: "cat", 1: "dog", 2: "frog"}


def build_tokenizer(**overrides) -> SQVAEModel:
    settings = {"image_size": 8, "num_channels": 1, "hidden_size": 8, "num_downsampling": 1, "codebook_size": 16}
    return SQVAEModel(SQVAEConfig(**settings | {"codebook_dim": 4} | overrides)).eval()


def build_prior(
    tokenizer, model_class: type = RQPriorModel, config_class: type = RQPriorConfig, **overrides
) -> CodePriorModel:
    settings = {"code_layout": tokenizer.code_layout().to_dict(), "num_classes": 3, "hidden_size": 16}
    sizes = {"num_hidden_layers": 2, "num_depth_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    # A large initial range, so that classes and codes differ in probability although nothing is trained.
    return model_class(config_class(**settings | sizes | {"initializer_range": 0.5} | overrides)).eval()


@pytest.fixture(scope="session")
def tokenizer():
    torch.manual_seed(0)
    return build_tokenizer()


@pytest.fixture(scope="session")
def generator(tokenizer):
    torch.manual_seed(1)
    return HQGeneratorModel.from_sub_models(tokenizer, build_prior(tokenizer), CLASS_NAMES)


@pytest.fixture(scope="session")
def masked_generator(tokenizer):
    torch.manual_seed(1)
    settings = {"code_layout": tokenizer.code_layout().to_dict(), "num_classes": 3, "initializer_range": 0.5}
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    prior = MaskedPriorModel(MaskedPriorConfig(**settings, **sizes)).eval()
    return HQGeneratorModel.from_sub_models(tokenizer, prior, CLASS_NAMES)


@pytest.fixture(scope="session")
def unconditional_generator(tokenizer):
    torch.manual_seed(2)
    return HQGeneratorModel.from_sub_models(tokenizer, build_prior(tokenizer, num_classes=0))


@pytest.fixture(scope="session")
def hierarchical_generator():
    """Two groups, three levels, codebooks of different sizes."""
    torch.manual_seed(3)
    groups = ["stride 4: 16", "stride 2: 8 x 2"]
    tokenizer = HQVAEModel(
        HQVAEConfig(image_size=[8, 12], num_channels=3, hidden_size=8, code_groups=groups, codebook_dim=4)
    ).eval()
    return HQGeneratorModel.from_sub_models(tokenizer, build_prior(tokenizer), CLASS_NAMES)


@pytest.fixture(scope="session")
def contextual_generator(hierarchical_generator):
    torch.manual_seed(4)
    tokenizer = hierarchical_generator.image_tokenizer
    prior = build_prior(tokenizer, ContextualPriorModel, ContextualPriorConfig)
    return HQGeneratorModel.from_sub_models(copy.deepcopy(tokenizer), prior, CLASS_NAMES)


@pytest.fixture(scope="session")
def generator_dir(generator, tmp_path_factory):
    directory = tmp_path_factory.mktemp("generator")
    generator.save_pretrained(directory)
    return directory

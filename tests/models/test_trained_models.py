"""Tokenizers by the folder that an option gives: their own, or that of a generator which has one."""

from __future__ import annotations

import pytest
import torch

from hq_tokenizers import HQGeneratorModel, RQPriorConfig, RQPriorModel, sq_vae
from hq_tokenizers.models.modeling_sq_vae import SQVAEModel
from hq_tokenizers.models.trained_models import load_tokenizer


@pytest.fixture
def folders(tmp_path):
    torch.manual_seed(0)
    tokenizer = SQVAEModel(sq_vae("digits", hidden_size=8, codebook_size=8))
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    prior = RQPriorModel(RQPriorConfig(code_layout=tokenizer.code_layout().to_dict(), **small))
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    prior.save_pretrained(tmp_path / "prior")
    HQGeneratorModel.from_sub_models(tokenizer, prior).save_pretrained(tmp_path / "generator")
    return tmp_path, tokenizer.eval()


@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_the_tokenizer_of_a_folder_encodes_as_it_did(folders, kind):
    root, tokenizer = folders
    loaded = load_tokenizer(str(root / kind))
    assert type(loaded) is SQVAEModel
    assert not loaded.training
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    assert torch.equal(loaded.encode(images).flatten(), tokenizer.encode(images).flatten())


def test_a_prior_is_none(folders):
    root, _ = folders
    with pytest.raises(ValueError, match=r"^tokenizer .* of type rq_prior, but a tokenizer is needed"):
        load_tokenizer(str(root / "prior"))

"""Other people's weights in our models: torchao, quanto and PEFT, each where its package is installed."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import AutoModel, QuantoConfig, TorchAoConfig
from transformers.integrations.peft import MIN_PEFT_VERSION

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
)

# These packages were written for other releases of transformers and torch than the newest; that is theirs to mend.
pytestmark = [pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("DeprecationWarning", "FutureWarning")]
PRIORS = ("rq_prior", "masked_prior", "contextual_prior")
KINDS = ("image_tokenizer", "rq_prior", "masked_prior", "contextual_prior", "generator")


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    sizes = {"image_size": 8, "num_channels": 1, "hidden_size": 32, "codebook_dim": 4}
    tokenizer = HQVAEModel(HQVAEConfig(code_groups=["stride 4: 8", "stride 2: 8"], **sizes)).eval()
    fields = {"code_layout": tokenizer.code_layout().to_dict(), "num_classes": 3, "hidden_size": 64}
    fields |= {"num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.1}
    rq = RQPriorModel(RQPriorConfig(**fields)).eval()
    masked = MaskedPriorModel(MaskedPriorConfig(**fields)).eval()
    contextual = ContextualPriorModel(ContextualPriorConfig(**fields)).eval()
    # The parts of a generator are its own: its configuration is set to what it was loaded with.
    generator = HQGeneratorModel.from_sub_models(copy.deepcopy(tokenizer), copy.deepcopy(rq))
    return dict(zip(KINDS, (tokenizer, rq, masked, contextual, generator), strict=True))


@pytest.fixture(scope="module")
def codes(models):
    return models["image_tokenizer"].encode(torch.rand(2, 1, 8, 8))


def logits(model, codes):
    torch.manual_seed(0)  # of the masks of a masked prior
    with torch.no_grad():
        return torch.cat([level.flatten() for level in model(codes, torch.tensor([0, 1]), return_loss=False).logits])


def weight_types(model):
    return {type(module.weight.data) for module in model.modules() if isinstance(module, torch.nn.Linear)}


def check(original, quantized, codes):
    """Nearly the same as before, in the part that has linear layers; exactly the same in the one that has none."""
    if original.main_input_name == "codes":
        exact, rounded = logits(original, codes), logits(quantized, codes)
        assert not torch.equal(exact, rounded)
        assert torch.nn.functional.cosine_similarity(exact, rounded, dim=0) > 0.99
        assert quantized.generate([0, 1], generator=0).validate().batch_size == 2
    elif hasattr(original, "prior"):
        check(original.prior, quantized.prior, codes)
        assert quantized.generate([0], generator=0).images.isfinite().all()
    else:
        assert torch.equal(original.decode(codes), quantized.decode(codes))


def torchao_config():
    quantization = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


def quanto_config():
    pytest.importorskip("optimum.quanto")
    return QuantoConfig(weights="int8")


@pytest.mark.parametrize("config", [torchao_config, quanto_config])
@pytest.mark.parametrize("kind", KINDS)
def test_from_pretrained_quantizes(models, codes, kind, config, tmp_path):
    models[kind].save_pretrained(tmp_path)
    quantized = AutoModel.from_pretrained(tmp_path, quantization_config=config())
    if kind != "image_tokenizer":
        assert weight_types(models[kind]) == {torch.Tensor}
        assert weight_types(quantized) - {torch.Tensor}
    check(models[kind], quantized, codes)


@pytest.mark.parametrize("kind", KINDS)
def test_torchao_weights_are_saved(models, codes, kind, tmp_path):
    models[kind].save_pretrained(tmp_path / "exact")
    quantized = AutoModel.from_pretrained(tmp_path / "exact", quantization_config=torchao_config())
    quantized.save_pretrained(tmp_path / "quantized")
    again = AutoModel.from_pretrained(tmp_path / "quantized")
    if kind in PRIORS:
        assert torch.equal(logits(again, codes), logits(quantized, codes))
    check(models[kind], again, codes)


@pytest.mark.parametrize("kind", PRIORS)
def test_lora_trains_and_merges(models, codes, kind, tmp_path):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(copy.deepcopy(models[kind]), peft.LoraConfig(r=2, target_modules="all-linear"))
    before = {name: value.clone() for name, value in adapted.named_parameters()}
    optimizer = torch.optim.Adam([p for p in adapted.parameters() if p.requires_grad], 0.05)
    for _ in range(3):
        adapted(codes, torch.tensor([0, 1])).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, value in adapted.named_parameters() if not torch.equal(value, before[name])}
    assert changed
    assert all("lora_" in name for name in changed)

    adapted.save_pretrained(tmp_path)
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(models[kind]), tmp_path).eval()
    expected = logits(loaded, codes)
    assert not torch.allclose(expected, logits(models[kind], codes), atol=1e-2)
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(logits(merged, codes), expected, atol=1e-4, rtol=1e-4)
    assert merged.generate([0, 1], generator=0).validate().batch_size == 2


@pytest.mark.parametrize("kind", PRIORS)
def test_add_adapter(models, codes, kind, tmp_path):
    peft = pytest.importorskip("peft", minversion=MIN_PEFT_VERSION)
    model = copy.deepcopy(models[kind])
    model.add_adapter(peft.LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False))
    assert all("lora_" in name for name, value in model.named_parameters() if value.requires_grad)
    expected = logits(model, codes)
    model.disable_adapters()
    assert torch.equal(logits(model, codes), logits(models[kind], codes))
    model.enable_adapters()
    model.save_pretrained(tmp_path)
    again = copy.deepcopy(models[kind])
    again.load_adapter(str(tmp_path))
    torch.testing.assert_close(logits(again, codes), expected)

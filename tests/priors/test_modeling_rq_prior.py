from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import StaticCache

from hq_tokenizers.codes import CodeGroup, CodeLayout, Codes
from hq_tokenizers.models.checkpointed_layers import enable_gradient_checkpointing
from hq_tokenizers.priors import (
    CodeGenerationConfig,
    ContextualPriorModel,
    MaskedPriorModel,
    RQPriorConfig,
    RQPriorModel,
)

Make = Callable[..., RQPriorModel]
Draw = Callable[..., Codes]

VARIANTS = {
    "plain": {},
    "code vectors": {"input_embeddings": "code_vectors", "code_vector_dim": 6},
    "rotary": {"position_embedding": "rotary"},
    "gpt": {"block_type": "gpt"},
}


def flat_logits(model: RQPriorModel, codes: Codes, labels: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Logits (B, K) of each of the T codes, in the order of `Codes.flatten`."""
    per_level, ordered, first = model(codes, labels).logits, [], 0
    for group in codes.layout.groups:
        for position in range(group.num_positions):
            ordered += [per_level[first + depth][:, position] for depth in range(group.depth)]
        first += group.depth
    return ordered


def test_logits_have_the_shape_of_their_level(make_prior: Make, random_codes: Draw, layout: CodeLayout) -> None:
    output = make_prior(layout)(random_codes(layout, 2))
    expected = [(2, g.num_positions, size) for g in layout.groups for size in g.codebook_sizes]
    assert [tuple(logits.shape) for logits in output.logits] == expected
    assert output.loss.ndim == 0


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_depend_on_earlier_codes_only(
    make_prior: Make, random_codes: Draw, layout: CodeLayout, variant: dict
) -> None:
    model, codes = make_prior(layout, **variant), random_codes(layout, 1)
    sizes = torch.tensor(layout.codebook_sizes)[layout.level_of_code()]
    before = flat_logits(model, codes)
    for index in range(layout.num_codes):
        flat = codes.flatten().clone()
        flat[:, index] = (flat[:, index] + 1) % sizes[index]
        after = flat_logits(model, layout.unflatten(flat))
        changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert not any(changed[: index + 1])
        assert all(changed[index + 1 :])


def test_loss_is_the_mean_cross_entropy_of_the_codes(make_prior: Make, random_codes: Draw, layout: CodeLayout) -> None:
    model, codes, labels = make_prior(layout), random_codes(layout, 3), torch.tensor([0, 2, -1])
    logits = flat_logits(model, codes, labels)
    picked = [row.double().log_softmax(-1).gather(1, codes.flatten()[:, i, None])[:, 0] for i, row in enumerate(logits)]
    expected = torch.stack(picked, dim=1)
    torch.testing.assert_close(model(codes, labels).loss.double(), -expected.mean(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.log_prob(codes, labels).double(), expected.sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("label", [None, -1, 0, 1])
def test_probabilities_of_all_images_sum_to_one(make_prior: Make, label: int | None) -> None:
    layout = CodeLayout((CodeGroup(1, 2, (2, 3)), CodeGroup(1, 1, (2,))))
    every = layout.unflatten(torch.tensor(list(itertools.product(*[range(k) for k in (2, 3, 2, 3, 2)]))))
    labels = None if label is None else torch.full((every.batch_size,), label)
    total = make_prior(layout).log_prob(every, labels).double().exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-5)


def test_classes_matter_and_none_is_the_null_class(make_prior: Make, random_codes: Draw, layout: CodeLayout) -> None:
    model, codes = make_prior(layout), random_codes(layout, 1).groups
    four = Codes(tuple(group.repeat(4, 1, 1, 1) for group in codes), layout)
    log_prob = model.log_prob(four, torch.tensor([0, 1, 2, -1]))
    assert len(set(log_prob.tolist())) == 4
    torch.testing.assert_close(model.log_prob(four)[0], log_prob[3])


def test_label_dropout_and_smoothing_in_training_only(make_prior: Make, random_codes: Draw, layout: CodeLayout) -> None:
    codes, labels = random_codes(layout, 4), torch.tensor([0, 1, 2, 0])
    model = make_prior(layout, label_dropout=0.999999)
    conditional, unconditional = model(codes, labels).loss, model(codes).loss
    torch.testing.assert_close(model.train()(codes, labels).loss, unconditional)
    assert conditional != unconditional
    smooth = make_prior(layout, label_dropout=0.0, label_smoothing=0.2)
    torch.testing.assert_close(smooth(codes, labels).loss, conditional)
    logits = smooth(codes, labels).logits
    uniform = torch.cat([-level.log_softmax(-1).mean(-1) for level in logits], dim=1).sum(1).mean() / layout.num_codes
    torch.testing.assert_close(smooth.train()(codes, labels).loss, 0.8 * conditional + 0.2 * uniform)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_gradient_reaches_every_parameter(
    make_prior: Make, random_codes: Draw, layout: CodeLayout, variant: dict
) -> None:
    model = make_prior(layout, dropout=0.1, label_dropout=0.1, **variant).train()
    torch.manual_seed(0)
    model(random_codes(layout, 64), torch.arange(64) % 4 - 1).loss.backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_gradient_checkpointing_changes_nothing(make_prior: Make, random_codes: Draw, mixed_layout: CodeLayout) -> None:
    codes, gradients = random_codes(mixed_layout, 2), []
    for checkpointing in (False, True):
        model = make_prior(mixed_layout, label_dropout=0.0).train()
        if checkpointing:
            enable_gradient_checkpointing(model)
            assert all(layer.gradient_checkpointing for layer in model.spatial_transformer.layers)
        model(codes, torch.tensor([0, 1])).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_forward_compiles_without_graph_breaks(
    make_prior: Make, random_codes: Draw, mixed_layout: CodeLayout, variant: dict
) -> None:
    model, codes, labels = make_prior(mixed_layout, **variant), random_codes(mixed_layout, 2), torch.tensor([0, -1])
    # The compiler's own backends would only add minutes: a graph break is what can go wrong here.
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(codes, labels).loss, model(codes, labels).loss)


def test_eager_attention_equals_sdpa(make_prior: Make, random_codes: Draw, layout: CodeLayout) -> None:
    model, codes = make_prior(layout), random_codes(layout, 2)
    assert model.config._attn_implementation == "sdpa"
    samples, sdpa = model.generate([0, 1], generator=0), model.double()(codes).logits
    model.set_attn_implementation("eager")
    for a, b in zip(sdpa, model(codes).logits, strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)
    assert model.float().generate([0, 1], generator=0) == samples


def test_static_cache_of_transformers_gives_the_same_states(make_prior: Make, mixed_layout: CodeLayout) -> None:
    transformer = make_prior(mixed_layout).spatial_transformer
    inputs = torch.randn(2, 6, 16)
    cache = StaticCache(config=transformer.config, max_cache_len=6)
    stepwise = [transformer(inputs[:, :2], cache), *[transformer(inputs[:, i : i + 1], cache) for i in range(2, 6)]]
    torch.testing.assert_close(torch.cat(stepwise, dim=1), transformer(inputs), atol=1e-5, rtol=1e-5)


def test_save_and_load_with_generation_config(
    make_prior: Make, random_codes: Draw, layout: CodeLayout, tmp_path: Path
) -> None:
    model, codes, labels = make_prior(layout), random_codes(layout, 2), torch.tensor([1, 2])
    model.generation_config = CodeGenerationConfig(temperature=[0.7] * layout.num_levels, guidance_scale=2.0)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "generation_config.json").is_file()
    loaded = RQPriorModel.from_pretrained(tmp_path)
    assert isinstance(loaded.generation_config, CodeGenerationConfig)
    assert loaded.generation_config == model.generation_config
    assert torch.equal(loaded.log_prob(codes, labels), model.log_prob(codes, labels))
    assert loaded.generate(labels, generator=3) == model.generate(labels, generator=3)
    again = RQPriorModel.from_pretrained(tmp_path, generation_config=CodeGenerationConfig(top_k=2))
    assert again.generation_config == CodeGenerationConfig(top_k=2)


@pytest.mark.parametrize("model_class", [RQPriorModel, MaskedPriorModel, ContextualPriorModel])
def test_loading_with_other_fields_of_the_configuration(model_class: Any, tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = model_class(model_class.config_class(code_layout="2x2x2 of 16", dropout=0.0, **sizes))
    model.generation_config = CodeGenerationConfig(temperature=0.7)
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path, dropout=0.25, code_layout="2×2×2 of 16")
    assert (loaded.config.dropout, loaded.generation_config.temperature) == (0.25, 0.7)
    assert loaded.config.code_layout == model.config.code_layout
    with pytest.raises(ValueError, match=r"take weights and config\.json from one run"):
        model_class.from_pretrained(tmp_path, code_layout="2x2x2 of 32")
    with pytest.raises(ValueError, match="code layout is written as"):
        model_class.from_pretrained(tmp_path, code_layout="2x2x2 of")


def test_code_vectors_are_saved_with_the_model(
    make_prior: Make, random_codes: Draw, layout: CodeLayout, tmp_path: Path
) -> None:
    model = make_prior(layout, input_embeddings="code_vectors", code_vector_dim=6)
    model.save_pretrained(tmp_path)
    codes = random_codes(layout, 2)
    assert torch.equal(RQPriorModel.from_pretrained(tmp_path).log_prob(codes), model.log_prob(codes))


def test_only_the_sum_of_a_positions_code_vectors_matters_to_the_next_positions(make_prior: Make) -> None:
    layout = CodeLayout((CodeGroup(1, 3, (3, 3)),))
    model = make_prior(layout, input_embeddings="code_vectors", code_vector_dim=2)
    vectors = torch.tensor([[1.0, 0.0], [0.0, 2.0], [5.0, 5.0]])
    model.set_code_vectors([vectors, vectors])
    # Codes 0 and 1 in either order have one sum; 2 and 2 have another.
    flat = torch.tensor([[0, 1, 2, 0, 1, 1], [1, 0, 2, 0, 1, 1], [2, 2, 2, 0, 1, 1]])
    one, other, third = (model(layout.unflatten(row[None])).logits for row in flat)
    for level in range(2):
        torch.testing.assert_close(one[level][:, 1:], other[level][:, 1:])
        assert not torch.allclose(one[level][:, 1:], third[level][:, 1:])
    assert not torch.allclose(one[1][:, 0], other[1][:, 0])


def test_code_vectors_have_to_be_set(random_codes: Draw, make_prior: Make, mixed_layout: CodeLayout) -> None:
    fields = {"hidden_size": 16, "num_attention_heads": 2, "input_embeddings": "code_vectors", "code_vector_dim": 6}
    model = RQPriorModel(RQPriorConfig(code_layout=mixed_layout.to_dict(), **fields))
    for call in (lambda: model(random_codes(mixed_layout, 1)), model.generate):
        with pytest.raises(ValueError, match="no code vectors yet: call set_code_vectors"):
            call()
    with pytest.raises(ValueError, match="The layout has 6 levels, got 1 codebooks"):
        model.set_code_vectors([torch.zeros(4, 6)])
    sizes = mixed_layout.codebook_sizes
    with pytest.raises(ValueError, match=r"The codebook of level 2 must be \(3, 6\), got \(3, 5\)"):
        model.set_code_vectors([torch.zeros(size, 6 if level != 1 else 5) for level, size in enumerate(sizes)])
    with pytest.raises(ValueError, match="The codebook of level 1 has values that are not finite"):
        model.set_code_vectors([torch.full((size, 6), torch.inf) for size in sizes])
    with pytest.raises(ValueError, match="This prior learns its input embeddings; build it with input_embeddings="):
        make_prior(mixed_layout).set_code_vectors([])


def test_soft_targets(make_prior: Make, random_codes: Draw, layout: CodeLayout) -> None:
    model, codes, labels = make_prior(layout), random_codes(layout, 3), torch.tensor([0, 2, -1])
    logits = model(codes, labels).logits
    targets = tuple(torch.rand(level.shape).softmax(-1) for level in logits)
    pairs = list(zip(logits, targets, strict=True))
    reference = torch.cat([-(q.double() * p.double().log_softmax(-1)).sum(-1) for p, q in pairs], dim=1).mean()
    torch.testing.assert_close(model(codes, labels, soft_targets=targets).loss.double(), reference, rtol=1e-5, atol=0)
    # Certainty about the codes themselves is the plain loss; the inputs stay the codes.
    values = zip(codes.levels(), layout.codebook_sizes, strict=True)
    certain = tuple(torch.nn.functional.one_hot(value.flatten(1), size).float() for value, size in values)
    torch.testing.assert_close(model(codes, labels, soft_targets=certain).loss, model(codes, labels).loss)
    smooth = make_prior(layout, label_dropout=0.0, label_smoothing=0.2).train()
    uniform = torch.cat([-p.double().log_softmax(-1).mean(-1) for p in logits], dim=1).mean()
    expected = 0.8 * reference + 0.2 * uniform
    torch.testing.assert_close(smooth(codes, labels, soft_targets=targets).loss.double(), expected, rtol=1e-5, atol=0)
    for wrong in (targets[:-1], tuple(target[:2] for target in targets)):
        with pytest.raises(ValueError, match="soft_targets are probabilities, one tensor"):
            model(codes, labels, soft_targets=wrong)


def test_a_model_without_the_file_samples_with_the_defaults(
    make_prior: Make, mixed_layout: CodeLayout, tmp_path: Path
) -> None:
    make_prior(mixed_layout).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    assert RQPriorModel.from_pretrained(tmp_path).generation_config == CodeGenerationConfig()


def test_unconditional_prior(make_prior: Make, random_codes: Draw, layout: CodeLayout) -> None:
    model, codes = make_prior(layout, num_classes=0), random_codes(layout, 2)
    assert torch.equal(model.log_prob(codes), model.log_prob(codes, torch.tensor([-1, -1])))
    with pytest.raises(ValueError, match="Class label 0 is out of range; this prior accepts -1 or None only"):
        model(codes, torch.tensor([0, -1]))


@pytest.mark.parametrize("label", [3, -2])
def test_labels_out_of_range(make_prior: Make, random_codes: Draw, layout: CodeLayout, label: int) -> None:
    model, codes = make_prior(layout), random_codes(layout, 2)
    for call in (model, model.log_prob):
        with pytest.raises(ValueError, match=f"Class label {label} is out of range; this prior accepts 0 to 2, or -1"):
            call(codes, torch.tensor([0, label]))


def test_inputs_that_do_not_fit(make_prior: Make, random_codes: Draw, mixed_layout: CodeLayout) -> None:
    model, codes = make_prior(mixed_layout), random_codes(mixed_layout, 2)
    other = CodeLayout((CodeGroup(2, 2, (5,)),))
    with pytest.raises(ValueError, match="codes have the layout 2×2×1 of 5, this prior models 1×1×1 of 4"):
        model(random_codes(other, 2))
    with pytest.raises(TypeError, match=r"codes must be a Codes, got list.*CodeLayout\.unflatten"):
        model(codes.flatten().tolist())
    with pytest.raises(ValueError, match=rf"have shape \(batch, {mixed_layout.num_codes}\), got \(2, 3\)"):
        model(codes.flatten()[:, :3])
    with pytest.raises(TypeError, match=r"takes class_labels, not labels.*rename_column"):
        model(codes, labels=torch.tensor([0, 1]))
    with pytest.raises(ValueError, match=r"class_labels must have shape \(2,\), one per image, got \(3,\)"):
        model(codes, torch.tensor([0, 1, 2]))
    beyond = mixed_layout.unflatten(codes.flatten() + 10)
    with pytest.raises(ValueError, match=r"Codes of level 1 must lie in \[0, 4\)"):
        model(beyond)

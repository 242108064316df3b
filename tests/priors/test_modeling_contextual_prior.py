from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from hq_tokenizers.codes import CodeGroup, CodeLayout, Codes
from hq_tokenizers.priors import CodeGenerationConfig, ContextualPriorConfig, ContextualPriorModel
from hq_tokenizers.priors.conditions import Conditions
from hq_tokenizers.priors.modeling_contextual_prior import ContextualPredictor

Make = Callable[..., ContextualPriorModel]
Draw = Callable[..., Codes]

VARIANTS = {
    "plain": {},
    "code vectors": {"input_embeddings": "code_vectors", "code_vector_dim": 6},
    "gpt": {"block_type": "gpt"},
}
TOY = CodeLayout((CodeGroup(1, 3, (3, 2)), CodeGroup(1, 1, (2,))))


def predict(model: ContextualPriorModel, codes: Codes, group: int, hidden: torch.Tensor) -> list[torch.Tensor]:
    """Teacher-forced logits of one group of unconditional images, per depth (B, P_g, K)."""
    predictor = ContextualPredictor(model, Conditions(torch.full((codes.batch_size,), -1)))
    for earlier in codes.groups[:group]:
        predictor.finish_group(earlier.flatten(1, 2))
    return predictor.logits(codes.groups[group].flatten(1, 2), hidden)


def half_hidden(num_positions: int) -> torch.Tensor:
    return torch.arange(num_positions)[None] % 2 == 0


def places(layout: CodeLayout) -> list[tuple[int, int, int]]:
    """(group, position, depth) of every code in flattened order."""
    return [
        (index, position, depth)
        for index, group in enumerate(layout.groups)
        for position in range(group.num_positions)
        for depth in range(group.depth)
    ]


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_context_is_bidirectional_and_depth_is_causal(
    make_contextual_prior: Make, random_codes: Draw, layout: CodeLayout, variant: dict
) -> None:
    model, codes = make_contextual_prior(layout, **variant), random_codes(layout, 1)
    sizes = torch.tensor(layout.codebook_sizes)[layout.level_of_code()]
    copies = codes.flatten().repeat(layout.num_codes + 1, 1)
    for index in range(layout.num_codes):
        copies[index + 1, index] = (copies[index + 1, index] + 1) % sizes[index]
    for group, grid in enumerate(layout.groups):
        hidden = half_hidden(grid.num_positions)
        logits = predict(model, layout.unflatten(copies), group, hidden.expand(len(copies), -1))
        for depth, level in enumerate(logits):
            changed = (level[1:] - level[:1]).abs().amax(-1) > 1e-5
            for row, (other_group, other, other_depth) in zip(changed, places(layout), strict=True):
                for position in hidden[0].nonzero()[:, 0].tolist():
                    visible = other_group < group or (other_group == group and not hidden[0, other])
                    above = (other_group, other) == (group, position) and other_depth < depth
                    assert row[position].item() == (visible or above)


def norm(module: nn.RMSNorm, x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + module.eps).sqrt() * module.weight


def attention(module: nn.Module, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Self-attention of one sequence (T, H), head by head; `seen[q, k]` says what a query sees."""
    query, key, value = (x @ weight.T for weight in module.qkv_proj.weight.chunk(3))
    heads = []
    for q, k, v in zip(*(part.split(module.head_dim, dim=1) for part in (query, key, value)), strict=True):
        scores = (q @ k.T / math.sqrt(module.head_dim)).masked_fill(~seen, -math.inf)
        heads.append(scores.softmax(-1) @ v)
    return torch.cat(heads, dim=1) @ module.o_proj.weight.T


def transform(module: nn.Module, x: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    for layer in module.layers:
        x = x + attention(layer.attention, norm(layer.attention_norm, x), seen)
        gate, up = (norm(layer.mlp_norm, x) @ layer.mlp.gate_up_proj.weight.T).chunk(2, dim=-1)
        x = x + (gate * gate.sigmoid() * up) @ layer.mlp.down_proj.weight.T
    return norm(module.norm, x)


@torch.no_grad()
def brute_force(model: ContextualPriorModel, image: Codes, group: int, hidden: set[int], label: int) -> list:
    """log p of a group's hidden codes, {(position, depth): (K,)}, code by code from the weights alone."""
    tables, layout = [table.weight for table in model.code_embedding.tables], image.layout
    first_level = [sum(g.depth for g in layout.groups[:index]) for index in range(len(layout.groups))]
    inputs, of_group = [], []
    for index, grid in enumerate(layout.groups[: group + 1]):
        for row, column in itertools.product(range(grid.height), range(grid.width)):
            embedding = model.position_embedding
            x = model.class_embedding.table.weight[label] + embedding.groups.weight[index]
            x = x + embedding.rows[index].weight[row] + embedding.columns[index].weight[column]
            if index == group and row * grid.width + column in hidden:
                x = x + model.mask_embedding.weight[group]
            else:
                for depth, code in enumerate(image.groups[index][0, row, column].tolist()):
                    x = x + tables[first_level[index] + depth][code]
            inputs.append(x)
            of_group.append(index)
    of_group = torch.tensor(of_group)
    states = transform(model.spatial_transformer, torch.stack(inputs), of_group[None] <= of_group[:, None])
    found = {}
    for position in hidden:
        values = image.groups[group].flatten(1, 2)[0, position].tolist()
        sequence = [states[of_group == group][position]]
        for depth in range(len(values)):
            levels = range(first_level[group], first_level[group] + depth + 1)
            x = torch.stack(sequence) + model.level_embedding.weight[list(levels)]
            state = transform(model.depth_transformer, x, torch.ones(depth + 1, depth + 1).tril().bool())[-1]
            found[position, depth] = (model.heads[levels[-1]].weight @ state).log_softmax(-1)
            so_far = [tables[level][code] for level, code in zip(levels, values, strict=False)]
            sequence.append(torch.stack(so_far).sum(0))
    return found


def test_conditionals_equal_a_computation_from_the_weights_alone(
    make_contextual_prior: Make, random_codes: Draw, layout: CodeLayout
) -> None:
    model, image, label = make_contextual_prior(layout).double(), random_codes(layout, 1), 2
    for group, grid in enumerate(layout.groups):
        hidden = half_hidden(grid.num_positions)
        expected = brute_force(model, image, group, set(hidden[0].nonzero()[:, 0].tolist()), label)
        predictor = ContextualPredictor(model, Conditions(torch.tensor([label])))
        for earlier in image.groups[:group]:
            predictor.finish_group(earlier.flatten(1, 2))
        logits = predictor.logits(image.groups[group].flatten(1, 2), hidden)
        for (position, depth), log_probabilities in expected.items():
            torch.testing.assert_close(logits[depth][0, position].log_softmax(-1), log_probabilities)


def test_training_pass_sees_what_sampling_sees(
    make_contextual_prior: Make, random_codes: Draw, layout: CodeLayout
) -> None:
    model, codes = make_contextual_prior(layout), random_codes(layout, 40)
    torch.manual_seed(3)
    output = model(codes)
    for image in range(40):
        asked = [level[image] for level in output.predicted]
        groups = {group for (group, _), level in zip(layout.levels(), asked, strict=True) if level.any()}
        assert len(groups) == 1
        (group,) = groups
        levels = [level for level, (of, _) in enumerate(layout.levels()) if of == group]
        # All codes of a position are asked for together.
        hidden = asked[levels[0]]
        assert all(torch.equal(asked[level], hidden) for level in levels)
        for level, logits in zip(levels, predict(model, codes[image], group, hidden[None]), strict=True):
            # Finer groups are in the sequence of training, and not in the other one.
            trained = output.logits[level][image, hidden]
            torch.testing.assert_close(trained, logits[0, hidden], atol=1e-5, rtol=1e-5)


def test_loss_is_the_mean_over_the_predicted_codes(
    make_contextual_prior: Make, random_codes: Draw, layout: CodeLayout
) -> None:
    model, codes, labels = make_contextual_prior(layout), random_codes(layout, 9), torch.arange(9) % 4 - 1
    output, per_image = model(codes, labels), []
    for image in range(9):
        terms = [
            -logits[image, position].double().log_softmax(-1)[values.flatten(1)[image, position]]
            for logits, values, predicted in zip(output.logits, codes.levels(), output.predicted, strict=True)
            for position in predicted[image].nonzero()[:, 0].tolist()
        ]
        per_image.append(torch.stack(terms).mean())
    torch.testing.assert_close(output.loss.double(), torch.stack(per_image).mean(), rtol=1e-5, atol=0)


def test_groups_are_drawn_in_proportion_to_their_codes(make_contextual_prior: Make, mixed_layout: CodeLayout) -> None:
    model = make_contextual_prior(mixed_layout)
    hidden, asked = model._draw_hidden(10 * mixed_layout.num_codes, torch.device("cpu"))
    drawn = [mask.any(1).sum().item() for mask in asked]
    assert drawn == pytest.approx([10 * group.num_codes for group in mixed_layout.groups], abs=1)
    for image in range(len(hidden[0])):
        chosen = [bool(mask[image].any()) for mask in asked].index(True)
        assert not any(mask[image].any() for mask in hidden[:chosen])
        assert all(mask[image].all() for mask in hidden[chosen + 1 :])
        assert torch.equal(hidden[chosen][image], asked[chosen][image])


def test_linear_masking_hides_every_number_of_positions_equally_often(make_contextual_prior: Make) -> None:
    layout = CodeLayout((CodeGroup(2, 3, (4, 2)),))
    model = make_contextual_prior(layout, masking_schedule="linear")
    _, (asked,) = model._draw_hidden(12_000, torch.device("cpu"))
    counts = torch.bincount(asked.sum(1), minlength=7).double()
    assert counts[0] == 0
    assert ((counts[1:] - 2000) ** 2 / 2000).sum() < 20.5  # 99.9 % quantile with 5 degrees of freedom


def every_image(layout: CodeLayout) -> Codes:
    sizes = [layout.codebook_sizes[level] for level in layout.level_of_code()]
    return layout.unflatten(torch.tensor(list(itertools.product(*map(range, sizes)))))


def order_log_probabilities(model: ContextualPriorModel, codes: Codes, group: int) -> torch.Tensor:
    """log p_σ of each level of a group for every order σ of its positions: float64 (orders, B, D_g)."""
    values = codes.groups[group].flatten(1, 2)
    size, rows = values.shape[1], []
    for order in itertools.permutations(range(size)):
        hidden = torch.ones(len(values), size, dtype=torch.bool)
        total = torch.zeros(len(values), values.shape[2], dtype=torch.float64)
        for position in order:
            for depth, logits in enumerate(predict(model, codes, group, hidden)):
                log_probabilities = logits[:, position].detach().double().log_softmax(-1)
                total[:, depth] += log_probabilities.gather(1, values[:, position, depth, None])[:, 0]
            hidden[:, position] = False
        rows.append(total)
    return torch.stack(rows)


def test_log_prob_estimates_the_bound_over_all_orders(make_contextual_prior: Make, random_codes: Draw) -> None:
    model, image = make_contextual_prior(TOY), random_codes(TOY, 1)
    copies = TOY.unflatten(image.flatten().expand(600, -1))
    exact = torch.cat([order_log_probabilities(model, image, group).mean(0)[0] for group in range(2)])
    for num_masks in (1, 2, 8):
        estimates = model.log_prob_per_level(copies, num_masks=num_masks, generator=7).detach().double()
        error = estimates.std(0) / 600**0.5
        assert ((estimates.mean(0) - exact).abs() < 4 * error + 1e-5).all()


def test_the_bound_is_below_a_normalised_likelihood(make_contextual_prior: Make) -> None:
    model, every = make_contextual_prior(TOY), every_image(TOY)
    orders = [order_log_probabilities(model, every, group).sum(-1) for group in range(2)]
    mixture = sum(group.logsumexp(0) - math.log(len(group)) for group in orders)
    assert mixture.exp().sum().item() == pytest.approx(1, abs=1e-5)
    bound = sum(group.mean(0) for group in orders)
    assert (bound <= mixture + 1e-9).all()
    estimates = [model.log_prob(every, generator=1000 * seed).detach().double() for seed in range(10)]
    assert torch.stack(estimates).mean(0).mean() == pytest.approx(bound.mean().item(), abs=0.02)


def test_log_prob_is_exact_where_there_is_one_order(make_contextual_prior: Make) -> None:
    layout = CodeLayout((CodeGroup(1, 1, (2, 3)), CodeGroup(1, 1, (4,))))
    total = make_contextual_prior(layout).log_prob(every_image(layout)).detach().double().exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-5)


def test_log_prob_depends_on_the_image_only(
    make_contextual_prior: Make, random_codes: Draw, layout: CodeLayout
) -> None:
    model, codes, labels = make_contextual_prior(layout), random_codes(layout, 5), torch.tensor([0, 1, 2, -1, 0])
    whole = model.log_prob(codes, labels)
    alone = torch.cat([model.log_prob(codes[i], labels[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(alone, whole)
    seeded = model.log_prob_of_split(codes, labels, range(5), 1250)
    torch.testing.assert_close(seeded, model.log_prob_per_level(codes, labels, num_masks=8, generator=0))
    assert not torch.equal(seeded.sum(1), whole)
    with pytest.raises(ValueError, match="num_masks must be at least 1, got 0"):
        model.log_prob(codes, num_masks=0)


def test_soft_targets_and_smoothing(make_contextual_prior: Make, random_codes: Draw, layout: CodeLayout) -> None:
    model, codes = (
        make_contextual_prior(layout, label_smoothing=0.3, label_dropout=0.0).train(),
        random_codes(layout, 8),
    )
    levels = zip(codes.levels(), layout.codebook_sizes, strict=True)
    soft = tuple(torch.rand(8, level[0].numel(), size).softmax(-1) for level, size in levels)
    output, sums, counts = model(codes, soft_targets=soft), 0.0, 0.0
    for logits, target, predicted in zip(output.logits, soft, output.predicted, strict=True):
        smoothed = 0.7 * target + 0.3 / target.shape[-1]
        cross_entropy = -(smoothed.double() * logits.double().log_softmax(-1)).sum(-1)
        sums, counts = sums + (cross_entropy * predicted).sum(1), counts + predicted.sum(1)
    torch.testing.assert_close(output.loss.double(), (sums / counts).mean(), rtol=1e-5, atol=0)


def test_half_precision(make_contextual_prior: Make, random_codes: Draw, mixed_layout: CodeLayout) -> None:
    model, codes = make_contextual_prior(mixed_layout), random_codes(mixed_layout, 8)
    expected = model.log_prob(codes)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(codes).loss.dtype == torch.float32
        model.generate([0, 1], guidance_scale=2.0).validate()
    half = model.bfloat16()
    assert half(codes).loss.dtype == torch.float32
    torch.testing.assert_close(half.log_prob(codes), expected, rtol=0.02, atol=0)
    half.generate([0, 1], guidance_scale=2.0).validate()


def test_save_and_load(make_contextual_prior: Make, random_codes: Draw, layout: CodeLayout, tmp_path: Path) -> None:
    model, codes, labels = make_contextual_prior(layout), random_codes(layout, 2), torch.tensor([1, 2])
    model.generation_config = CodeGenerationConfig(guidance_scale=2.0, num_draft_steps=3, num_revisions=1)
    model.save_pretrained(tmp_path)
    loaded = ContextualPriorModel.from_pretrained(tmp_path)
    assert loaded.generation_config == model.generation_config
    config = loaded.config.to_dict() | {"_name_or_path": ""}
    assert config == model.config.to_dict()
    assert torch.equal(loaded.log_prob(codes, labels), model.log_prob(codes, labels))
    assert loaded.generate(labels, generator=3) == model.generate(labels, generator=3)


def test_inputs_that_do_not_fit(make_contextual_prior: Make, random_codes: Draw, mixed_layout: CodeLayout) -> None:
    model, codes = make_contextual_prior(mixed_layout), random_codes(mixed_layout, 2)
    for call in (model, model.log_prob):
        with pytest.raises(ValueError, match="codes have the layout 2×2×1 of 5, this prior models 1×1×1 of 4"):
            call(random_codes(CodeLayout((CodeGroup(2, 2, (5,)),)), 2))
        with pytest.raises(ValueError, match="Class label 3 is out of range; this prior accepts 0 to 2, or -1"):
            call(codes, torch.tensor([0, 3]))
    with pytest.raises(ValueError, match=r"masking_schedule must be one of 'cosine', .*got 'sine'"):
        ContextualPriorConfig(masking_schedule="sine")
    with pytest.raises(ValueError, match="num_depth_layers must be an integer from 1"):
        ContextualPriorConfig(num_depth_layers=0)

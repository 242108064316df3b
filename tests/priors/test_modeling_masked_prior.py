from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hq_tokenizers.codes import CodeGroup, CodeLayout, Codes
from hq_tokenizers.priors import CodeGenerationConfig, MaskedCodeScheduler, MaskedPriorConfig, MaskedPriorModel
from hq_tokenizers.priors.conditions import Conditions
from hq_tokenizers.priors.modeling_masked_prior import MaskedPredictor

Make = Callable[..., MaskedPriorModel]
Draw = Callable[..., Codes]

VARIANTS = {
    "plain": {},
    "code vectors": {"input_embeddings": "code_vectors", "code_vector_dim": 6},
    "gpt": {"block_type": "gpt"},
}
TOY = CodeLayout((CodeGroup(1, 3, (3, 2)), CodeGroup(1, 1, (2,))))


def predict(model: MaskedPriorModel, codes: Codes, level: int, hidden: torch.Tensor) -> torch.Tensor:
    """Logits (B, P_g, K) of one level of unconditional images."""
    predictor = MaskedPredictor(model, Conditions(torch.full((codes.batch_size,), -1)))
    group, _ = list(codes.layout.levels())[level]
    for earlier in codes.groups[:group]:
        predictor.finish_group(earlier.flatten(1, 2))
    return predictor.logits(level, codes.groups[group].flatten(1, 2), hidden)


def half_hidden(num_positions: int) -> torch.Tensor:
    return torch.arange(num_positions)[None] % 2 == 0


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_visible_codes_matter_and_hidden_ones_are_not_seen(
    make_masked_prior: Make, random_codes: Draw, layout: CodeLayout, variant: dict
) -> None:
    model, codes = make_masked_prior(layout, **variant), random_codes(layout, 1)
    levels, order = list(layout.levels()), layout.level_of_code()
    sizes = torch.tensor(layout.codebook_sizes)[order]
    positions = torch.cat([torch.arange(g.num_positions).repeat_interleave(g.depth) for g in layout.groups])
    for level, (group, _) in enumerate(levels):
        hidden = half_hidden(layout.groups[group].num_positions)
        before = predict(model, codes, level, hidden)
        for index in range(layout.num_codes):
            flat = codes.flatten().clone()
            flat[:, index] = (flat[:, index] + 1) % sizes[index]
            after = predict(model, layout.unflatten(flat), level, hidden)
            other = order[index].item()
            seen = other < level or (other == level and not hidden[0, positions[index]])
            changed = (before != after).any(-1)
            assert changed.all() if seen else not changed.any()


def test_training_pass_sees_what_sampling_sees(make_masked_prior: Make, random_codes: Draw, layout: CodeLayout) -> None:
    model, codes = make_masked_prior(layout), random_codes(layout, 2)
    conditions = Conditions(torch.tensor([-1, -1]))
    for level, (group, depth) in enumerate(layout.levels()):
        masks = [torch.zeros(2, g.num_positions, g.depth, dtype=torch.bool) for g in layout.groups]
        for later in masks[group + 1 :]:
            later[:] = True
        masks[group][..., depth + 1 :] = True
        hidden = half_hidden(layout.groups[group].num_positions).expand(2, -1)
        masks[group][..., depth] = hidden
        # Finer groups are in this sequence, and not in the other one.
        torch.testing.assert_close(
            model._logits(codes, masks, conditions)[level], predict(model, codes, level, hidden), atol=1e-5, rtol=1e-5
        )


def test_forward_hides_what_it_asks_for(make_masked_prior: Make, random_codes: Draw, layout: CodeLayout) -> None:
    model, codes = make_masked_prior(layout), random_codes(layout, 40)
    torch.manual_seed(3)
    output = model(codes)
    order = torch.cat([predicted.any(1)[:, None] for predicted in output.predicted], dim=1)
    assert (order.sum(1) == 1).all()  # one level per image
    # Other codes at the places asked for, and at all finer levels: nothing changes.
    flat_levels, changed = layout.level_of_code(), codes.flatten().clone()
    sizes = torch.tensor(layout.codebook_sizes)[flat_levels]
    for image in range(40):
        level = int(order[image].nonzero())
        asked = output.predicted[level][image]
        places = (flat_levels == level).nonzero()[:, 0][asked]
        changed[image, places] = (changed[image, places] + 1) % sizes[places]
        finer = flat_levels > level
        changed[image, finer] = (changed[image, finer] + 1) % sizes[finer]
    torch.manual_seed(3)
    again = model(layout.unflatten(changed))
    for image in range(40):
        level = int(order[image].nonzero())
        assert torch.equal(output.logits[level][image], again.logits[level][image])


def test_loss_is_the_mean_over_the_predicted_codes(
    make_masked_prior: Make, random_codes: Draw, layout: CodeLayout
) -> None:
    model, codes, labels = make_masked_prior(layout), random_codes(layout, 9), torch.arange(9) % 4 - 1
    output, per_image = model(codes, labels), []
    for image in range(9):
        terms = [
            -logits[image, position].double().log_softmax(-1)[values.flatten(1)[image, position]]
            for logits, values, predicted in zip(output.logits, codes.levels(), output.predicted, strict=True)
            for position in predicted[image].nonzero()[:, 0].tolist()
        ]
        per_image.append(torch.stack(terms).mean())
    torch.testing.assert_close(output.loss.double(), torch.stack(per_image).mean(), rtol=1e-5, atol=0)


def test_levels_are_drawn_in_proportion_to_their_codes(make_masked_prior: Make, layout: CodeLayout) -> None:
    model = make_masked_prior(layout)
    _, predicted = model._draw_hidden(10 * layout.num_codes, torch.device("cpu"))
    drawn = [level.any(1).sum().item() for level in predicted]
    expected = [10 * layout.groups[group].num_positions for group, _ in layout.levels()]
    # Systematic sampling is off by less than one image.
    assert drawn == pytest.approx(expected, abs=1)
    assert sum(drawn) == 10 * layout.num_codes


def test_linear_masking_hides_every_number_of_codes_equally_often(make_masked_prior: Make) -> None:
    layout = CodeLayout((CodeGroup(2, 3, (4,)),))
    _, (predicted,) = make_masked_prior(layout, masking_schedule="linear")._draw_hidden(12_000, torch.device("cpu"))
    counts = torch.bincount(predicted.sum(1), minlength=7).double()
    assert counts[0] == 0
    assert ((counts[1:] - 2000) ** 2 / 2000).sum() < 20.5  # 99.9 % quantile with 5 degrees of freedom
    places = predicted.sum(0).double()
    assert ((places - places.mean()).abs() < 5 * 12_000**0.5 / 2).all()
    _, (cosine,) = make_masked_prior(layout)._draw_hidden(12_000, torch.device("cpu"))
    assert cosine.double().mean() > predicted.double().mean() + 0.03


def every_image(layout: CodeLayout) -> Codes:
    sizes = [layout.codebook_sizes[level] for level in layout.level_of_code()]
    return layout.unflatten(torch.tensor(list(itertools.product(*map(range, sizes)))))


def order_log_probabilities(model: MaskedPriorModel, codes: Codes, level: int) -> torch.Tensor:
    """log p_σ of one level for every order σ of its positions: float64 (orders, B)."""
    values = codes.levels()[level].flatten(1)
    size, rows = values.shape[1], []
    for order in itertools.permutations(range(size)):
        hidden, total = torch.ones(len(values), size, dtype=torch.bool), 0.0
        for position in order:
            logits = predict(model, codes, level, hidden)[:, position].detach().double()
            total = total + logits.log_softmax(-1).gather(1, values[:, position, None])[:, 0]
            hidden[:, position] = False
        rows.append(total)
    return torch.stack(rows)


def test_log_prob_estimates_the_bound_over_all_orders(make_masked_prior: Make, random_codes: Draw) -> None:
    model, image = make_masked_prior(TOY), random_codes(TOY, 1)
    copies = TOY.unflatten(image.flatten().expand(600, -1))
    for num_masks in (1, 2, 8):
        estimates = model.log_prob_per_level(copies, num_masks=num_masks, generator=7).detach().double()
        for level in range(TOY.num_levels):
            exact = order_log_probabilities(model, image, level).mean().item()
            error = estimates[:, level].std().item() / 600**0.5
            assert estimates[:, level].mean().item() == pytest.approx(exact, abs=4 * error + 1e-5)


def test_the_bound_is_below_a_normalised_likelihood(make_masked_prior: Make) -> None:
    model, every = make_masked_prior(TOY), every_image(TOY)
    orders = [order_log_probabilities(model, every, level) for level in range(TOY.num_levels)]
    mixture = sum(level.logsumexp(0) - torch.tensor(len(level)).double().log() for level in orders)
    assert mixture.exp().sum().item() == pytest.approx(1, abs=1e-5)
    bound = sum(level.mean(0) for level in orders)
    assert (bound <= mixture + 1e-9).all()
    # Every mask size once, averaged over seeds: close to the bound on average over images.
    estimates = [model.log_prob(every, generator=1000 * seed).detach().double() for seed in range(10)]
    assert torch.stack(estimates).mean(0).mean() == pytest.approx(bound.mean().item(), abs=0.02)


def test_log_prob_is_exact_where_there_is_one_order(make_masked_prior: Make) -> None:
    layout = CodeLayout((CodeGroup(1, 1, (2, 3)), CodeGroup(1, 1, (4,))))
    total = make_masked_prior(layout).log_prob(every_image(layout)).detach().double().exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-5)


def test_log_prob_depends_on_the_image_only(make_masked_prior: Make, random_codes: Draw, layout: CodeLayout) -> None:
    model, codes, labels = make_masked_prior(layout), random_codes(layout, 5), torch.tensor([0, 1, 2, -1, 0])
    whole = model.log_prob(codes, labels)
    alone = torch.cat([model.log_prob(codes[i], labels[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(alone, whole)
    torch.testing.assert_close(model.log_prob_per_level(codes, labels).sum(1), whole)
    seeded = model.log_prob(codes, labels, generator=3)
    assert torch.equal(model.log_prob(codes, labels, generator=3), seeded)
    assert not torch.equal(seeded, whole)
    with pytest.raises(ValueError, match="num_masks must be at least 1, got 0"):
        model.log_prob(codes, num_masks=0)


def test_the_mean_over_a_split_is_estimated_from_as_many_masks_as_its_size_needs(
    make_masked_prior: Make, random_codes: Draw, layout: CodeLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, codes, labels = make_masked_prior(layout, num_classes=3), random_codes(layout, 6), torch.arange(6) % 3
    whole = model.log_prob_of_split(codes, labels, range(6), 6)
    flat = codes.flatten()
    for rows in ([0, 1], [5, 2, 4], [3]):
        part = model.log_prob_of_split(layout.unflatten(flat[rows]), labels[rows], rows, 6)
        torch.testing.assert_close(part, whole[rows])
    seeds = [torch.Generator().manual_seed(index) for index in range(6)]
    torch.testing.assert_close(whole, model.log_prob_per_level(codes, labels, num_masks=8, generator=seeds))
    asked = []
    monkeypatch.setattr(model, "log_prob_per_level", lambda *args, num_masks, **_: asked.append(num_masks))
    for num_images in (1, 1250, 1251, 5000, 9999, 10_000, 1_000_000):
        model.log_prob_of_split(codes, labels, range(6), num_images)
    assert asked == [8, 8, 8, 2, 2, 1, 1]


def test_classes_matter_and_none_is_the_null_class(
    make_masked_prior: Make, random_codes: Draw, layout: CodeLayout
) -> None:
    model, codes = make_masked_prior(layout), random_codes(layout, 1)
    four = Codes.cat([codes] * 4)
    log_prob = model.log_prob(four, torch.tensor([0, 1, 2, -1]))
    assert len(set(log_prob.tolist())) == 4
    torch.testing.assert_close(model.log_prob(codes)[0], log_prob[3])


def test_soft_targets_and_smoothing(make_masked_prior: Make, random_codes: Draw, layout: CodeLayout) -> None:
    model, codes = make_masked_prior(layout), random_codes(layout, 8)
    levels = zip(codes.levels(), layout.codebook_sizes, strict=True)
    soft = tuple(torch.rand(8, level[0].numel(), size).softmax(-1) for level, size in levels)

    def expected(output: object, targets: tuple[torch.Tensor, ...]) -> torch.Tensor:
        sums, counts = 0.0, 0.0
        for logits, target, predicted in zip(output.logits, targets, output.predicted, strict=True):
            cross_entropy = -(target.double() * logits.double().log_softmax(-1)).sum(-1)
            sums, counts = sums + (cross_entropy * predicted).sum(1), counts + predicted.sum(1)
        return (sums / counts).mean()

    output = model(codes, soft_targets=soft)
    torch.testing.assert_close(output.loss.double(), expected(output, soft), rtol=1e-5, atol=0)
    smooth = make_masked_prior(layout, label_smoothing=0.3, label_dropout=0.0).train()
    output = smooth(codes, soft_targets=soft)
    smoothed = tuple(0.7 * target + 0.3 / target.shape[-1] for target in soft)
    torch.testing.assert_close(output.loss.double(), expected(output, smoothed), rtol=1e-5, atol=0)
    with pytest.raises(ValueError, match="soft_targets are probabilities"):
        model(codes, soft_targets=soft[1:])


def test_eager_attention_equals_sdpa(make_masked_prior: Make, random_codes: Draw, layout: CodeLayout) -> None:
    model, codes = make_masked_prior(layout).double(), random_codes(layout, 2)
    assert model.config._attn_implementation == "sdpa"
    sdpa = model.log_prob(codes)
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model.log_prob(codes), sdpa, atol=1e-5, rtol=1e-6)


def settings_of(scheduler: MaskedCodeScheduler) -> dict:
    return {name: value for name, value in scheduler.config.items() if not name.startswith("_")}


def test_save_and_load_with_scheduler(
    make_masked_prior: Make, random_codes: Draw, layout: CodeLayout, tmp_path: Path
) -> None:
    model, codes, labels = make_masked_prior(layout), random_codes(layout, 2), torch.tensor([1, 2])
    model.scheduler = MaskedCodeScheduler(num_steps=3, masking_schedule="square", decoding_order="random")
    model.generation_config = CodeGenerationConfig(guidance_scale=2.0, choice_temperature=1.0)
    model.save_pretrained(tmp_path)
    assert {"scheduler_config.json", "generation_config.json"} <= {path.name for path in tmp_path.iterdir()}
    loaded = MaskedPriorModel.from_pretrained(tmp_path)
    assert settings_of(loaded.scheduler) == settings_of(model.scheduler)
    assert loaded.generation_config == model.generation_config
    assert torch.equal(loaded.log_prob(codes, labels), model.log_prob(codes, labels))
    assert loaded.generate(labels, generator=3) == model.generate(labels, generator=3)
    # The configuration alone carries the scheduler too, for a model that is a part of another one.
    part = MaskedPriorModel(MaskedPriorConfig(**model.config.to_dict()))
    assert settings_of(part.scheduler) == settings_of(model.scheduler)
    # So does what diffusers calls the configuration, with its own notes.
    assert any(name.startswith("_") for name in model.scheduler.config)
    same = MaskedPriorConfig(code_layout=layout.to_dict(), scheduler_config=dict(model.scheduler.config))
    assert same.scheduler_config == model.config.scheduler_config
    # As with diffusers, another scheduler is put beside the weights by its own save_pretrained.
    MaskedCodeScheduler(num_steps=2).save_pretrained(tmp_path)
    again, info = MaskedPriorModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert again.scheduler.config.num_steps == again.config.scheduler_config["num_steps"] == 2
    (tmp_path / "scheduler_config.json").unlink()
    assert MaskedPriorModel.from_pretrained(tmp_path).scheduler.config.num_steps == 3


def test_inputs_that_do_not_fit(make_masked_prior: Make, random_codes: Draw, mixed_layout: CodeLayout) -> None:
    model, codes = make_masked_prior(mixed_layout), random_codes(mixed_layout, 2)
    for call in (model, model.log_prob):
        with pytest.raises(ValueError, match="codes have the layout 2×2×1 of 5, this prior models 1×1×1 of 4"):
            call(random_codes(CodeLayout((CodeGroup(2, 2, (5,)),)), 2))
        with pytest.raises(ValueError, match="Class label 3 is out of range; this prior accepts 0 to 2, or -1"):
            call(codes, torch.tensor([0, 3]))


def test_configuration(tmp_path: Path, mixed_layout: CodeLayout) -> None:
    config = MaskedPriorConfig(code_layout=mixed_layout.to_dict(), scheduler_config={"num_steps": [3] * 6})
    config.save_pretrained(tmp_path)
    assert MaskedPriorConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    with pytest.raises(ValueError, match=r"masking_schedule must be one of 'cosine', .*got 'sine'"):
        MaskedPriorConfig(masking_schedule="sine")
    with pytest.raises(ValueError, match="num_steps must be an integer from 1"):
        MaskedPriorConfig(scheduler_config={"num_steps": 0})
    with pytest.raises(ValueError, match="hidden_size must be an integer"):
        MaskedPriorConfig(hidden_size=0)


def test_diffusers_is_imported_only_when_a_masked_prior_samples() -> None:
    program = (
        "import sys, hq_tokenizers.priors as priors\n"
        "priors.RQPriorModel, priors.MaskedPriorModel\n"
        "config = priors.MaskedPriorConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)\n"
        "model = priors.MaskedPriorModel(config)\n"
        "assert 'diffusers' not in sys.modules, 'imported too early'\n"
        "model.scheduler\n"
        "assert 'diffusers' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).resolve().parents[2])

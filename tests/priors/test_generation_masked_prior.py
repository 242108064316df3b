from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from hq_tokenizers.codes import CodeGroup, CodeLayout, Codes
from hq_tokenizers.priors import CodeGenerationConfig, MaskedPriorModel
from hq_tokenizers.priors.conditions import Conditions

Make = Callable[..., MaskedPriorModel]
Draw = Callable[..., Codes]

TOY = CodeLayout((CodeGroup(1, 2, (2, 3)), CodeGroup(1, 1, (4,))))
TOY_SIZES = (2, 3, 2, 3, 4)
# Places in flattened order of each level's positions.
TOY_PLACES = ((0, 2), (1, 3), (4,))
NUM_DRAWS = 50_000


def full_pass(model: MaskedPriorModel, codes: Codes, level: int, hidden: torch.Tensor, label: int) -> torch.Tensor:
    """Logits (B, P_g, K) of a level, all groups in the sequence and every mask spelled out."""
    masks = []
    for index, ((group, depth), values) in enumerate(zip(codes.layout.levels(), codes.levels(), strict=True)):
        if depth == 0:
            masks.append([])
        mask = torch.zeros_like(values.flatten(1), dtype=torch.bool)
        masks[group].append(mask | (index > level) | (hidden if index == level else False))
    conditions = Conditions(torch.full((codes.batch_size,), label))
    return model._logits(codes, [torch.stack(group, dim=-1) for group in masks], conditions)[level]


def toy_log_probabilities(
    model: MaskedPriorModel, process: Callable, known: dict[int, int], num_steps: int
) -> tuple[Codes, torch.Tensor]:
    """Every toy image and its log-probability when each level's unknown codes are revealed in `num_steps` even steps,
    averaged over all orders, each conditional going through `process(c, u)`."""
    every = TOY.unflatten(torch.tensor(list(itertools.product(*map(range, TOY_SIZES)))))
    flat, total = every.flatten(), torch.zeros(every.batch_size, dtype=torch.float64)
    for place, value in known.items():
        total += torch.where(flat[:, place] == value, 0.0, -torch.inf)
    for level, places in enumerate(TOY_PLACES):
        unknown = [position for position, place in enumerate(places) if place not in known]
        per_order = []
        for order in itertools.permutations(unknown):
            hidden = torch.zeros(every.batch_size, len(places), dtype=torch.bool)
            hidden[:, list(order)] = True
            sum_of_order = torch.zeros_like(total)
            parts = [order] if num_steps == 1 else [(position,) for position in order]
            for part in parts:
                conditional, unconditional = (
                    full_pass(model, every, level, hidden, label).detach().double() for label in (1, -1)
                )
                log_probabilities = process(conditional, unconditional).log_softmax(-1)
                for position in part:
                    values = flat[:, places[position], None]
                    sum_of_order += log_probabilities[:, position].gather(1, values)[:, 0]
                hidden[:, list(part)] = False
            per_order.append(sum_of_order)
        stacked = torch.stack(per_order)
        total += stacked.logsumexp(0) - torch.tensor(float(len(stacked)), dtype=torch.float64).log()
    return every, total


def keep_top(logits: torch.Tensor, count: int) -> torch.Tensor:
    rank = logits.argsort(-1, descending=True).argsort(-1)
    return logits.masked_fill(rank >= count, -torch.inf)


@pytest.mark.parametrize(
    ("num_steps", "settings", "process", "known"),
    [
        (1, {}, lambda c, u: c, {}),
        (2, {}, lambda c, u: c, {}),
        (2, {"temperature": 0.7, "top_k": 2}, lambda c, u: keep_top(c, 2) / 0.7, {}),
        (2, {"guidance_scale": 2.5}, lambda c, u: u + 2.5 * (c - u), {}),
        (2, {"guidance_scale": 2.0, "top_k": 2}, lambda c, u: keep_top(2 * c - u, 2), {0: 1, 3: 2}),
    ],
    ids=["one step", "a step per code", "temperature and top-k", "guidance", "all with known codes"],
)
def test_samples_follow_the_enumerated_distribution(
    make_masked_prior: Make, num_steps: int, settings: dict, process: Callable, known: dict[int, int]
) -> None:
    model = make_masked_prior(TOY)
    every, log_probabilities = toy_log_probabilities(model, process, known, num_steps)
    expected = log_probabilities.exp() * NUM_DRAWS
    assert expected.sum().item() == pytest.approx(NUM_DRAWS, rel=1e-6)
    if known:
        flat, mask = torch.zeros(1, 5, dtype=torch.long), torch.zeros(1, 5, dtype=torch.long)
        for index, value in known.items():
            flat[0, index], mask[0, index] = value, 1
        masks = tuple(group.bool() for group in TOY.unflatten(mask).groups)
        settings = settings | {"known_codes": TOY.unflatten(flat), "known_mask": masks}
    settings = settings | {"num_steps": num_steps, "decoding_order": "random", "masking_schedule": "linear"}
    samples = model.generate(class_labels=[1], num_images=NUM_DRAWS, generator=0, **settings).flatten()
    counts = torch.bincount((samples * torch.tensor([72, 24, 12, 4, 1])).sum(1), minlength=every.batch_size)
    assert not counts[expected == 0].any()
    common = expected >= 5
    observed = torch.cat([counts[common], counts[~common].sum()[None]]).double()
    predicted = torch.cat([expected[common], expected[~common].sum()[None]])
    observed, predicted = observed[predicted > 0], predicted[predicted > 0]
    chi_square = ((observed - predicted) ** 2 / predicted).sum().item()
    degrees = len(predicted) - 1
    assert degrees >= 3
    # 99.9 % quantile by Wilson and Hilferty's approximation.
    assert chi_square < degrees * (1 - 2 / (9 * degrees) + 3.09 * (2 / (9 * degrees)) ** 0.5) ** 3


@pytest.mark.parametrize("num_steps", [1, 3, 50])
def test_greedy_decoding_equals_a_loop_over_positions(
    make_masked_prior: Make, layout: CodeLayout, num_steps: int
) -> None:
    """At temperature 0 without choice noise decoding is deterministic: a loop in plain Python must find the same."""
    model = make_masked_prior(layout)
    codes = [torch.zeros(1, g.num_positions, g.depth, dtype=torch.long) for g in layout.groups]
    for level, (group, depth) in enumerate(layout.levels()):
        size = layout.groups[group].num_positions
        hidden, steps = set(range(size)), min(num_steps, size)
        for step in range(1, steps + 1):
            mask = torch.tensor([[position in hidden for position in range(size)]])
            grids = [c.unflatten(1, (g.height, g.width)) for c, g in zip(codes, layout.groups, strict=True)]
            logits = full_pass(model, Codes(tuple(grids), layout), level, mask, 2)[0].log_softmax(-1)
            surest = sorted(hidden, key=lambda position: -logits[position].max().item())
            # Linear schedule: the share 1 − step/steps remains hidden, at least one per later step.
            remain = max(int(size * (1 - step / steps) + 1e-6), steps - step)
            for position in surest[: len(hidden) - remain]:
                codes[group][0, position, depth] = logits[position].argmax()
                hidden.remove(position)
        assert not hidden
    settings = {"temperature": 0, "choice_temperature": 0, "masking_schedule": "linear", "num_steps": num_steps}
    sampled = model.generate([2], **settings)
    assert torch.equal(sampled.flatten(), torch.cat([group.flatten(1) for group in codes], dim=1))


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("order", ["confidence", "random"])
def test_known_codes_are_kept_and_the_rest_sampled(
    make_masked_prior: Make, random_codes: Draw, layout: CodeLayout, guidance_scale: float, order: str
) -> None:
    model, known = make_masked_prior(layout), random_codes(layout, 2, seed=1)
    flat_mask = torch.rand(2, layout.num_codes, generator=torch.Generator().manual_seed(2)) < 0.5
    masks = tuple(group.bool() for group in layout.unflatten(flat_mask.long()).groups)
    options = {"num_images": 8, "generator": 0, "guidance_scale": guidance_scale, "known_mask": masks}
    options |= {"decoding_order": order, "num_steps": 2}
    codes = model.generate([0, 1], known_codes=known, **options).flatten()
    kept = flat_mask.repeat_interleave(8, dim=0)
    assert torch.equal(codes[kept], known.flatten().repeat_interleave(8, dim=0)[kept])
    for rows in codes.split(8):
        assert len(set(map(tuple, rows.tolist()))) > 1
    # Values outside the mask are never read.
    junk = layout.unflatten(torch.where(flat_mask, known.flatten(), -7))
    assert torch.equal(model.generate([0, 1], known_codes=junk, **options).flatten(), codes)
    # Inputs do not disturb each other.
    options |= {"known_mask": [mask[1:] for mask in masks], "generator": 8}
    assert torch.equal(model.generate([1], known_codes=known[1], **options).flatten(), codes[8:])


def test_kept_levels_take_no_pass_and_leave_the_others_noise_alone(
    make_masked_prior: Make, mixed_layout: CodeLayout
) -> None:
    model, passes = make_masked_prior(mixed_layout), []
    images = model.generate([0, 1], generator=5, num_steps=2)
    assert model.num_sampling_steps(CodeGenerationConfig(num_steps=2)) == 1 + 5 * 2
    model.spatial_transformer.register_forward_hook(lambda *args: passes.append(1))
    kept = [torch.full((1, g.height, g.width, g.depth), index < 2) for index, g in enumerate(mixed_layout.groups)]
    calls = []
    again = model.generate(
        [0, 1],
        known_codes=images,
        known_mask=kept,
        generator=5,
        num_steps=2,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert again == images
    assert len(passes) == 6
    assert calls == [(1, 11), (3, 11), (5, 11), *[(6 + i, 11) for i in range(6)]]


def test_known_codes_of_a_level_guide_the_rest_of_it(make_masked_prior: Make, random_codes: Draw) -> None:
    layout = CodeLayout((CodeGroup(1, 3, (5,)),))
    model = make_masked_prior(layout)
    mask = [torch.tensor([[[True, False, True]]])]
    known = [layout.unflatten(torch.tensor([[first, 0, last]])) for first, last in ((0, 1), (4, 2))]
    for codes in known:
        sampled = model.generate(known_codes=codes, known_mask=mask, num_images=4000, generator=0).flatten()[:, 1]
        hidden = torch.tensor([[False, True, False]])
        expected = full_pass(model, codes, 0, hidden, -1)[0, 1].double().softmax(-1) * 4000
        counts = torch.bincount(sampled, minlength=5)
        assert ((counts - expected) ** 2 / expected).sum() < 18.5  # 99.9 % quantile, 4 degrees of freedom


def test_settings_of_the_call_replace_those_of_the_scheduler(make_masked_prior: Make, mixed_layout: CodeLayout) -> None:
    model, totals = make_masked_prior(mixed_layout), []
    for settings in ({}, {"num_steps": 2}, {"num_steps": [1, 4, 3, 2, 1, 9]}):
        model.generate(progress=lambda done, total: totals.append(total), **settings)
    # 1, 4, 4, 6, 6, 6 positions; never more steps than positions.
    assert sorted(set(totals)) == sorted({1 + 4 + 4 + 6 + 6 + 6, 1 + 5 * 2, 1 + 4 + 3 + 2 + 1 + 6})
    assert model.scheduler.config.num_steps == 12
    assert len(model.scheduler.timesteps) == 0
    default = model.generate([0, 1, 2], generator=0)
    model.scheduler = type(model.scheduler)(decoding_order="random")
    other = model.generate([0, 1, 2], generator=0)
    assert other != default
    assert model.generate([0, 1, 2], generator=0, decoding_order="confidence") == default


def test_learns_one_image_per_class(make_masked_prior: Make, random_codes: Draw, layout: CodeLayout) -> None:
    images, labels = random_codes(layout, 3, seed=4), torch.arange(3)
    model = make_masked_prior(layout, initializer_range=0.05, label_dropout=0.0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    many = Codes.cat([images] * layout.num_levels)
    for _ in range(150):
        loss = model(many, labels.repeat(layout.num_levels)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.generate(labels, temperature=0) == images
    assert -model.eval().log_prob(images, labels).mean().item() / layout.num_codes < 0.2


def test_bfloat16(make_masked_prior: Make, random_codes: Draw, mixed_layout: CodeLayout) -> None:
    model, codes = make_masked_prior(mixed_layout), random_codes(mixed_layout, 8)
    expected = model.log_prob(codes)
    half = model.bfloat16()
    assert half(codes).loss.dtype == torch.float32
    torch.testing.assert_close(half.log_prob(codes), expected, rtol=0.02, atol=0)
    half.generate([0, 1], guidance_scale=2.0).validate()


def test_bad_arguments_are_named(make_masked_prior: Make, random_codes: Draw, mixed_layout: CodeLayout) -> None:
    model = make_masked_prior(mixed_layout)

    def refuses(message: str, **kwargs: object) -> None:
        with pytest.raises(ValueError, match=message):
            model.generate(**kwargs)

    refuses(
        "cache_implementation='static' is a setting of rq_prior models, this is a masked_prior",
        cache_implementation="static",
    )
    refuses("num_steps lists 2 values .* 6 levels", num_steps=[1, 2])
    refuses("num_steps must be an integer from 1", num_steps=0)
    refuses("decoding_order must be one of 'confidence', 'random', got 'raster'", decoding_order="raster")
    refuses("Class label 3 is out of range", class_labels=[3])
    refuses("known_codes needs a known_mask", known_codes=random_codes(mixed_layout, 2))

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from hq_tokenizers.codes import CodeGroup, CodeLayout, Codes
from hq_tokenizers.priors import CodeGenerationConfig, RQPriorModel

Make = Callable[..., RQPriorModel]
Draw = Callable[..., Codes]

TOY = CodeLayout((CodeGroup(1, 2, (2, 3)), CodeGroup(1, 1, (4,))))
TOY_SIZES = (2, 3, 2, 3, 4)
NUM_DRAWS = 50_000
VARIANTS = {
    "plain": {},
    "code vectors": {"input_embeddings": "code_vectors", "code_vector_dim": 6},
    "rotary": {"position_embedding": "rotary"},
    "gpt": {"block_type": "gpt"},
}


def record_logits(model: RQPriorModel, **kwargs: object) -> tuple[Codes, list[torch.Tensor]]:
    """Samples, and returns what each level's head gave: one (B', P_g, K) per level."""
    seen: list[list[torch.Tensor]] = [[] for _ in model.heads]
    hooks = [
        head.register_forward_hook(lambda module, args, out, level=level: seen[level].append(out))
        for level, head in enumerate(model.heads)
    ]
    codes = model.generate(**kwargs)
    for hook in hooks:
        hook.remove()
    return codes, [torch.cat(steps, dim=1) for steps in seen]


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize("cache", ["static", "dynamic"])
@pytest.mark.parametrize("num_rows", [2, 16])
def test_cached_logits_equal_teacher_forced_ones(
    make_prior: Make, layout: CodeLayout, num_rows: int, cache: str, variant: dict
) -> None:
    # Two rows, and enough for packed weights.
    model, labels = make_prior(layout, **variant), torch.arange(num_rows) % 4 - 1
    codes, logits = record_logits(model, class_labels=labels, generator=0, cache_implementation=cache)
    for cached, forced in zip(logits, model(codes, labels).logits, strict=True):
        torch.testing.assert_close(cached, forced, atol=1e-5, rtol=1e-5)


def test_guidance_runs_both_branches_in_one_batch(make_prior: Make, layout: CodeLayout) -> None:
    model, labels = make_prior(layout), torch.tensor([0, 2])
    codes, logits = record_logits(model, class_labels=labels, generator=0, guidance_scale=1.7)
    branches = zip(model(codes, labels).logits, model(codes).logits, strict=True)
    for cached, (conditional, unconditional) in zip(logits, branches, strict=True):
        torch.testing.assert_close(cached, torch.cat([conditional, unconditional]), atol=1e-5, rtol=1e-5)


def toy_log_probabilities(model: RQPriorModel, process: Callable, known: dict[int, int]) -> tuple[Codes, torch.Tensor]:
    """Every toy image and its float64 log-probability when each conditional goes through `process(c, u)`."""
    every = TOY.unflatten(torch.tensor(list(itertools.product(*map(range, TOY_SIZES)))))
    flat, total = every.flatten(), torch.zeros(every.batch_size, dtype=torch.float64)
    branches = [model(every, torch.full((every.batch_size,), label)).logits for label in (1, -1)]
    places = [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0)]  # (level, position) of the five codes in flattened order
    for index, (level, position) in enumerate(places):
        if index in known:
            total += torch.where(flat[:, index] == known[index], 0.0, -torch.inf)
            continue
        conditional, unconditional = (branch[level][:, position].detach().double() for branch in branches)
        total += process(conditional, unconditional).log_softmax(-1).gather(1, flat[:, index, None])[:, 0]
    return every, total


def keep_top(logits: torch.Tensor, count: int) -> torch.Tensor:
    rank = logits.argsort(-1, descending=True).argsort(-1)
    return logits.masked_fill(rank >= count, -torch.inf)


@pytest.mark.parametrize(
    ("settings", "process", "known"),
    [
        ({}, lambda c, u: c, {}),
        ({"temperature": 0.7, "top_k": 2}, lambda c, u: keep_top(c, 2) / 0.7, {}),
        ({"guidance_scale": 2.5}, lambda c, u: u + 2.5 * (c - u), {}),
        ({"guidance_scale": 2.0, "top_k": 2}, lambda c, u: keep_top(2 * c - u, 2), {0: 1, 3: 2}),
    ],
    ids=["plain", "temperature and top-k", "guidance", "all with known codes"],
)
def test_samples_follow_the_enumerated_distribution(
    make_prior: Make, settings: dict, process: Callable, known: dict[int, int]
) -> None:
    model = make_prior(TOY)
    every, log_probabilities = toy_log_probabilities(model, process, known)
    expected = log_probabilities.exp() * NUM_DRAWS
    assert expected.sum().item() == pytest.approx(NUM_DRAWS, rel=1e-6)
    if known:
        flat, mask = torch.zeros(1, 5, dtype=torch.long), torch.zeros(1, 5, dtype=torch.long)
        for index, value in known.items():
            flat[0, index], mask[0, index] = value, 1
        masks = tuple(group.bool() for group in TOY.unflatten(mask).groups)
        settings = settings | {"known_codes": TOY.unflatten(flat), "known_mask": masks}
    samples = model.generate(class_labels=[1], num_images=NUM_DRAWS, generator=0, **settings).flatten()
    # The images are enumerated in lexicographic order: a mixed-radix number.
    radix = torch.tensor([72, 24, 12, 4, 1])
    counts = torch.bincount((samples * radix).sum(1), minlength=every.batch_size)
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


@pytest.mark.parametrize("settings", [{}, {"guidance_scale": 3.0, "guidance_schedule": "linear", "top_p": 0.9}])
@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_samples_do_not_depend_on_the_batch_or_the_cache(
    make_prior: Make, layout: CodeLayout, settings: dict, variant: dict
) -> None:
    model, labels = make_prior(layout, **variant), torch.arange(16) % 4 - 1
    whole = model.generate(labels, generator=100, **settings)
    assert len(set(map(tuple, whole.flatten().tolist()))) == 16
    for size, cache in itertools.product((1, 3, 16), ("static", "dynamic")):
        options = {"cache_implementation": cache, **settings}
        parts = [
            model.generate(labels[first : first + size], generator=100 + first, **options)
            for first in range(0, 16, size)
        ]
        assert Codes.cat(parts) == whole


def test_images_of_a_label_stand_together(make_prior: Make, mixed_layout: CodeLayout) -> None:
    model = make_prior(mixed_layout)
    pairs = model.generate([2, 0], num_images=2, generator=5)
    assert pairs == model.generate(torch.tensor([2, 2, 0, 0]), generator=5)
    assert model.generate(2, generator=5) == pairs[0]
    assert model.generate(None, num_images=3, generator=5) == model.generate([-1] * 3, generator=5)
    generators = [torch.Generator().manual_seed(5 + i) for i in range(4)]
    assert model.generate([2, 0], num_images=2, generator=generators) == pairs


def test_guidance_of_one_is_the_conditional_model(make_prior: Make, layout: CodeLayout) -> None:
    model = make_prior(layout)
    plain = model.generate([0, 1, 2], generator=0)
    assert model.generate([0, 1, 2], generator=0, guidance_scale=1.0) == plain
    # An interval that holds no step but the first runs both branches and guides (nearly) nothing.
    first_only = {"guidance_scale": 1.0 + 1e-9, "guidance_schedule": "interval", "guidance_interval": [0.0, 0.0]}
    assert model.generate([0, 1, 2], generator=0, **first_only) == plain
    assert model.generate([0, 1, 2], generator=0, guidance_scale=8.0) != plain
    # A scale of 0 is the unconditional model.
    assert model.generate([0, 1, 2], generator=0, guidance_scale=0.0) == model.generate([-1] * 3, generator=0)


def test_guidance_follows_its_schedule_over_the_positions(make_prior: Make, layout: CodeLayout) -> None:
    model, labels = make_prior(layout), torch.tensor([0, 1, 2, 0])
    settings = {"guidance_scale": 9.0, "guidance_schedule": "linear", "temperature": 0}
    codes = model.generate(labels, generator=0, **settings)
    scales = 1 + 8 * torch.arange(layout.num_positions) / (layout.num_positions - 1)
    per_group = scales.split([group.num_positions for group in layout.groups])
    levels = zip(layout.levels(), model(codes, labels).logits, model(codes).logits, codes.levels(), strict=True)
    for (group, _), conditional, unconditional, values in levels:
        guided = unconditional + per_group[group][:, None] * (conditional - unconditional)
        assert torch.equal(guided.argmax(-1), values.flatten(1))


def test_greedy_codes_are_the_likeliest_ones(make_prior: Make, layout: CodeLayout) -> None:
    model, labels = make_prior(layout), torch.tensor([0, 1])
    codes = model.generate(labels, temperature=0, generator=0)
    assert codes == model.generate(labels, temperature=0, generator=99)
    for logits, values in zip(model(codes, labels).logits, codes.levels(), strict=True):
        assert torch.equal(logits.argmax(-1), values.flatten(1))


def test_settings_of_one_level_leave_the_others_random(make_prior: Make, mixed_layout: CodeLayout) -> None:
    model, levels = make_prior(mixed_layout), mixed_layout.num_levels
    codes = model.generate([1], num_images=40, generator=0, top_k=[1] + [0] * (levels - 1))
    distinct = [len(set(map(tuple, level.flatten(1).tolist()))) for level in codes.levels()]
    assert distinct[0] == 1
    assert min(distinct[1:]) > 1


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_known_codes_are_kept_and_the_rest_sampled(
    make_prior: Make, random_codes: Draw, layout: CodeLayout, guidance_scale: float
) -> None:
    model, known = make_prior(layout), random_codes(layout, 2, seed=1)
    flat_mask = torch.rand(2, layout.num_codes, generator=torch.Generator().manual_seed(2)) < 0.5
    masks = tuple(group.bool() for group in layout.unflatten(flat_mask.long()).groups)
    options = {"num_images": 8, "generator": 0, "guidance_scale": guidance_scale, "known_mask": masks}
    codes = model.generate([0, 1], known_codes=known, **options).flatten()
    kept = flat_mask.repeat_interleave(8, dim=0)
    assert torch.equal(codes[kept], known.flatten().repeat_interleave(8, dim=0)[kept])
    for rows in codes.split(8):
        assert len(set(map(tuple, rows.tolist()))) > 1
    # Values outside the mask are never read.
    junk = layout.unflatten(torch.where(flat_mask, known.flatten(), -7))
    assert torch.equal(model.generate([0, 1], known_codes=junk, **options).flatten(), codes)


def test_known_mask_of_positions_covers_all_depths(
    make_prior: Make, random_codes: Draw, mixed_layout: CodeLayout
) -> None:
    model, known = make_prior(mixed_layout), random_codes(mixed_layout, 3)
    positions = tuple(torch.ones(1, g.height, g.width, dtype=torch.bool) for g in mixed_layout.groups)
    assert model.generate(known_codes=known, known_mask=positions) == known
    assert model.generate([1], known_codes=known, known_mask=positions) == known
    one = model.generate([0, 1], known_codes=known[0], known_mask=positions)
    assert one == Codes.cat([known[0], known[0]])


def test_dropout_is_off_while_sampling_and_back_after(make_prior: Make, mixed_layout: CodeLayout) -> None:
    model = make_prior(mixed_layout, dropout=0.5, label_dropout=0.9)
    expected = model.generate([0, 1, 2], generator=0)
    model.train().heads[0].eval()
    assert model.generate([0, 1, 2], generator=0) == expected
    with pytest.raises(ZeroDivisionError):
        model.generate(progress=lambda done, total: done / 0)
    assert {name for name, module in model.named_modules() if not module.training} == {"heads.0"}


def test_bfloat16_samples_and_keeps_the_loss_in_float32(
    make_prior: Make, random_codes: Draw, mixed_layout: CodeLayout
) -> None:
    model, codes = make_prior(mixed_layout), random_codes(mixed_layout, 8)
    expected = model(codes).loss
    half = model.bfloat16()
    assert half(codes).loss.dtype == torch.float32
    torch.testing.assert_close(half(codes).loss, expected, rtol=0.02, atol=0)
    half.generate([0, 1], guidance_scale=2.0).validate()


def test_learns_one_image_per_class(make_prior: Make, random_codes: Draw, layout: CodeLayout) -> None:
    images, labels = random_codes(layout, 3, seed=4), torch.arange(3)
    model = make_prior(layout, initializer_range=0.05, label_dropout=0.0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(images, labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1
    assert model.generate(labels, temperature=0) == images


def test_progress(make_prior: Make, mixed_layout: CodeLayout, capsys: pytest.CaptureFixture[str]) -> None:
    model, calls = make_prior(mixed_layout), []
    model.generate(progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, 11) for i in range(11)]
    assert capsys.readouterr().err == ""
    model.generate(progress=True)
    assert "11/11" in capsys.readouterr().err


def test_bad_arguments_are_named(make_prior: Make, random_codes: Draw, mixed_layout: CodeLayout) -> None:
    model, known = make_prior(mixed_layout), random_codes(mixed_layout, 2)
    masks = [torch.ones(2, g.height, g.width, dtype=torch.bool) for g in mixed_layout.groups]

    def refuses(message: str, error: type[Exception] = ValueError, **kwargs: object) -> None:
        with pytest.raises(error, match=message):
            model.generate(**kwargs)

    refuses("Class label 3 is out of range; this prior accepts 0 to 2, or -1 for no class", class_labels=[0, 3])
    refuses(r"class_labels are integers of shape \(batch,\), got torch.float32", class_labels=[0.5])
    refuses(r"class_labels are integers of shape \(batch,\), got \['cat'\]", class_labels=["cat"])
    refuses("num_images must be an integer from 1 .*, got 0", num_images=0)
    refuses("num_images must be an integer from 1 .*, got 1.5", num_images=1.5)
    refuses("temperature must be a number from 0", temperature=-1)
    refuses("top_p must be a number above 0 and at most 1", top_p=1.2)
    refuses("top_k lists 2 values .* 6 levels", top_k=[1, 2])
    refuses("max_new_tokens=7 means nothing to a prior over codes", max_new_tokens=7)
    refuses("num_steps=4 is a setting of masked_prior models, this is a rq_prior: leave it out", num_steps=4)
    refuses("num_beams=4 means nothing", generation_config=CodeGenerationConfig.__base__(num_beams=4))
    refuses("known_codes needs a known_mask", known_codes=known)
    refuses("known_mask needs known_codes", known_mask=masks)
    refuses("one boolean tensor per group, 3 here, got 2 tensors", known_codes=known, known_mask=masks[:2])
    refuses("3 here, got a single tensor", known_codes=known, known_mask=masks[0])
    refuses(
        r"known_mask\[1\] must have shape \(2, 2, 2\) or \(2, 2, 2, 2\) .*got \(2, 3, 2\)",
        known_codes=known,
        known_mask=[masks[0], masks[2], masks[2]],
    )
    refuses(r"known_mask\[0\] must be boolean", TypeError, known_codes=known, known_mask=[m.long() for m in masks])
    refuses(
        "Got 3 class_labels and 2 known_codes: give equally many",
        class_labels=[0] * 3,
        known_codes=known,
        known_mask=masks,
    )
    refuses("Got 2 generators for 1 samples", generator=[torch.Generator(), torch.Generator()])
    beyond = mixed_layout.unflatten(known.flatten() + 50)
    refuses(r"Codes of level 1 must lie in \[0, 4\)", known_codes=beyond, known_mask=masks)
    other = CodeLayout((CodeGroup(2, 2, (5,)),))
    refuses("known_codes have the layout 2×2×1 of 5", known_codes=random_codes(other, 1), known_mask=masks[:1])
    with pytest.raises(ValueError, match=r"guidance_scale=2.0 needs a class-conditional prior.*num_classes=0"):
        make_prior(mixed_layout, num_classes=0).generate(guidance_scale=2.0)

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch

from hq_tokenizers.codes import CodeGroup, CodeLayout, Codes
from hq_tokenizers.priors import CodeGenerationConfig, ContextualPriorModel, PartialCodes
from hq_tokenizers.priors.conditions import Conditions
from hq_tokenizers.priors.generation_contextual_prior import DraftAndReviseSampler, random_partition
from hq_tokenizers.priors.modeling_contextual_prior import ContextualPredictor

Make = Callable[..., ContextualPriorModel]
Draw = Callable[..., Codes]

TOY = CodeLayout((CodeGroup(1, 2, (2, 3)), CodeGroup(1, 1, (4,))))
RADIX = torch.tensor([72, 24, 12, 4, 1])
NUM_DRAWS = 50_000
# Per group the places, in flattened order, of each position's codes.
PLACES = (((0, 1), (2, 3)), ((4,),))


@pytest.mark.parametrize(("size", "num_parts"), [(49, 12), (6, 6), (5, 1), (64, 2)])
def test_a_partition_holds_every_position_once(size: int, num_parts: int) -> None:
    generators = [torch.Generator().manual_seed(seed) for seed in range(200)]
    parts = random_partition(size, num_parts, generators, torch.device("cpu"))
    assert len(parts) == num_parts
    assert {part.shape[1] for part in parts} <= {size // num_parts, -(-size // num_parts)}
    together = torch.cat(parts, dim=1)
    assert torch.equal(together.sort(dim=1).values, torch.arange(size).expand(200, -1))
    if num_parts > 1:
        # Every position is in the first part as often as in any other.
        share = parts[0].shape[1] / size
        often = torch.bincount(parts[0].flatten(), minlength=size) / 200
        assert ((often - share).abs() < 5 * (share * (1 - share) / 200) ** 0.5).all()


class Witness:
    """A predictor that knows nothing and writes down what it is shown."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        self.sizes = sizes
        self.calls: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.finished: list[torch.Tensor] = []
        self.depth = self

    def finish_group(self, codes: torch.Tensor) -> None:
        self.finished.append(codes.clone())

    def states(self, codes: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        self.calls.append((codes.clone(), hidden.clone()))
        return torch.zeros(*hidden.shape, 1)

    def start(self, num_rows: int) -> None:
        pass

    def logits(self, depth_inputs: torch.Tensor, level: int) -> torch.Tensor:
        return torch.zeros(len(depth_inputs), self.sizes[level])

    def embed(self, level: int, codes: torch.Tensor) -> torch.Tensor:
        return torch.zeros(len(codes), 1, 1)

    def project(self, group: int, summed: torch.Tensor) -> torch.Tensor:
        return summed


def test_every_position_is_drafted_once_and_every_revision_covers_all() -> None:
    layout = CodeLayout((CodeGroup(3, 3, (50, 40)),))
    witness = Witness(layout.codebook_sizes)
    config = CodeGenerationConfig(num_draft_steps=4, num_revise_steps=2, num_revisions=3)
    sampler = DraftAndReviseSampler(
        layout=layout,
        predictor_for=lambda rows: witness,
        conditions=Conditions(torch.tensor([-1, -1])),
        generators=[torch.Generator().manual_seed(seed) for seed in range(2)],
        config=config,
        known=None,
        on_step=lambda done, partial: None,
    )
    codes = sampler.run().groups[0].flatten(1, 2)
    assert torch.equal(witness.finished[0], codes)
    assert len(witness.calls) == 4 + 3 * 2
    shown, hidden = (torch.stack(tensors) for tensors in zip(*witness.calls, strict=True))
    draft, revisions = hidden[:4], hidden[4:].unflatten(0, (3, 2))
    assert draft[0].all()
    assert draft.sum(2).tolist() == [[9, 9], [6, 6], [4, 4], [2, 2]]
    assert not (draft[1:] & ~draft[:-1]).any()  # what is drafted stays visible
    assert (revisions.sum(1) == 1).all()  # the parts of a revision hold every position once
    assert len({tuple(part.flatten().tolist()) for part in revisions[:, 0]}) == 3
    # A step changes codes that were hidden, and no others.
    after = torch.cat([shown[1:], codes[None]])
    assert not (after != shown)[~hidden].any()


def conditional(model: ContextualPriorModel, codes: Codes, group: int, position: int, hidden: set[int], process):
    """float64 log p of a position's codes (B,), each conditional going through `process(c, u)`."""
    mask = torch.zeros(codes.batch_size, len(PLACES[group]), dtype=torch.bool)
    mask[:, sorted(hidden)] = True
    branches = []
    for label in (1, -1):
        predictor = ContextualPredictor(model, Conditions(torch.full((codes.batch_size,), label)))
        for earlier in codes.groups[:group]:
            predictor.finish_group(earlier.flatten(1, 2))
        logits = predictor.logits(codes.groups[group].flatten(1, 2), mask)
        branches.append([level[:, position].detach().double() for level in logits])
    total = torch.zeros(codes.batch_size, dtype=torch.float64)
    for depth, (with_class, without) in enumerate(zip(*branches, strict=True)):
        values = codes.groups[group].flatten(1, 2)[:, position, depth, None]
        total += process(with_class, without).log_softmax(-1).gather(1, values)[:, 0]
    return total


def every_toy_image() -> Codes:
    return TOY.unflatten(torch.tensor(list(itertools.product(range(2), range(3), range(2), range(3), range(4)))))


def keep_top(logits: torch.Tensor, count: int) -> torch.Tensor:
    rank = logits.argsort(-1, descending=True).argsort(-1)
    return logits.masked_fill(rank >= count, -torch.inf)


def check_counts(samples: Codes, log_probabilities: torch.Tensor) -> None:
    expected = log_probabilities.exp() * NUM_DRAWS
    assert expected.sum().item() == pytest.approx(NUM_DRAWS, rel=1e-6)
    counts = torch.bincount((samples.flatten() * RADIX).sum(1), minlength=144)
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


PROCESSES = {
    "plain": ({}, lambda c, u: c),
    "temperature and top-k": ({"temperature": 0.7, "top_k": 2}, lambda c, u: keep_top(c, 2) / 0.7),
    "guidance": ({"guidance_scale": 2.5}, lambda c, u: u + 2.5 * (c - u)),
}


@pytest.mark.parametrize(("settings", "process"), PROCESSES.values(), ids=PROCESSES.keys())
def test_a_draft_with_a_step_per_position_follows_the_mixture_of_all_orders(
    make_contextual_prior: Make, settings: dict, process: Callable
) -> None:
    model, every = make_contextual_prior(TOY), every_toy_image()
    orders = [
        conditional(model, every, 0, first, {0, 1}, process) + conditional(model, every, 0, second, {second}, process)
        for first, second in ((0, 1), (1, 0))
    ]
    coarse = torch.stack(orders).logsumexp(0) - math.log(2)
    fine = conditional(model, every, 1, 0, {0}, process)
    samples = model.generate([1], num_images=NUM_DRAWS, generator=0, num_draft_steps=2, num_revisions=0, **settings)
    check_counts(samples, coarse + fine)


@pytest.mark.parametrize(("settings", "process"), PROCESSES.values(), ids=PROCESSES.keys())
def test_a_revision_draws_every_position_anew_given_the_others(
    make_contextual_prior: Make, settings: dict, process: Callable
) -> None:
    """One step drafts both positions blindly; one revision in two steps redraws one, then the other."""
    model, every = make_contextual_prior(TOY), every_toy_image()
    draft = sum(conditional(model, every, 0, position, {0, 1}, process) for position in (0, 1)).exp()
    # Of the last group one image in four is enough.
    alone, shape = slice(None, None, 4), (6, 6)
    given = [
        conditional(model, every, 0, position, {position}, process)[alone].exp().view(shape) for position in (0, 1)
    ]
    joint = draft[alone].view(shape)
    first_then_second = (joint.sum(0, keepdim=True) * given[0]).sum(1, keepdim=True) * given[1]
    second_then_first = (joint.sum(1, keepdim=True) * given[1]).sum(0, keepdim=True) * given[0]
    coarse = ((first_then_second + second_then_first) / 2).flatten().repeat_interleave(4).log()
    fine = conditional(model, every, 1, 0, {0}, process)
    samples = model.generate(
        [1], num_images=NUM_DRAWS, generator=0, num_draft_steps=1, num_revisions=1, num_revise_steps=2, **settings
    )
    check_counts(samples, coarse + fine)
    # The test can tell a revised draft from the draft alone.
    assert (coarse.exp() - draft).abs().max() > 0.01


def test_a_position_of_which_some_codes_are_given_sees_them(make_contextual_prior: Make) -> None:
    """Of the first position its first code is given: it guides the second one at once, others once it is drafted."""
    model, every = make_contextual_prior(TOY), every_toy_image()
    keep = every.groups[0].flatten(1)[:, 0] == 1
    given = torch.where(keep, 0.0, -torch.inf).double()

    def first_depth_free(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        # The given code's own probability is 1; of two codes it is the second.
        return torch.tensor([-1e9, 0.0]).double().expand_as(logits) if logits.shape[-1] == 2 else logits

    def plain(logits: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        return logits

    orders = [
        conditional(model, every, 0, 0, {0, 1}, first_depth_free) + conditional(model, every, 0, 1, {1}, plain),
        conditional(model, every, 0, 1, {0, 1}, plain) + conditional(model, every, 0, 0, {0}, first_depth_free),
    ]
    expected = torch.stack(orders).logsumexp(0) - math.log(2) + conditional(model, every, 1, 0, {0}, plain) + given
    known = TOY.unflatten(torch.tensor([[1, 0, 0, 0, 0]]))
    mask = tuple(group.bool() for group in known.groups)
    settings = {"num_draft_steps": 2, "num_revisions": 0, "known_codes": known, "known_mask": mask}
    check_counts(model.generate([1], num_images=NUM_DRAWS, generator=0, **settings), expected)


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("revisions", [0, 2])
def test_known_codes_are_kept_and_the_rest_sampled(
    make_contextual_prior: Make, random_codes: Draw, layout: CodeLayout, guidance_scale: float, revisions: int
) -> None:
    model, known = make_contextual_prior(layout), random_codes(layout, 2, seed=1)
    flat_mask = torch.rand(2, layout.num_codes, generator=torch.Generator().manual_seed(2)) < 0.5
    masks = tuple(group.bool() for group in layout.unflatten(flat_mask.long()).groups)
    options = {"num_images": 8, "generator": 0, "guidance_scale": guidance_scale, "known_mask": masks}
    options |= {"num_revisions": revisions, "num_draft_steps": 2}
    seen: list[PartialCodes] = []
    codes = model.generate(
        [0, 1], known_codes=known, callback_on_step_end=lambda *call: seen.append(call[2]), **options
    )
    kept = flat_mask.repeat_interleave(8, dim=0)
    expected = known.flatten().repeat_interleave(8, dim=0)[kept]
    # Never, not even for a moment: previews come with guesses for what is not there yet.
    for found in (codes, *(partial.codes for partial in seen)):
        assert torch.equal(found.flatten()[kept], expected)
    for rows in codes.flatten().split(8):
        assert len(set(map(tuple, rows.tolist()))) > 1
    # Values outside the mask are never read.
    junk = layout.unflatten(torch.where(flat_mask, known.flatten(), -7))
    assert model.generate([0, 1], known_codes=junk, **options) == codes
    # Inputs do not disturb each other.
    options |= {"known_mask": [mask[1:] for mask in masks], "generator": 8}
    assert model.generate([1], known_codes=known[1], **options) == codes[8:]


def test_kept_groups_take_no_pass_and_leave_the_others_noise_alone(
    make_contextual_prior: Make, mixed_layout: CodeLayout
) -> None:
    model, passes, calls = make_contextual_prior(mixed_layout), [], []
    settings = {"num_draft_steps": 3, "num_revise_steps": 2, "num_revisions": 2, "generator": 5}
    images = model.generate([0, 1], **settings)
    # One position is not revised.
    assert model.num_sampling_steps(CodeGenerationConfig(num_draft_steps=3)) == 1 + 2 * (3 + 2 * 2)
    model.spatial_transformer.register_forward_hook(lambda *args: passes.append(1))
    kept = [torch.full((1, g.height, g.width, g.depth), index < 2) for index, g in enumerate(mixed_layout.groups)]
    again = model.generate(
        [0, 1],
        known_codes=images,
        known_mask=kept,
        progress=lambda done, total: calls.append((done, total)),
        **settings,
    )
    assert again == images
    assert len(passes) == 7
    assert calls == [(1, 15), (8, 15), *[(9 + i, 15) for i in range(7)]]


def test_previews_guess_the_whole_group_while_it_is_drafted(
    make_contextual_prior: Make, mixed_layout: CodeLayout
) -> None:
    model, calls = make_contextual_prior(mixed_layout), []
    settings = {"num_draft_steps": [1, 2, 3], "num_revisions": 1, "num_revise_steps": 2}
    codes = model.generate([0, 1], generator=0, callback_on_step_end=lambda *call: calls.append(call[2]), **settings)
    assert [partial.num_preview_levels for partial in calls] == [1, 3, 3, 3, 3, 6, 6, 6, 6, 6]
    assert [partial.num_finished_levels for partial in calls] == [1, 1, 1, 1, 3, 3, 3, 3, 3, 6]
    assert [partial.final[2].any().item() for partial in calls] == [False] * 8 + [True] * 2
    assert calls[-1].codes == codes


def test_greedy_codes_are_the_likeliest_ones(make_contextual_prior: Make, layout: CodeLayout) -> None:
    """At temperature 0 a draft in one step does not depend on the partition."""
    model = make_contextual_prior(layout)
    codes = model.generate([2], temperature=0, num_draft_steps=1, num_revisions=0, generator=0)
    predictor = ContextualPredictor(model, Conditions(torch.tensor([2])))
    for group in codes.groups:
        values = group.flatten(1, 2)
        everything = torch.ones_like(values[..., 0], dtype=torch.bool)
        for depth, logits in enumerate(predictor.logits(values, everything)):
            assert torch.equal(logits.argmax(-1), values[..., depth])
        predictor.finish_group(values)


def test_learns_one_image_per_class(make_contextual_prior: Make, random_codes: Draw, layout: CodeLayout) -> None:
    images, labels = random_codes(layout, 3, seed=4), torch.arange(3)
    model = make_contextual_prior(layout, initializer_range=0.05, label_dropout=0.0).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    copies = 2 * len(layout.groups)
    many = Codes.cat([images] * copies)
    for _ in range(120):
        loss = model(many, labels.repeat(copies)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert model.generate(labels, temperature=0) == images
    assert -model.eval().log_prob(images, labels).mean().item() / layout.num_codes < 0.2


def test_bad_arguments_are_named(make_contextual_prior: Make, random_codes: Draw, mixed_layout: CodeLayout) -> None:
    model = make_contextual_prior(mixed_layout)

    def refuses(message: str, **kwargs: object) -> None:
        with pytest.raises(ValueError, match=message):
            model.generate(**kwargs)

    refuses("num_steps=4 is a setting of masked_prior models, this is a contextual_prior: leave it out", num_steps=4)
    refuses("cache_implementation='static' is a setting of rq_prior models", cache_implementation="static")
    refuses("num_draft_steps lists 2 values .* 3 groups: give one number per group", num_draft_steps=[1, 2])
    refuses("num_draft_steps must be an integer from 1", num_draft_steps=0)
    refuses("num_revise_steps must be an integer from 2", num_revise_steps=1)
    refuses("num_revisions must be an integer from 0", num_revisions=-1)
    refuses("Class label 3 is out of range", class_labels=[3])
    refuses("known_codes needs a known_mask", known_codes=random_codes(mixed_layout, 2))
    with pytest.raises(ValueError, match="num_revisions=1 is a setting of contextual_prior models, this is a rq_prior"):
        CodeGenerationConfig(num_revisions=1).check_model("rq_prior")

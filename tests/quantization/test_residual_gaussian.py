"""The residual Gaussian quantiser against a float64 transcription of the HQ-VAE paper's recursion."""

from __future__ import annotations

import math

import pytest
import torch

from hq_tokenizers.quantization.functional import straight_through
from hq_tokenizers.quantization.moving_averages import MovingAverages
from hq_tokenizers.quantization.residual_gaussian import ResidualGaussianQuantizer
from hq_tokenizers.quantization.residual_variance import ResidualVariance
from hq_tokenizers.randomness import draw_gumbel_

B, H, W, D = 2, 2, 3, 4
SIZES = (5, 7, 6)
LOG_VARIANCES = (0.4, -0.3, -1.1)
PRIOR_LOG_VARIANCES = (0.9, 0.1, -0.5)


def quantizer(
    *, shared: bool = False, prior: bool = False, max_elements: int = 10**6, trainable: bool = True
) -> ResidualGaussianQuantizer:
    sizes = (5, 5, 5) if shared else SIZES
    module = ResidualGaussianQuantizer(
        sizes,
        D,
        shared_codebook=shared,
        log_variance_range=(-10.0, 5.0),
        train_variance=trainable,
        learned_prior=prior,
        max_elements=max_elements,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for codebook in module.codebooks:
            torch.nn.init.normal_(codebook.weight, generator=generator)
        module.log_variances.copy_(torch.tensor(LOG_VARIANCES))
        if module.prior_log_variances is not None:
            module.prior_log_variances.copy_(torch.tensor(PRIOR_LOG_VARIANCES))
    return module


def latents(seed: int = 2) -> torch.Tensor:
    return 1.5 * torch.randn(B, H, W, D, generator=torch.Generator().manual_seed(seed))


def textbook(
    z: torch.Tensor,
    codebooks: list[torch.Tensor],
    log_variances: torch.Tensor,
    gumbels: list[torch.Tensor],
    temperature: float,
    prior_mean: torch.Tensor | None = None,
    prior_log_variances: torch.Tensor | None = None,
) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    """RSQ-VAE's step: partial sums, continuous term, discrete term, for (M, d) latents of B images."""
    residual, prior_residual, sums, discrete = z, prior_mean, [], torch.zeros((), dtype=z.dtype)
    for level, (codebook, gumbel) in enumerate(zip(codebooks, gumbels, strict=True)):
        logits = -(residual[:, None] - codebook[None]).square().sum(-1) / (2 * log_variances[level].exp())
        p = logits.softmax(-1)
        if prior_residual is None:
            log_prior = torch.full_like(p, -math.log(len(codebook)))
        else:
            assert prior_log_variances is not None
            distance = (prior_residual[:, None] - codebook[None]).square().sum(-1)
            log_prior = (-distance / (2 * prior_log_variances[level].exp())).log_softmax(-1)
        discrete = discrete + (p * (p.log() - log_prior)).sum() / B
        sample = ((logits + gumbel) / temperature).softmax(-1) @ codebook
        residual = residual - sample
        prior_residual = None if prior_residual is None else prior_residual - sample
        sums.append(z - residual)
    continuous = (z - sums[-1]).square().sum() / (2 * log_variances.exp().sum()) / B
    return sums, continuous, discrete


@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("shared", [False, True])
def test_values_and_gradients_are_those_of_the_textbook(shared: bool, prior: bool) -> None:
    module = quantizer(shared=shared, prior=prior)
    z, mean = latents().requires_grad_(), latents(3).requires_grad_()
    torch.manual_seed(7)
    output = module(z, torch.tensor(0.8), prior_mean=mean if prior else None)
    torch.manual_seed(7)
    books = module.level_codebooks()
    gumbels = [draw_gumbel_(torch.empty(B * H * W, len(book.weight))).double() for book in books]

    parameters = [z, mean, module.log_variances, *(book.weight for book in module.codebooks)]
    if module.prior_log_variances is not None:
        parameters.append(module.prior_log_variances)
    doubles = [tensor.detach().double().requires_grad_() for tensor in parameters]
    weights = doubles[3:-1] if prior else doubles[3:]
    sums, continuous, discrete = textbook(
        doubles[0].flatten(0, 2),
        weights * 3 if shared else weights,
        doubles[2],
        gumbels,
        0.8,
        doubles[1].flatten(0, 2) if prior else None,
        doubles[-1] if prior else None,
    )
    for actual, expected in zip(output.partial_sums, sums, strict=True):
        torch.testing.assert_close(actual.double().flatten(0, 2), expected, rtol=1e-4, atol=1e-5)
    assert float(output.terms["continuous"].detach()) == pytest.approx(float(continuous.detach()), rel=1e-4)
    assert float(output.terms["discrete"].detach()) == pytest.approx(float(discrete.detach()), rel=1e-4)
    # Sines, so that no gradient is the same everywhere.
    loss = output.terms["continuous"] + 2 * output.terms["discrete"] + sum(s.sin().sum() for s in output.partial_sums)
    reference = continuous + 2 * discrete + sum(s.sin().sum() for s in sums)
    actual_gradients = torch.autograd.grad(loss, parameters, materialize_grads=True)
    expected_gradients = torch.autograd.grad(reference, doubles, materialize_grads=True)
    for a, e in zip(actual_gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=2e-3, atol=3e-4)


def test_continuous_term_by_hand() -> None:
    # One position, d = 1, codes far apart: 3 → 2 → remainder 1 → 0.5; ‖H − ΣZ‖² = 0.25, Σ s² = 0.1 + 0.3.
    module = ResidualGaussianQuantizer(
        (2, 2),
        1,
        shared_codebook=False,
        log_variance_range=(-10.0, 5.0),
        train_variance=True,
        learned_prior=False,
        max_elements=10**6,
    )
    with torch.no_grad():
        module.codebooks[0].weight.copy_(torch.tensor([[2.0], [-50.0]]))
        module.codebooks[1].weight.copy_(torch.tensor([[0.5], [-50.0]]))
        module.log_variances.copy_(torch.tensor([0.1, 0.3]).log())
    output = module(torch.full((1, 1, 1, 1), 3.0), None)
    assert [total.item() for total in output.partial_sums] == [2.0, 2.5]
    assert output.indices.tolist() == [[[[0, 0]]]]
    assert float(output.terms["continuous"].detach()) == pytest.approx(0.25 / (2 * 0.4), rel=1e-6)
    assert float(output.terms["discrete"].detach()) == pytest.approx(2 * math.log(2), rel=1e-6)


def test_evaluation_takes_the_nearest_code_level_after_level() -> None:
    module = quantizer()
    output = module(latents(), None)
    residual = latents().double()
    for level, book in enumerate(module.level_codebooks()):
        nearest = torch.cdist(residual.flatten(0, 2), book.weight.detach().double()).argmin(-1).reshape(B, H, W)
        assert torch.equal(output.indices[..., level], nearest)
        residual = residual - book.weight.detach().double()[nearest]
    embedded = module.embed(output.indices)
    assert torch.equal(embedded[0], output.partial_sums[0])
    assert torch.equal(embedded[0] + embedded[1] + embedded[2], output.quantized)
    assert len(module.embed(output.indices[..., :2])) == 2


def test_equal_codes_give_no_divergence() -> None:
    module = quantizer()
    for book in module.codebooks:
        torch.nn.init.zeros_(book.weight)
    output = module(latents(), torch.tensor(1.0))
    torch.testing.assert_close(output.entropy, torch.tensor(SIZES).log())
    assert float(output.terms["discrete"].detach()) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("prior", [False, True])
def test_discrete_term_is_a_divergence(seed: int, prior: bool) -> None:
    module = quantizer(prior=prior)
    mean = latents(seed + 10) if prior else None
    assert float(module(latents(seed), torch.tensor(1.0), prior_mean=mean).terms["discrete"].detach()) > -1e-4


def test_a_prior_that_knows_the_posterior_costs_nothing() -> None:
    module = quantizer(prior=True)
    with torch.no_grad():
        module.prior_log_variances.copy_(module.log_variances)
    discrete = module(latents(), torch.tensor(1.0), prior_mean=latents()).terms["discrete"]
    assert float(discrete.detach()) == pytest.approx(0, abs=1e-4)


def test_shared_codebook_is_one_codebook() -> None:
    module = quantizer(shared=True)
    assert len(module.codebooks) == 1
    assert sum(parameter.numel() for parameter in module.parameters()) == 5 * D + 3
    first, *others = module.level_codebooks()
    assert len(others) == 2
    assert all(book is first for book in others)


def test_variances_stay_in_their_range() -> None:
    module = quantizer()
    torch.nn.init.constant_(module.log_variances, 100.0)
    torch.testing.assert_close(module.variances(), torch.full((3,), math.exp(5.0)))
    torch.nn.init.constant_(module.log_variances, -100.0)
    torch.testing.assert_close(module.variances(), torch.full((3,), math.exp(-10.0)))
    assert not quantizer(trainable=False).log_variances.requires_grad


def test_slices_change_nothing() -> None:
    results = []
    for max_elements in (10**6, 20):
        module = quantizer(prior=True, max_elements=max_elements)
        z, mean = latents().requires_grad_(), latents(3).requires_grad_()
        torch.manual_seed(4)
        output = module(z, torch.tensor(0.9), prior_mean=mean)
        loss = output.quantized.sin().sum() + sum(output.terms.values())
        gradients = torch.autograd.grad(loss, (z, mean, *module.parameters()))
        results.append((output.quantized, output.indices, *output.terms.values(), *gradients))
    for whole, sliced in zip(*results, strict=True):
        torch.testing.assert_close(whole, sliced, rtol=1e-4, atol=1e-4)


def test_log_probabilities_given_the_levels_before() -> None:
    module = quantizer()
    output = module(latents(), None)
    actual = module.log_probabilities(latents(), module.embed(output.indices))
    residual = latents().double()
    for level, book in enumerate(module.level_codebooks()):
        weight = book.weight.detach().double()
        distance = (residual.unsqueeze(3) - weight).square().sum(-1)
        expected = (-distance / (2 * math.exp(LOG_VARIANCES[level]))).log_softmax(-1)
        torch.testing.assert_close(actual[level].double(), expected, rtol=1e-4, atol=1e-4)
        residual = residual - weight[output.indices[..., level]]


def test_sampled_codes_do_not_depend_on_the_batch() -> None:
    module = quantizer()
    z = torch.randn(5, H, W, D)

    def sample(part: slice) -> torch.Tensor:
        generators = [torch.Generator().manual_seed(index) for index in range(5)][part]
        return module(z[part], None, generators).indices

    assert torch.equal(torch.cat([sample(slice(i, i + 1)) for i in range(5)]), sample(slice(0, 5)))


def test_autocast_does_not_reach_the_quantiser() -> None:
    module = quantizer(prior=True)
    outside = module(latents(), None, prior_mean=latents(3))
    with torch.autocast("cpu", torch.bfloat16):
        inside = module(latents(), None, prior_mean=latents(3))
    assert torch.equal(inside.indices, outside.indices)
    assert inside.quantized.dtype == torch.float32
    for name, value in outside.terms.items():
        assert torch.equal(inside.terms[name], value)


def test_a_variance_beyond_its_range_is_held_but_still_learns() -> None:
    module = ResidualGaussianQuantizer(
        [4],
        2,
        shared_codebook=False,
        log_variance_range=(-1.0, 1.0),
        train_variance=True,
        learned_prior=False,
        max_elements=10**6,
    )
    torch.nn.init.constant_(module.log_variances, 3.0)
    variance = module.variances()
    assert float(variance.detach()) == pytest.approx(math.e)
    (gradient,) = torch.autograd.grad(variance.sum(), module.log_variances)
    assert float(gradient) == pytest.approx(math.e)


def following(*, shared: bool, averages: bool, residual: bool, through: bool = False) -> ResidualGaussianQuantizer:
    """A quantiser with code vectors or variances that follow the batches by themselves."""
    module = ResidualGaussianQuantizer(
        (5, 5, 5),
        D,
        shared_codebook=shared,
        log_variance_range=(-10.0, 5.0),
        train_variance=True,
        learned_prior=False,
        max_elements=10**6,
        averages_for=lambda size: MovingAverages(size, D, decay=0.8, restart_threshold=0.0) if averages else None,
        residual_variance=ResidualVariance(3, 2.0) if residual else None,
        straight_through=through,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for codebook in module.codebooks:
            codebook.weight.normal_(generator=generator)
            if averages:
                codebook.averages.start(codebook.weight)
        if module.log_variances is not None:
            module.log_variances.copy_(torch.tensor(LOG_VARIANCES))
    return module


@pytest.mark.parametrize("shared", [False, True])
def test_code_vectors_follow_the_latents_at_their_most_probable_codes(shared: bool) -> None:
    module = following(shared=shared, averages=True, residual=False)
    books = [book.weight.double().clone() for book in module.codebooks]
    counts = [torch.ones(5, dtype=torch.float64) for _ in books]
    sums = [book.clone() for book in books]
    for batch in range(3):
        z = latents(batch)
        torch.manual_seed(batch)
        module(z, torch.tensor(0.7))
        torch.manual_seed(batch)
        gumbels = [draw_gumbel_(torch.empty(B * H * W, 5)).double() for _ in range(3)]
        residual, seen = z.double().flatten(0, 2), [[] for _ in books]
        for level, gumbel in enumerate(gumbels):
            book = books[0 if shared else level]
            logits = -torch.cdist(residual, book).square() / (2 * math.exp(LOG_VARIANCES[level]))
            seen[0 if shared else level].append((residual, logits.argmax(-1)))
            residual = residual - ((logits + gumbel) / 0.7).softmax(-1) @ book
        for index, pairs in enumerate(seen):
            vectors, codes = torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs])
            members = torch.nn.functional.one_hot(codes, 5).double()
            counts[index] = 0.8 * counts[index] + 0.2 * members.sum(0)
            sums[index] = 0.8 * sums[index] + 0.2 * members.T @ vectors
            total = counts[index].sum()
            books[index] = sums[index] / ((counts[index] + 1e-5) / (total + 5e-5) * total)[:, None]
        for codebook, expected in zip(module.codebooks, books, strict=True):
            torch.testing.assert_close(codebook.weight.double(), expected, rtol=1e-4, atol=1e-5)
    assert not any(parameter is codebook.weight for parameter in module.parameters() for codebook in module.codebooks)


def test_variances_follow_the_energy_that_every_level_leaves_over() -> None:
    module = following(shared=False, averages=False, residual=True)
    before = module.variances()
    torch.testing.assert_close(before, torch.full((3,), 2.0))
    z = latents()
    output = module(z, torch.tensor(1.0))
    energies = torch.stack([(z - total.detach()).square().mean() for total in output.partial_sums])
    torch.testing.assert_close(output.variance, before)
    torch.testing.assert_close(module.variances(), 2.0 * (0.1 * 1 + 0.9 * energies))
    kept = module.variances()
    module(z, None)
    assert torch.equal(module.variances(), kept)


def test_straight_through_draws_codes_and_gives_the_encoder_the_gradient_of_the_decoder() -> None:
    """The decoder's gradient reaches the latents as it is, and the two terms keep the gradients they have."""
    module, z = following(shared=False, averages=False, residual=False, through=True), latents().requires_grad_()
    torch.manual_seed(3)
    output = module(z, torch.tensor(0.8))
    torch.manual_seed(3)
    exact = z.detach().double().requires_grad_()
    residual, total, entropies = exact.flatten(0, 2), torch.zeros(B * H * W, D, dtype=torch.float64), []
    for level, codebook in enumerate(module.codebooks):
        book = codebook.weight.detach().double()
        logits = -torch.cdist(residual, book).square() / (2 * math.exp(LOG_VARIANCES[level]))
        sample = (logits.detach() + draw_gumbel_(torch.empty(B * H * W, 5)).double()).argmax(-1)
        entropies.append(torch.distributions.Categorical(logits=logits).entropy().sum() / B)
        residual, total = residual - book[sample], total + book[sample]
    energy = residual.square().sum() / (2 * sum(map(math.exp, LOG_VARIANCES))) / B
    terms = energy - torch.stack(entropies).sum()

    torch.testing.assert_close(output.partial_sums[-1].detach().double().flatten(0, 2), total, rtol=1e-5, atol=1e-5)
    (of_sums,) = torch.autograd.grad(output.partial_sums[-1].sin().sum(), z, retain_graph=True)
    torch.testing.assert_close(of_sums, output.partial_sums[-1].detach().cos())
    (of_terms,) = torch.autograd.grad(sum(output.terms.values()), z)
    (expected,) = torch.autograd.grad(terms, exact)
    torch.testing.assert_close(of_terms.double(), expected, rtol=1e-4, atol=1e-5)


def test_straight_through_is_exact_in_value() -> None:
    far, codes = torch.full((2, D), 1e6, requires_grad=True), torch.full((2, D), 0.1)
    assert torch.equal(straight_through(far, codes), codes)

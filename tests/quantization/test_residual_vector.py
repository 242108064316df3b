"""Deterministic (residual) quantisation against a float64 transcription of VQ-VAE and RQ-VAE."""

from __future__ import annotations

import pytest
import torch

from hq_tokenizers.quantization.moving_averages import MovingAverages
from hq_tokenizers.quantization.reestimation import CodebookReestimation
from hq_tokenizers.quantization.residual_vector import ResidualVectorQuantizer

B, H, W, D, K = 2, 3, 2, 4, 8
BETA = 0.4
TRAINING = torch.tensor(1.0)


def quantizer(
    update: str = "gradient",
    num_levels: int = 3,
    *,
    shared: bool = False,
    reestimation: CodebookReestimation | None = None,
) -> ResidualVectorQuantizer:
    module = ResidualVectorQuantizer(
        (K,) * num_levels,
        D,
        shared_codebook=shared,
        commitment_weight=BETA,
        averages_for=lambda size: MovingAverages(size, D, 0.9, 0.0) if update == "ema" else None,
        linear=update == "linear",
        reestimation=reestimation,
        max_elements=10**6,
    )
    generator = torch.Generator().manual_seed(1)
    for codebook in module.codebooks:
        codebook.assign(torch.randn(K, D, generator=generator))
    return module


def latents() -> torch.Tensor:
    return 1.5 * torch.randn(B, H, W, D, generator=torch.Generator().manual_seed(2))


def partial_sums(z: torch.Tensor, codebooks: list[torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Sequential nearest neighbours of (M, d) vectors; differentiable in the codebooks only."""
    residual, total, sums, indices = z.detach(), torch.zeros_like(z), [], []
    for codebook in codebooks:
        index = torch.cdist(residual, codebook.detach()).argmin(-1)
        residual = residual - codebook.detach()[index]
        total = total + codebook[index]
        sums.append(total)
        indices.append(index)
    return sums, indices


@pytest.mark.parametrize("num_levels", [1, 3])
@pytest.mark.parametrize("update", ["gradient", "ema"])
def test_terms_and_their_gradients(num_levels: int, update: str) -> None:
    module, z = quantizer(update, num_levels), latents().requires_grad_()
    output = module(z, None)
    z64 = z.detach().double().flatten(0, 2).requires_grad_()
    books = [book.weight.detach().double().requires_grad_() for book in module.level_codebooks()]
    sums, indices = partial_sums(z64, books)
    assert torch.equal(output.indices.flatten(0, 2), torch.stack(indices, -1))
    commitment = BETA * torch.stack([(z64 - s.detach()).square().mean() for s in sums]).mean()
    assert float(output.terms["commitment"].detach()) == pytest.approx(float(commitment.detach()), rel=1e-5)
    actual = torch.autograd.grad(output.terms["commitment"], z)[0]
    expected = torch.autograd.grad(commitment, z64)[0]
    torch.testing.assert_close(actual.double().flatten(0, 2), expected, rtol=1e-4, atol=1e-6)
    if update == "ema":
        assert set(output.terms) == {"commitment"}
        return
    codebook = torch.stack([(z64.detach() - s).square().mean() for s in sums]).mean()
    assert float(output.terms["codebook"].detach()) == pytest.approx(float(codebook.detach()), rel=1e-5)
    by_codes = torch.autograd.grad(output.terms["codebook"], [book.weight for book in module.codebooks])
    for a, e in zip(by_codes, torch.autograd.grad(codebook, books), strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-6)
    # The commitment term moves no code, the codebook term no latent.
    assert all(
        g is None
        for g in torch.autograd.grad(
            module(z, None).terms["commitment"],
            [b.weight for b in module.codebooks],
            allow_unused=True,
            retain_graph=True,
        )
    )
    assert torch.autograd.grad(module(z, None).terms["codebook"], z, allow_unused=True)[0] is None


@pytest.mark.parametrize("num_levels", [1, 3])
def test_codes_of_a_linear_layer(num_levels: int) -> None:
    """The terms of the published SimVQ (its `legacy: false`), and their gradients, which only the layer gets."""
    module, z = quantizer("linear", num_levels), latents().requires_grad_()
    frozen = [book.weight.double() for book in module.codebooks]
    assert {name.split(".")[-2] for name, _ in module.named_parameters()} == {"projection"}
    output = module(z, TRAINING)
    layers = [
        (book.projection.weight.detach().double(), book.projection.bias.detach().double()) for book in module.codebooks
    ]
    learned = [tensor.requires_grad_() for layer in layers for tensor in layer]
    books = [c @ weight.T + bias for c, (weight, bias) in zip(frozen, layers, strict=True)]
    z64 = z.detach().double().flatten(0, 2)
    sums, indices = partial_sums(z64, books)
    assert torch.equal(output.indices.flatten(0, 2), torch.stack(indices, -1))
    torch.testing.assert_close(output.quantized.double().flatten(0, 2), sums[-1], rtol=1e-5, atol=1e-6)
    loss = torch.stack([(z64 - total).square().mean() for total in sums]).mean()
    expected = torch.autograd.grad(loss, learned)
    assert float(output.terms["codebook"].detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert float(output.terms["commitment"].detach()) == pytest.approx(BETA * float(loss.detach()), rel=1e-5)
    actual = torch.autograd.grad(
        sum(output.terms.values()), [p for book in module.codebooks for p in book.parameters()]
    )
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a.double(), e, rtol=1e-4, atol=1e-6)
    assert all(torch.equal(c, book.weight.double()) for c, book in zip(frozen, module.codebooks, strict=True))


@pytest.mark.parametrize("num_levels", [1, 3])
def test_straight_through_is_exact_in_value_and_the_identity_in_gradient(num_levels: int) -> None:
    module, z = quantizer(num_levels=num_levels), latents().requires_grad_()
    output = module(z, None)
    total = torch.zeros_like(z)
    for vectors, partial in zip(module.embed(output.indices), output.partial_sums, strict=True):
        total = total + vectors
        assert torch.equal(partial, total)
    cotangent = torch.randn(B, H, W, D)
    gradients = torch.autograd.grad(
        output.quantized, [z, *(book.weight for book in module.codebooks)], cotangent, allow_unused=True
    )
    # Once, not once per level; and not into the codebooks.
    assert torch.equal(gradients[0], cotangent)
    assert all(gradient is None for gradient in gradients[1:])


def test_moving_averages_only_while_training() -> None:
    module = quantizer("ema")
    before = [book.weight.clone() for book in module.codebooks]
    module(latents(), None)
    assert all(torch.equal(a, book.weight) for a, book in zip(before, module.codebooks, strict=True))
    module(latents(), TRAINING)
    assert not any(torch.equal(a, book.weight) for a, book in zip(before, module.codebooks, strict=True))


def test_each_level_averages_its_own_residuals() -> None:
    module = quantizer("ema")
    books = [book.weight.clone() for book in module.codebooks]
    output = module(latents(), TRAINING)
    residual = latents().double().flatten(0, 2)
    for level, book in enumerate(module.level_codebooks()):
        index = torch.cdist(residual, books[level].double()).argmin(-1)
        assert torch.equal(output.indices[..., level].flatten(), index)
        counts = torch.bincount(index, minlength=K)
        sums = torch.zeros(K, D, dtype=torch.float64).index_add_(0, index, residual)
        torch.testing.assert_close(book.averages.count.double(), 0.9 + 0.1 * counts.double(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(book.averages.total.double(), 0.9 * books[level] + 0.1 * sums, rtol=1e-4, atol=1e-5)
        residual = residual - books[level].double()[index]


def test_shared_codebook_is_one_codebook() -> None:
    module = quantizer(shared=True)
    assert len(list(module.parameters())) == 1
    first, *others = module.level_codebooks()
    assert len(others) == 2
    assert all(book is first for book in others)


def test_shared_codebook_is_reestimated_for_all_levels() -> None:
    """Three levels that add up to 27 points have them all after it, within a fifth of their spacing."""
    module = quantizer("ema", shared=True, reestimation=CodebookReestimation(1, 1, 1080, D))
    steps = torch.tensor([-1.0, 0.0, 1.0])
    grid = torch.cartesian_prod(9 * steps, 3 * steps, steps).sum(-1)
    points = torch.zeros(27, D)
    points[:, 0] = grid
    batch = points.repeat(40, 1).reshape(4, 27, 10, D)
    assert not torch.allclose(module(batch, None).quantized, batch, atol=0.2)
    module(batch, TRAINING)
    assert module.start_epoch(1, seed=0)
    assert (module(batch, None).quantized - batch).abs().mean() < 0.2


def test_autocast_does_not_reach_the_quantiser() -> None:
    module = quantizer()
    outside = module(latents(), None)
    with torch.autocast("cpu", torch.bfloat16):
        inside = module(latents(), None)
    assert torch.equal(inside.indices, outside.indices)
    for name, value in outside.terms.items():
        assert torch.equal(inside.terms[name], value)

"""The Gaussian quantiser against hand-written float64 formulas of the SQ-VAE paper."""

from __future__ import annotations

import math

import pytest
import torch

from hq_tokenizers.quantization.functional import gaussian_factors
from hq_tokenizers.quantization.gaussian import GaussianQuantizer, GaussianVariance
from hq_tokenizers.quantization.moving_averages import MovingAverages
from hq_tokenizers.quantization.residual_variance import ResidualVariance
from hq_tokenizers.randomness import draw_gumbel_

B, H, W, D, K = 2, 3, 2, 4, 7
TYPES = ("I", "II", "III", "IV")
S = 0.3


def variance_module(kind: str, parametrization: str = "released", floor: float = 0.0) -> GaussianVariance:
    module = GaussianVariance(kind, parametrization, floor, trainable=True)
    torch.nn.init.constant_(module.log_variance, S)
    return module


def quantizer(
    kind: str = "I",
    *,
    parametrization: str = "released",
    floor: float = 0.0,
    noise: bool = False,
    max_elements: int = 10**6,
) -> GaussianQuantizer:
    module = GaussianQuantizer(K, D, variance_module(kind, parametrization, floor), noise, max_elements)
    torch.nn.init.normal_(module.codebook.weight)
    return module


def latents() -> torch.Tensor:
    return torch.randn(B, H, W, D, generator=torch.Generator().manual_seed(1))


def variance_map() -> torch.Tensor:
    return torch.randn(B, H, W, D, generator=torch.Generator().manual_seed(2))


def variance_by_hand(
    v: torch.Tensor, s: torch.Tensor | float, kind: str, parametrization: str, floor: float
) -> torch.Tensor:
    """Σ_φ of every latent value, by loops over the table of papers' types: float64 (B, h, w, d)."""
    s = torch.as_tensor(s, dtype=torch.float64)
    result = torch.empty(B, H, W, D, dtype=torch.float64)
    rows = []
    for b in range(B):
        for i in range(H):
            for j in range(W):
                for c in range(D):
                    log_map = {
                        "I": None,
                        "II": v[b].mean(),
                        "III": v[b, i, j].mean(),
                        "IV": v[b, i, j, c],
                    }[kind]
                    if log_map is None:
                        rows.append(s.exp() + floor)
                    elif parametrization == "plain":
                        rows.append((s + log_map).exp() + floor)
                    else:
                        rows.append(log_map.exp() + s.exp() + floor)
    return torch.stack(rows).reshape(result.shape)


def textbook(
    z: torch.Tensor, codebook: torch.Tensor, variance: torch.Tensor, temperature: float, gumbel: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Relaxed sample, continuous and discrete term, position by position."""
    samples: list[torch.Tensor] = []
    continuous, entropy = [], []
    for b in range(B):
        for i in range(H):
            for j in range(W):
                difference = codebook - z[b, i, j]
                logits = -0.5 * (difference.square() / variance[b, i, j]).sum(dim=-1)
                p = torch.softmax(logits, dim=0)
                entropy.append(-(p * p.log()).sum())
                y = torch.softmax((logits + gumbel[len(samples)]) / temperature, dim=0)
                samples.append(y @ codebook)
                continuous.append(0.5 * ((z[b, i, j] - samples[-1]).square() / variance[b, i, j]).sum())
    discrete = H * W * math.log(K) - torch.stack(entropy).sum() / B
    return torch.stack(samples).reshape(z.shape), torch.stack(continuous).sum() / B, discrete


class TestVariance:
    @pytest.mark.parametrize("kind", TYPES)
    @pytest.mark.parametrize("parametrization", ["released", "plain"])
    @pytest.mark.parametrize("floor", [0.0, 1.0])
    def test_types(self, kind: str, parametrization: str, floor: float) -> None:
        actual = variance_module(kind, parametrization, floor)(None if kind == "I" else variance_map())
        expected = variance_by_hand(variance_map().double(), S, kind, parametrization, floor)
        assert actual.ndim == 4
        torch.testing.assert_close(actual.double().expand(B, H, W, D), expected, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("kind", TYPES)
    def test_never_reaches_zero(self, kind: str) -> None:
        module = variance_module(kind)
        torch.nn.init.constant_(module.log_variance, -1000.0)
        variance = module(None if kind == "I" else torch.full((B, H, W, D), -1000.0))
        assert torch.equal(variance, torch.full_like(variance, 1e-10))

    def test_frozen(self) -> None:
        assert not GaussianVariance("I", "released", 0.0, trainable=False).log_variance.requires_grad

    def test_bfloat16_map_is_read_in_float32(self) -> None:
        rounded = variance_map().bfloat16()
        assert torch.equal(variance_module("III")(rounded), variance_module("III")(rounded.float()))


class TestElboTerms:
    @pytest.mark.parametrize("kind", TYPES)
    @pytest.mark.parametrize("parametrization", ["released", "plain"])
    def test_values_and_gradients_are_those_of_the_textbook(self, kind: str, parametrization: str) -> None:
        module = quantizer(kind, parametrization=parametrization, floor=0.2)
        z, v = latents().requires_grad_(), variance_map().requires_grad_()
        torch.manual_seed(5)
        output = module(z, torch.tensor(0.6), None if kind == "I" else v)
        torch.manual_seed(5)
        gumbel = draw_gumbel_(torch.empty(B * H * W, K)).double()
        wanted = torch.randn(B, H, W, D).double()

        inputs = [z, module.codebook.weight, module.variance.log_variance, v]
        doubles = [tensor.detach().double().requires_grad_() for tensor in inputs]
        variance = variance_by_hand(doubles[3], doubles[2], kind, parametrization, 0.2)
        samples, continuous, discrete = textbook(doubles[0], doubles[1], variance, 0.6, gumbel)

        torch.testing.assert_close(output.quantized.double(), samples, rtol=1e-4, atol=1e-5)
        assert float(output.terms["continuous"].detach()) == pytest.approx(float(continuous.detach()), rel=1e-4)
        assert float(output.terms["discrete"].detach()) == pytest.approx(float(discrete.detach()), rel=1e-4)
        loss = (output.quantized * wanted.float()).sum() + 2 * output.terms["continuous"] + 3 * output.terms["discrete"]
        reference = (samples * wanted).sum() + 2 * continuous + 3 * discrete
        actual = torch.autograd.grad(loss, inputs, materialize_grads=True)
        expected = torch.autograd.grad(reference, doubles, materialize_grads=True)
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a.double(), e, rtol=2e-3, atol=2e-4)

    @pytest.mark.parametrize("kind", TYPES)
    def test_equal_codes_give_the_largest_entropy_and_no_divergence(self, kind: str) -> None:
        module = quantizer(kind)
        torch.nn.init.constant_(module.codebook.weight, 0.5)
        output = module(latents(), torch.tensor(1.0), None if kind == "I" else variance_map())
        # Per position H = log K, so N log K in all, which the constant N log K cancels.
        assert float(output.entropy.detach()) == pytest.approx(math.log(K), rel=1e-6)
        assert float(output.terms["discrete"].detach()) == pytest.approx(0.0, abs=1e-4)

    @pytest.mark.parametrize("temperature", [None, torch.tensor(1.0)])
    def test_vanishing_variance_gives_nearest_neighbours(self, temperature: torch.Tensor | None) -> None:
        module = quantizer()
        torch.nn.init.constant_(module.variance.log_variance, -12.0)
        output = module(latents(), temperature)
        nearest = torch.cdist(latents().double().flatten(0, 2), module.codebook.weight.double()).argmin(dim=-1)
        assert torch.equal(output.indices.flatten(), nearest)
        assert output.entropy.item() == pytest.approx(0.0, abs=1e-6)
        assert float(output.terms["discrete"].detach()) == pytest.approx(H * W * math.log(K), rel=1e-5)
        torch.testing.assert_close(
            output.quantized.flatten(0, 2), module.codebook.weight[nearest], rtol=1e-4, atol=1e-4
        )

    @pytest.mark.parametrize("seed", range(5))
    def test_discrete_term_is_a_divergence(self, seed: int) -> None:
        torch.manual_seed(seed)
        module = quantizer("IV")
        scale = 10 ** torch.empty(()).uniform_(-3, 3)
        discrete = module(scale * latents(), None, variance_map()).terms["discrete"].item()
        assert -1e-4 <= discrete <= H * W * math.log(K) * (1 + 1e-6)

    def test_terms_sum_over_positions_and_average_over_images(self) -> None:
        module = quantizer()
        once = module(latents(), None).terms
        more_images = module(torch.cat([latents(), latents()]), None).terms
        more_positions = module(torch.cat([latents(), latents()], dim=1), None).terms
        for name, value in once.items():
            assert more_images[name].item() == pytest.approx(value.item(), rel=1e-5)
            assert more_positions[name].item() == pytest.approx(2 * value.item(), rel=1e-5)

    def test_evaluation_is_the_most_probable_code(self) -> None:
        module = quantizer("IV")
        output = module(latents(), None, variance_map())
        variance = variance_by_hand(variance_map().double(), S, "IV", "released", 0.0)
        distance = (
            (latents().double().unsqueeze(3) - module.codebook.weight.double()).square() / variance.unsqueeze(3)
        ).sum(dim=-1)
        assert torch.equal(output.indices[..., 0], distance.argmin(dim=-1))
        assert torch.equal(output.quantized, module.codebook.weight[output.indices[..., 0]])
        assert torch.equal(output.quantized, module.embed(output.indices)[0])

    @pytest.mark.parametrize("kind", TYPES)
    def test_log_probabilities_are_normalised_densities(self, kind: str) -> None:
        module, v = quantizer(kind), None if kind == "I" else variance_map()
        variance = variance_by_hand(variance_map().double(), S, kind, "released", 0.0)
        density = torch.distributions.Normal(module.codebook.weight.double(), variance.sqrt().unsqueeze(3))
        expected = density.log_prob(latents().double().unsqueeze(3)).sum(dim=-1).log_softmax(dim=-1)
        torch.testing.assert_close(module.log_probabilities(latents(), v).double(), expected, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("kind", TYPES)
    def test_slices_change_nothing(self, kind: str) -> None:
        results = []
        for max_elements in (10**6, 3 * K):
            torch.manual_seed(3)
            module = quantizer(kind, max_elements=max_elements)
            z, v = latents().requires_grad_(), variance_map().requires_grad_()
            torch.manual_seed(4)
            output = module(z, torch.tensor(0.9), None if kind == "I" else v)
            loss = output.quantized.sum() + sum(output.terms.values())
            gradients = torch.autograd.grad(loss, (z, module.codebook.weight, v), materialize_grads=True)
            results.append((output.quantized, output.indices, *output.terms.values(), *gradients))
        for whole, sliced in zip(*results, strict=True):
            torch.testing.assert_close(whole, sliced, rtol=1e-4, atol=1e-5)


class TestFollowing:
    """Variances and code vectors that follow the batches by themselves."""

    def following(self) -> GaussianQuantizer:
        averages = MovingAverages(K, D, decay=0.8, restart_threshold=0.0)
        module = GaussianQuantizer(K, D, ResidualVariance(1, 2.0), False, 10**6, averages, straight_through=True)
        codes = torch.randn(K, D, generator=torch.Generator().manual_seed(4))
        with torch.no_grad():
            module.codebook.weight.copy_(codes)
        averages.start(codes)
        return module

    def test_a_step_by_hand(self) -> None:
        module, z = self.following(), latents().requires_grad_()
        before = module.codebook.weight.double().clone()
        output = module(z, torch.tensor(0.8))
        torch.testing.assert_close(output.variance, torch.tensor([2.0]))

        flat = z.detach().double().flatten(0, 2)
        members = torch.nn.functional.one_hot(torch.cdist(flat, before).argmin(-1), K).double()
        counts, sums = 0.8 + 0.2 * members.sum(0), 0.8 * before + 0.2 * members.T @ flat
        torch.testing.assert_close(module.codebook.weight.double(), sums / counts[:, None], rtol=1e-4, atol=1e-4)
        left = (z.detach() - output.quantized.detach()).square().mean()
        torch.testing.assert_close(module.variance(), 2.0 * (0.1 + 0.9 * left)[None])
        (gradient,) = torch.autograd.grad(output.quantized.sin().sum(), z)
        torch.testing.assert_close(gradient, output.quantized.detach().cos())
        assert not list(module.parameters())

    def test_evaluation_moves_nothing(self) -> None:
        module = self.following()
        state = {name: value.clone() for name, value in module.state_dict().items()}
        module(latents(), None)
        assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


class TestDequantizationNoise:
    def test_continuous_term_loses_the_energy_of_the_noise(self) -> None:
        # With one code at b, E ½‖g + n − b‖²/σ² − Nd/2 = ½‖g − b‖²/σ² for noise n ~ N(0, σ² I).
        module = GaussianQuantizer(1, D, variance_module("I"), True, 10**6)
        torch.nn.init.zeros_(module.codebook.weight)
        many = latents()[:1].expand(20_000, H, W, D)
        expected = 0.5 * float(latents()[0].double().square().sum()) / math.exp(S)
        standard_error = math.sqrt((H * W * D / 2 + 2 * expected) / 20_000)
        assert abs(module(many, torch.tensor(1.0)).terms["continuous"].item() - expected) < 4 * standard_error

    def test_noise_follows_the_variance_of_every_value(self) -> None:
        module = GaussianQuantizer(1, D, variance_module("IV"), True, 10**6)
        torch.nn.init.zeros_(module.codebook.weight)
        seen: list[torch.Tensor] = []
        module.codebook.factors = lambda z, b, w: seen.append(z) or gaussian_factors(z, b, w)  # type: ignore[func-returns-value]
        module(latents()[:1].expand(8000, H, W, D), torch.tensor(1.0), variance_map()[:1].expand(8000, H, W, D))
        noise = (seen[0].reshape(8000, H, W, D) - latents()[0]).double()
        expected = variance_by_hand(variance_map().double(), S, "IV", "released", 0.0)[0]
        torch.testing.assert_close(noise.var(dim=0), expected, rtol=0.08, atol=0)
        assert (noise.mean(dim=0).abs() < 5 * (expected / 8000).sqrt()).all()

    def test_absent_in_evaluation(self) -> None:
        module = quantizer(noise=True)
        plain = module(latents(), None)
        module.dequantization_noise = False
        for name, value in module(latents(), None).terms.items():
            assert torch.equal(plain.terms[name], value)


class TestPrecision:
    @pytest.mark.parametrize("kind", TYPES)
    def test_autocast_does_not_reach_the_quantiser(self, kind: str) -> None:
        module, v = quantizer(kind), None if kind == "I" else variance_map()
        outside = module(latents(), None, v)
        with torch.autocast("cpu", torch.bfloat16):
            inside = module(latents(), None, v)
        assert inside.quantized.dtype == torch.float32
        assert torch.equal(inside.indices, outside.indices)
        for name, value in outside.terms.items():
            assert inside.terms[name].dtype == torch.float32
            assert torch.equal(inside.terms[name], value)
        assert torch.equal(inside.entropy, outside.entropy)

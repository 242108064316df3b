"""The differentiable core against float64 autograd of the textbook formulas, and the distribution of its noise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from hq_tokenizers.quantization.functional import entropy_of, gaussian_logits, in_chunks, relaxed_quantize, vmf_logits
from hq_tokenizers.randomness import gumbel_noise

M, K, D = 6, 5, 3


def double(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def textbook_relaxed_quantize(
    logits: torch.Tensor, codebook: torch.Tensor, temperature: float, gumbel: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    probabilities = torch.softmax(logits, dim=-1)
    assignment = torch.softmax((logits + gumbel) / temperature, dim=-1)
    return assignment @ codebook, -(probabilities * probabilities.log()).sum(dim=-1)


class TestLogits:
    @pytest.mark.parametrize("shape", [(1, 1), (M, 1), (1, D), (M, D)])
    def test_gaussian_probabilities_are_those_of_the_densities(self, shape: tuple[int, int]) -> None:
        latents, codebook, precision = double(M, D), double(K, D, seed=1), double(*shape, seed=2).exp()
        scale = precision.rsqrt().expand(M, D).unsqueeze(1)
        density = torch.distributions.Normal(codebook, scale).log_prob(latents.unsqueeze(1)).sum(dim=-1)
        actual = gaussian_logits(latents, codebook, precision).log_softmax(dim=-1)
        torch.testing.assert_close(actual, density.log_softmax(dim=-1), rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("shape", [(1, 1), (M, 1), (1, D), (M, D)])
    def test_gaussian_gradients(self, shape: tuple[int, int]) -> None:
        inputs = (double(M, D), double(K, D, seed=1), double(*shape, seed=2).exp())
        assert torch.autograd.gradcheck(gaussian_logits, [tensor.requires_grad_() for tensor in inputs])

    def test_vmf_probabilities_are_those_of_the_densities(self) -> None:
        latents, codebook = (torch.nn.functional.normalize(double(n, D, seed=n), dim=-1) for n in (M, K))
        logits = vmf_logits(latents, codebook, torch.tensor([[7.5]], dtype=torch.float64))
        expected = torch.tensor(
            [[stats.vonmises_fisher(b.numpy(), 7.5).logpdf(z.numpy()) for b in codebook] for z in latents]
        )
        torch.testing.assert_close(logits.log_softmax(dim=-1), expected.log_softmax(dim=-1), rtol=1e-9, atol=1e-9)


class TestRelaxedQuantize:
    @pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
    def test_values_and_gradients_are_those_of_autograd(self, temperature: float) -> None:
        gumbel = double(M, K, seed=3)
        weights = double(M, D, seed=4), double(M, seed=5)
        results = []
        for function in (relaxed_quantize, textbook_relaxed_quantize):
            logits, codebook = (3 * double(M, K)).requires_grad_(), double(K, D, seed=1).requires_grad_()
            tau = torch.tensor(temperature, dtype=torch.float64)
            quantized, entropy = function(logits, codebook, tau, gumbel)  # type: ignore[arg-type]
            loss = (quantized * weights[0]).sum() + (entropy.square() * weights[1]).sum()
            results.append((quantized, entropy, *torch.autograd.grad(loss, (logits, codebook))))
        for actual, expected in zip(*results, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)

    def test_gradcheck(self) -> None:
        gumbel, tau = double(M, K, seed=3), torch.tensor(0.7, dtype=torch.float64)
        inputs = [double(M, K).requires_grad_(), double(K, D, seed=1).requires_grad_()]
        assert torch.autograd.gradcheck(lambda a, b: relaxed_quantize(a, b, tau, gumbel), inputs)

    @pytest.mark.parametrize("used", [0, 1])
    def test_one_output_may_go_unused(self, used: int) -> None:
        gumbel = double(M, K, seed=3)
        gradients = []
        for function in (relaxed_quantize, textbook_relaxed_quantize):
            logits, codebook = double(M, K).requires_grad_(), double(K, D, seed=1).requires_grad_()
            output = function(logits, codebook, torch.tensor(1.0, dtype=torch.float64), gumbel)[used]  # type: ignore[arg-type]
            gradients.append(torch.autograd.grad(output.sum(), (logits, codebook), materialize_grads=True))
        for actual, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)

    def test_noise_and_logits_are_left_alone(self) -> None:
        logits, gumbel = double(M, K), double(M, K, seed=3)
        copies = logits.clone(), gumbel.clone()
        relaxed_quantize(logits, double(K, D, seed=1), torch.tensor(0.5, dtype=torch.float64), gumbel)
        assert torch.equal(logits, copies[0])
        assert torch.equal(gumbel, copies[1])

    def test_low_temperature_gives_code_vectors(self) -> None:
        codebook = double(K, D, seed=1).float()
        quantized, _ = relaxed_quantize(double(50, K).float(), codebook, torch.tensor(1e-5))
        assert torch.cdist(quantized.double(), codebook.double()).amin(dim=1).max() < 1e-4

    def test_extreme_logits_stay_finite(self) -> None:
        logits = torch.tensor([[0.0, -1e9, 1e9]], requires_grad=True)
        quantized, entropy = relaxed_quantize(logits, torch.eye(3), torch.tensor(1e-3))
        (gradient,) = torch.autograd.grad(quantized.sum() + entropy.sum(), logits)
        assert torch.equal(quantized, torch.tensor([[0.0, 0.0, 1.0]]))
        assert entropy.tolist() == [0.0]
        assert gradient.isfinite().all()


class TestEntropy:
    def test_against_scipy(self) -> None:
        logits = 4 * double(M, K)
        expected = stats.entropy(logits.softmax(dim=-1).numpy(), axis=1)
        torch.testing.assert_close(entropy_of(logits), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)

    def test_uniform_and_certain(self) -> None:
        assert float(entropy_of(torch.zeros(1, 7, dtype=torch.float64))) == pytest.approx(stats.entropy([1] * 7))
        assert float(entropy_of(torch.tensor([[0.0, 1e9, 0.0]]))) == 0.0


class TestGumbelNoise:
    def test_is_gumbel_distributed(self) -> None:
        sample = gumbel_noise(torch.empty(20_000)).double().numpy()
        assert stats.kstest(sample, stats.gumbel_r.cdf).pvalue > 1e-3

    def test_argmax_of_the_relaxed_assignment_is_a_categorical_sample(self) -> None:
        probabilities = torch.tensor([0.05, 0.1, 0.15, 0.3, 0.4])
        logits = probabilities.log().expand(40_000, -1)
        # With the identity as codebook, the relaxed sample is the assignment.
        assignment, _ = relaxed_quantize(logits, torch.eye(5), torch.tensor(0.8))
        counts = torch.bincount(assignment.argmax(dim=-1), minlength=5).numpy()
        assert (
            stats.chisquare(
                counts, 40_000 * probabilities.double().numpy() / float(probabilities.double().sum())
            ).pvalue
            > 1e-3
        )


class _LargestTensor(TorchDispatchMode):
    """Records the largest number of elements of any tensor that an operation returns."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


class TestInChunks:
    num_vectors, num_codes = 50, 40

    def quantize_and_differentiate(self, max_elements: int) -> tuple[list[torch.Tensor], int]:
        latents, codebook = double(self.num_vectors, D).float(), double(self.num_codes, D, seed=1).float()
        precision = double(self.num_vectors, 1, seed=2).exp().float()
        inputs = [tensor.requires_grad_() for tensor in (latents, codebook, precision)]

        def quantize(z: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return relaxed_quantize(gaussian_logits(z, codebook, w), codebook, torch.tensor(0.7))

        torch.manual_seed(11)
        with _LargestTensor() as largest:
            quantized, entropy = in_chunks(
                quantize, latents, precision, num_codes=self.num_codes, max_elements=max_elements
            )
            loss = quantized.square().sum() + entropy.sin().sum()
            gradients = torch.autograd.grad(loss, inputs)
        return [quantized.detach(), entropy.detach(), *gradients], largest.numel

    @pytest.mark.parametrize("max_elements", [40, 300, 1999])
    def test_values_and_gradients_are_those_of_one_call(self, max_elements: int) -> None:
        whole, whole_size = self.quantize_and_differentiate(10**6)
        sliced, sliced_size = self.quantize_and_differentiate(max_elements)
        for actual, expected in zip(sliced, whole, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        assert whole_size == self.num_vectors * self.num_codes
        # The latents and the codebook themselves are not counted by the bound.
        assert sliced_size <= max(max_elements, 2 * D * self.num_vectors)
        assert sliced_size < whole_size

    def test_a_bound_below_one_row_still_makes_progress(self) -> None:
        whole, _ = self.quantize_and_differentiate(10**6)
        sliced, _ = self.quantize_and_differentiate(1)
        torch.testing.assert_close(sliced[0], whole[0])

    def test_other_tensors_are_passed_whole(self) -> None:
        seen = []

        def record(z: torch.Tensor, shared: torch.Tensor) -> tuple[torch.Tensor]:
            seen.append((z.shape[0], shared.shape[0]))
            return (z,)

        (result,) = in_chunks(record, double(5, 1), double(1, 1), num_codes=10, max_elements=20)
        assert seen == [(2, 1), (2, 1), (1, 1)]
        assert torch.equal(result, double(5, 1))

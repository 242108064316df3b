"""Logits against densities, entropies against scipy, and slices against one call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from hq_tokenizers.quantization.functional import entropy_of, gaussian_factors, in_chunks, vmf_factors

M, K, D = 6, 5, 3


def double(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestLogits:
    @pytest.mark.parametrize("shape", [(1, 1), (M, 1), (1, D), (M, D)])
    def test_gaussian_probabilities_are_those_of_the_densities(self, shape: tuple[int, int]) -> None:
        latents, codebook, precision = double(M, D), double(K, D, seed=1), double(*shape, seed=2).exp()
        scale = precision.rsqrt().expand(M, D).unsqueeze(1)
        density = torch.distributions.Normal(codebook, scale).log_prob(latents.unsqueeze(1)).sum(dim=-1)
        query, key = gaussian_factors(latents, codebook, precision)
        actual = (query @ key.T).log_softmax(dim=-1)
        torch.testing.assert_close(actual, density.log_softmax(dim=-1), rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("shape", [(1, 1), (M, 1), (1, D), (M, D)])
    def test_gaussian_gradients(self, shape: tuple[int, int]) -> None:
        inputs = (double(M, D), double(K, D, seed=1), double(*shape, seed=2).exp())
        assert torch.autograd.gradcheck(gaussian_factors, [tensor.requires_grad_() for tensor in inputs])

    def test_vmf_probabilities_are_those_of_the_densities(self) -> None:
        latents, codebook = (torch.nn.functional.normalize(double(n, D, seed=n), dim=-1) for n in (M, K))
        query, key = vmf_factors(latents, codebook, torch.tensor([[7.5]], dtype=torch.float64))
        expected = torch.tensor(
            [[stats.vonmises_fisher(b.numpy(), 7.5).logpdf(z.numpy()) for b in codebook] for z in latents]
        )
        torch.testing.assert_close(
            (query @ key.T).log_softmax(dim=-1), expected.log_softmax(dim=-1), rtol=1e-9, atol=1e-9
        )


class TestEntropy:
    def test_against_scipy(self) -> None:
        logits = 4 * double(M, K)
        expected = stats.entropy(logits.softmax(dim=-1).numpy(), axis=1)
        torch.testing.assert_close(entropy_of(logits), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)

    def test_uniform_and_certain(self) -> None:
        assert float(entropy_of(torch.zeros(1, 7, dtype=torch.float64))) == pytest.approx(stats.entropy([1] * 7))
        assert float(entropy_of(torch.tensor([[0.0, 1e9, 0.0]]))) == 0.0

    def test_in_float32_under_autocast(self) -> None:
        logits = torch.randn(3, 5)
        expected = entropy_of(logits)
        with torch.autocast("cpu", torch.bfloat16):
            found = entropy_of(logits)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected)


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
            query, key = gaussian_factors(z, codebook, w)
            logits = query @ key.T
            # With noise, which the backward pass has to draw again.
            return torch.softmax(logits + torch.rand_like(logits), dim=-1) @ codebook, entropy_of(logits)

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

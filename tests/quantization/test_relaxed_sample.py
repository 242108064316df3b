"""Relaxed samples against float64 autograd of the textbook formulas, their memory, and how their noise is spread."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from hq_tokenizers.quantization import relaxed_sample
from hq_tokenizers.quantization.functional import gaussian_factors, vmf_factors
from hq_tokenizers.quantization.relaxed_sample import relaxed_quantize, sample_codes
from hq_tokenizers.randomness import draw_gumbel_

M, K, D = 6, 5, 3
SEED = 7


def double(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def textbook(
    query: torch.Tensor, key: torch.Tensor, codebook: torch.Tensor, temperature: float, gumbel: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    logits = query @ key.T
    log_probabilities = logits.log_softmax(dim=-1)
    assignment = torch.softmax((logits + gumbel) / temperature, dim=-1)
    return assignment @ codebook, -(log_probabilities.exp() * log_probabilities).sum(dim=-1), logits.argmax(dim=-1)


def seeded(
    query: torch.Tensor, key: torch.Tensor, codebook: torch.Tensor, temperature: float, max_elements: int = 2**27
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(SEED)
    tau = torch.tensor(temperature, dtype=query.dtype)
    return relaxed_quantize(query, key, codebook, tau, max_elements=max_elements)


@pytest.fixture(params=[0, 2**22], ids=["computed again", "kept"])
def three_slices(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of two rows, whose matrices are kept for the backward pass or not."""
    monkeypatch.setattr(relaxed_sample, "KEPT_ELEMENTS", request.param)
    monkeypatch.setattr(relaxed_sample, "CPU_SLICE", 2 * K)
    monkeypatch.setattr(relaxed_sample, "SMALLEST_ROWS", 1)


def noise(number: int, num_codes: int, dtype: torch.dtype) -> torch.Tensor:
    torch.manual_seed(SEED)
    return draw_gumbel_(torch.empty(number, num_codes, dtype=dtype)).double()


@pytest.mark.parametrize("max_elements", [2**27, 2 * K, 1], ids=["kept", "slices", "rows"])
@pytest.mark.parametrize("temperature", [0.05, 0.3, 1.0, 4.0])
def test_values_and_gradients_are_those_of_autograd(temperature: float, max_elements: int) -> None:
    inputs = [double(M, 4).requires_grad_(), double(K, 4, seed=1).requires_grad_()]
    inputs.append(double(K, D, seed=2).requires_grad_())
    weights = double(M, D, seed=4), double(M, seed=5)
    results = []
    for output in (
        seeded(*inputs, temperature, max_elements),
        textbook(*inputs, temperature, noise(M, K, torch.float64)),
    ):
        quantized, entropy, indices = output
        loss = (quantized * weights[0]).sum() + (entropy.square() * weights[1]).sum()
        results.append((quantized, entropy, indices, *torch.autograd.grad(loss, inputs)))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("max_elements", [2**27, 2 * K])
def test_gradcheck(max_elements: int) -> None:
    inputs = [double(M, 4).requires_grad_(), double(K, 4, seed=1).requires_grad_(), double(K, D, seed=2)]
    assert torch.autograd.gradcheck(lambda q, k, b: seeded(q, k, b, 0.7, max_elements)[:2], inputs)


def test_gradients_in_slices(three_slices: None) -> None:
    inputs = [double(M, 4).requires_grad_(), double(K, 4, seed=1).requires_grad_()]
    inputs.append(double(K, D, seed=2).requires_grad_())
    assert torch.autograd.gradcheck(lambda q, k, b: seeded(q, k, b, 0.7)[:2], inputs)


@pytest.mark.parametrize("variance", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
@pytest.mark.parametrize("num_codes", [1, 33])
def test_float32_is_close_to_float64_for_any_variance(variance: float, temperature: float, num_codes: int) -> None:
    # Near a code: between two of them, the logits of the smallest variance (10⁷) are beyond what float32 tells apart.
    codebook = double(num_codes, D, seed=1)
    latents = codebook[torch.arange(40) % num_codes] + 0.02 * double(40, D, seed=2)
    results = []
    for dtype in (torch.float32, torch.float64):
        inputs = [t.to(dtype).requires_grad_() for t in (latents, codebook, torch.tensor([[1 / variance]]).double())]
        query, key = gaussian_factors(inputs[0], inputs[1], inputs[2])
        if dtype == torch.float32:
            quantized, entropy, indices = seeded(query, key, inputs[1], temperature)
        else:
            gumbel = noise(40, num_codes, torch.float32)
            quantized, entropy, indices = textbook(query, key, inputs[1], temperature, gumbel)
        loss = (quantized * double(40, D, seed=3).to(dtype)).sum() + entropy.sum()
        results.append((quantized, entropy, *torch.autograd.grad(loss, inputs), indices))
    (*actual, indices), (*expected, _) = results
    for one, other in zip(actual, expected, strict=True):
        assert one.isfinite().all()
        torch.testing.assert_close(
            one.double(), other, rtol=2e-3, atol=2e-4 * max(1.0, float(other.detach().abs().max()))
        )
    chosen = (latents.unsqueeze(1) - codebook).square().sum(-1).gather(1, indices.unsqueeze(1)).squeeze(1)
    nearest = (latents.unsqueeze(1) - codebook).square().sum(-1).amin(1)
    torch.testing.assert_close(chosen, nearest, rtol=1e-4, atol=1e-4)


def test_unit_vectors_share_codes_and_keys() -> None:
    results = []
    for function in (
        lambda q, k, b: seeded(q, k, b, 0.6),
        lambda q, k, b: textbook(q, k, b, 0.6, noise(M, K, torch.float64)),
    ):
        latents, codes = (torch.nn.functional.normalize(double(n, D, seed=n), dim=-1) for n in (M, K))
        inputs = [latents.requires_grad_(), codes.requires_grad_(), torch.tensor([[9.0]]).double().requires_grad_()]
        quantized, entropy, _ = function(*vmf_factors(*inputs), codes)
        results.append(torch.autograd.grad((quantized * double(M, D, seed=4)).sum() + entropy.sum(), inputs))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("max_elements", [2**27, 2 * K])
@pytest.mark.parametrize("used", [0, 1])
def test_one_output_may_go_unused(used: int, max_elements: int) -> None:
    inputs = [double(M, 4).requires_grad_(), double(K, 4, seed=1).requires_grad_()]
    inputs.append(double(K, D, seed=2).requires_grad_())
    outputs = seeded(*inputs, 1.0, max_elements), textbook(*inputs, 1.0, noise(M, K, torch.float64))
    actual, expected = (torch.autograd.grad(o[used].sum(), inputs, materialize_grads=True) for o in outputs)
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("max_elements", [2**27, 2 * K])
def test_codes_without_gradient(max_elements: int) -> None:
    query, key, codebook = double(M, 4).requires_grad_(), double(K, 4, seed=1), double(K, D, seed=2)
    expected = torch.autograd.grad(textbook(query, key, codebook, 0.5, noise(M, K, query.dtype))[0].sum(), query)
    (gradient,) = torch.autograd.grad(seeded(query, key, codebook, 0.5, max_elements)[0].sum(), query)
    torch.testing.assert_close(gradient, expected[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("max_elements", [2**27, 2 * K])
def test_backward_pass_twice_and_after_other_noise(max_elements: int) -> None:
    query = double(M, 4).requires_grad_()
    loss = seeded(query, double(K, 4, seed=1), double(K, D, seed=2), 0.5, max_elements)[0].square().sum()
    first = torch.autograd.grad(loss, query, retain_graph=True)
    torch.rand(5)
    state = torch.get_rng_state()
    assert torch.equal(first[0], torch.autograd.grad(loss, query, retain_graph=True)[0])
    assert torch.equal(state, torch.get_rng_state())
    (again,) = torch.autograd.grad(loss, query, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        again.sum().backward()


def test_inputs_are_left_alone() -> None:
    inputs = double(M, 4), double(K, 4, seed=1), double(K, D, seed=2)
    copies = [tensor.clone() for tensor in inputs]
    seeded(*inputs, 0.5)
    assert all(torch.equal(*pair) for pair in zip(inputs, copies, strict=True))


def test_low_temperature_gives_code_vectors() -> None:
    codebook = double(K, D, seed=1).float()
    quantized, _, _ = seeded(double(50, 4).float(), double(K, 4, seed=1).float(), codebook, 1e-5)
    assert torch.cdist(quantized.double(), codebook.double()).amin(dim=1).max() < 1e-4


def test_extreme_logits_stay_finite() -> None:
    query, key = torch.ones(1, 1, requires_grad=True), torch.tensor([[0.0], [-1e9], [1e9]])
    quantized, entropy, indices = seeded(query, key, torch.eye(3), 1e-3)
    (gradient,) = torch.autograd.grad(quantized.sum() + entropy.sum(), query)
    assert torch.equal(quantized, torch.tensor([[0.0, 0.0, 1.0]]))
    assert entropy.tolist() == [0.0]
    assert indices.tolist() == [2]
    assert gradient.isfinite().all()


class TestExactSamples:
    @pytest.mark.parametrize("max_elements", [2**27, 2 * K, 1], ids=["kept", "slices", "rows"])
    def test_entropies_and_their_gradients_are_those_of_autograd(self, max_elements: int) -> None:
        inputs = [double(M, 4).requires_grad_(), double(K, 4, seed=1).requires_grad_()]
        weights = double(M, seed=5)
        torch.manual_seed(SEED)
        samples, entropy, indices = sample_codes(*inputs, max_elements)
        logits = inputs[0] @ inputs[1].T
        assert torch.equal(samples, (logits + noise(M, K, torch.float64)).argmax(-1))
        assert torch.equal(indices, logits.argmax(-1))
        expected = torch.distributions.Categorical(logits=logits).entropy()
        torch.testing.assert_close(entropy, expected)
        gradients = torch.autograd.grad((entropy.square() * weights).sum(), inputs)
        for mine, theirs in zip(
            gradients, torch.autograd.grad((expected.square() * weights).sum(), inputs), strict=True
        ):
            torch.testing.assert_close(mine, theirs)

    def test_gradients_in_slices(self, three_slices: None) -> None:
        inputs = [double(M, 4).requires_grad_(), double(K, 4, seed=1).requires_grad_()]
        assert torch.autograd.gradcheck(lambda *factors: sample_codes(*factors)[1], inputs)

    def test_codes_come_as_often_as_they_are_probable(self) -> None:
        torch.manual_seed(0)
        query, key = double(1, 4).float(), double(K, 4, seed=1).float()
        samples, *_ = sample_codes(query.expand(20_000, 4), key)
        expected = 20_000 * torch.softmax(query @ key.T, dim=-1).squeeze(0).double()
        assert stats.chisquare(torch.bincount(samples, minlength=K), expected).pvalue > 1e-3


class TestGumbelNoise:
    def test_is_gumbel_distributed(self) -> None:
        sample = draw_gumbel_(torch.empty(20_000)).double().numpy()
        assert stats.kstest(sample, stats.gumbel_r.cdf).pvalue > 1e-3

    def test_is_finite_where_the_uniform_number_is_zero(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.Tensor, "uniform_", lambda self, low, high, generator: self.fill_(low))
        assert draw_gumbel_(torch.empty(3)).isfinite().all()

    def test_argmax_of_the_relaxed_assignment_is_a_categorical_sample(self) -> None:
        probabilities = torch.tensor([0.05, 0.1, 0.15, 0.3, 0.4])
        # With the identity as codebook, the relaxed sample is the assignment.
        assignment, _, _ = seeded(torch.ones(40_000, 1), probabilities.log().unsqueeze(1), torch.eye(5), 0.8)
        counts = torch.bincount(assignment.argmax(dim=-1), minlength=5).numpy()
        expected = 40_000 * probabilities.double().numpy() / float(probabilities.double().sum())
        assert stats.chisquare(counts, expected).pvalue > 1e-3


class _TensorSizes(TorchDispatchMode):
    """Records the largest number of elements of any tensor that an operation returns, and all memory they lie in."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0
        self.storages: dict[int, torch.UntypedStorage] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
                # Held, so that no other gets its address.
                self.storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return result

    def number_of(self, smallest: int) -> int:
        """Pieces of memory of at least so many float32 elements."""
        return sum(storage.nbytes() >= 4 * smallest for storage in self.storages.values())


class TestSlices:
    num_vectors, num_codes = 50, 40

    def run(self, max_elements: int, num_vectors: int = num_vectors) -> tuple[list[torch.Tensor], _TensorSizes]:
        query, key = double(num_vectors, 4).float(), double(self.num_codes, 4, seed=1).float()
        codebook = double(self.num_codes, D, seed=2).float()
        inputs = [tensor.requires_grad_() for tensor in (query, key, codebook)]
        with _TensorSizes() as sizes:
            quantized, entropy, _ = seeded(query, key, codebook, 0.7, max_elements)
            gradients = torch.autograd.grad(quantized.square().sum() + entropy.sin().sum(), inputs)
        return [quantized.detach(), entropy.detach(), *gradients], sizes

    @pytest.mark.parametrize("max_elements", [40, 300, 1999])
    def test_values_and_gradients_are_those_of_one_call(self, max_elements: int) -> None:
        whole, whole_sizes = self.run(10**6)
        sliced, sliced_sizes = self.run(max_elements)
        for actual, expected in zip(sliced, whole, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        assert whole_sizes.numel == self.num_vectors * self.num_codes
        # The factors and the codebook themselves are not counted by the bound.
        assert sliced_sizes.numel <= max(max_elements, 4 * self.num_vectors)

    def test_beyond_the_kept_size_slices_hold_what_is_preferred(self, monkeypatch: pytest.MonkeyPatch) -> None:
        whole, _ = self.run(10**6)
        monkeypatch.setattr(relaxed_sample, "KEPT_ELEMENTS", 500)
        monkeypatch.setattr(relaxed_sample, "CPU_SLICE", 400)
        monkeypatch.setattr(relaxed_sample, "SMALLEST_ROWS", 2)
        sliced, sizes = self.run(10**6)
        assert sizes.numel == 400
        for actual, expected in zip(sliced, whole, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("num_vectors", [14, 35])
    def test_slices_share_their_matrices(self, num_vectors: int) -> None:
        rows = 7
        _, sizes = self.run(rows * self.num_codes, num_vectors)
        # Logits and assignments; the backward pass computes both again, and has products and a gradient besides.
        assert sizes.number_of(rows * self.num_codes) == 2 + 4

"""Samples of P̂, relaxed by the Gumbel-softmax or exact, with entropies and most probable codes, in few passes.

Shape legend: M latent vectors (any leading shape, flattened here), r width of the factors, d code width, K codes.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from torch.autograd.function import once_differentiable

from hq_tokenizers.randomness import draw_gumbel_, generator_from_state, global_generator_state

LN2, LOG2E = math.log(2), math.log2(math.e)
KEPT_ELEMENTS = 2**24
"""Up to this size (M · K) two matrices are kept for the backward pass; beyond it, it computes them again."""
CPU_SLICE, ACCELERATOR_SLICE = 2**20, 2**23
"""Elements of a slice: what caches hold; what keeps an accelerator busy."""
SMALLEST_ROWS = 32
"""With fewer vectors per slice, matrix products spend their time on reading the codebook."""


Backward = TypeVar("Backward", bound=Callable[..., Any])


def _in_float32(backward: Backward) -> Backward:
    """A backward pass without autocast, in which it runs where the caller's `loss.backward()` stands inside of one."""

    @functools.wraps(backward)
    def run(ctx: Any, *gradients: torch.Tensor | None) -> tuple:
        with torch.autocast(ctx.saved_tensors[0].device.type, enabled=False):
            return backward(ctx, *gradients)

    return cast(Backward, run)


class _RelaxedSample(torch.autograd.Function):
    """`relaxed_quantize` in slices of the M vectors.

    With a_k = ⟨query, key_k⟩ log₂e, whose exponentials in base 2 are those of the logits in base e (and take a third of
    the time on a CPU), s_k = a_k − max a, and g the noise,

        p = 2^s / Z,   H = ln 2 (log₂ Z − Σ_k p_k s_k),   y = 2^((s + g log₂e) / τ) / Y,   z_q = Σ_k y_k b_k

    Both parts of H are ≥ 0: nothing cancels. With G and γ the gradients with respect to z_q and H, those with respect
    to the logits q_k = ⟨query, key_k⟩ and to what they are made of are

        ∂q_k = y_k (⟨G, b_k⟩ − ⟨G, z_q⟩) / τ − γ ln 2 · p_k (s_k − Σ_j p_j s_j)
        ∂query = Σ_k ∂q_k key_k,   ∂key_k = Σ_i ∂q_ik query_i,   ∂b_k = Σ_i y_ik G_i

    The code leaves p and y undivided and gives Z and Y, (M, 1), to the other factor.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx,
        query: torch.Tensor,
        key: torch.Tensor,
        codebook: torch.Tensor,
        temperature: torch.Tensor,
        rows: int,
        keep: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.rows, ctx.keep = rows, keep
        # The compiler, under which all is kept, knows no generators.
        ctx.noise_state = None if keep else global_generator_state(query.device)
        results, kept = [], []
        space: list[torch.Tensor] = []
        for part in _slices(len(query), rows):
            shifted, assignment = _matrices([] if keep else space, query[part], key, 2)
            peak, indices = _shifted_logits_(shifted, query[part], key)
            entropy, total, mean = _entropy(shifted, assignment)
            torch.add(shifted, draw_gumbel_(assignment), alpha=LOG2E, out=assignment)
            noisy_peak = assignment.amax(dim=-1, keepdim=True)
            assignment.sub_(noisy_peak).div_(temperature).exp2_()
            noisy_total = assignment.sum(dim=-1, keepdim=True)
            quantized = (assignment @ codebook) / noisy_total
            results.append((quantized, entropy, indices.squeeze(-1), peak, noisy_peak, noisy_total, total, mean))
            if keep:
                kept += [shifted, assignment]
        quantized, entropy, indices, *statistics = (torch.cat(column) for column in zip(*results, strict=True))
        ctx.save_for_backward(query, key, codebook, temperature, *statistics, *kept)
        ctx.mark_non_differentiable(indices)
        # An output without gradient saves its passes.
        ctx.set_materialize_grads(False)
        return quantized, entropy, indices

    @staticmethod
    @once_differentiable
    @_in_float32
    def backward(ctx, grad_quantized, grad_entropy, _):  # type: ignore[no-untyped-def]
        query, key, codebook, temperature, peak, noisy_peak, noisy_total, total, mean, *kept = ctx.saved_tensors
        generator = None if ctx.keep else generator_from_state(ctx.noise_state, query.device)
        grad_query = torch.zeros_like(query)
        # Transposed: a wide matrix's transpose on the left makes a slow product. Moving averages want no gradient.
        grad_key = key.new_zeros(*key.T.shape) if ctx.needs_input_grad[1] else None
        grad_codebook = codebook.new_zeros(*codebook.T.shape) if ctx.needs_input_grad[2] else None
        space: list[torch.Tensor] = []
        for number, part in enumerate(_slices(len(query), ctx.rows)):
            first, second, along, *others = _matrices(space, query[part], key, 3 if ctx.keep else 4)
            product = first if ctx.keep else others[0]
            if ctx.keep:
                shifted, assignment = kept[2 * number : 2 * number + 2]
            else:
                shifted = torch.mm(query[part] * LOG2E, key.T, out=first).sub_(peak[part])
                assignment = torch.add(shifted, draw_gumbel_(second, generator), alpha=LOG2E, out=second)
                assignment.sub_(noisy_peak[part]).div_(temperature).exp2_()
            grad_logits = None
            if grad_quantized is not None:
                weighted = grad_quantized[part] / noisy_total[part]
                if grad_codebook is not None:
                    grad_codebook.addmm_(weighted.T, assignment)
                torch.mm(weighted / temperature, codebook.T, out=along)
                # ⟨G, z_q⟩ as Σ_k y_k ⟨G, b_k⟩: zero to the bit with one code alone, which a small variance magnifies.
                mean_along = torch.mul(along, assignment, out=product).sum(dim=-1, keepdim=True) / noisy_total[part]
                grad_logits = along.sub_(mean_along).mul_(assignment)
            if grad_entropy is not None:
                scale = -LN2 / total[part] * grad_entropy[part].unsqueeze(-1)
                of_entropy = _entropy_gradient(shifted, mean[part], scale, first, second)
                grad_logits = of_entropy if grad_logits is None else grad_logits.add_(of_entropy)
            if grad_logits is not None:
                grad_query[part].addmm_(grad_logits, key)
                if grad_key is not None:
                    grad_key.addmm_(query[part].T, grad_logits)
        transposed = (None if gradient is None else gradient.T for gradient in (grad_key, grad_codebook))
        return grad_query, *transposed, None, None, None


class _ExactSample(torch.autograd.Function):
    """`sample_codes` in slices of the M vectors; the entropy and its gradient are those of `_RelaxedSample`."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, query: torch.Tensor, key: torch.Tensor, rows: int, keep: bool
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        ctx.rows, ctx.keep = rows, keep
        results, kept = [], []
        noisy_space: list[torch.Tensor] = []
        shifted_space: list[torch.Tensor] = []
        for part in _slices(len(query), rows):
            (noisy,) = _matrices(noisy_space, query[part], key, 1)
            (shifted,) = _matrices([] if keep else shifted_space, query[part], key, 1)
            peak, indices = _shifted_logits_(shifted, query[part], key)
            entropy, total, mean = _entropy(shifted, noisy)
            # Gumbel-max: the largest of log-probabilities with noise is a sample.
            samples = torch.add(shifted, draw_gumbel_(noisy), alpha=LOG2E, out=noisy).argmax(dim=-1)
            results.append((samples, entropy, indices.squeeze(-1), peak, total, mean))
            if keep:
                kept.append(shifted)
        samples, entropy, indices, *statistics = (torch.cat(column) for column in zip(*results, strict=True))
        ctx.save_for_backward(query, key, *statistics, *kept)
        ctx.mark_non_differentiable(samples, indices)
        return samples, entropy, indices

    @staticmethod
    @once_differentiable
    @_in_float32
    def backward(ctx, _samples, grad_entropy, _indices):  # type: ignore[no-untyped-def]
        query, key, peak, total, mean, *kept = ctx.saved_tensors
        grad_query = torch.zeros_like(query)
        grad_key = torch.zeros_like(key) if ctx.needs_input_grad[1] else None
        space: list[torch.Tensor] = []
        for number, part in enumerate(_slices(len(query), ctx.rows)):
            first, second = _matrices(space, query[part], key, 2)
            shifted = kept[number] if ctx.keep else torch.mm(query[part] * LOG2E, key.T, out=first).sub_(peak[part])
            scale = -LN2 / total[part] * grad_entropy[part].unsqueeze(-1)
            grad_logits = _entropy_gradient(shifted, mean[part], scale, first, second)
            grad_query[part].addmm_(grad_logits, key)
            if grad_key is not None:
                grad_key.addmm_(grad_logits.T, query[part])
        return grad_query, grad_key, None, None


def _matrices(space: list[torch.Tensor], query: torch.Tensor, key: torch.Tensor, number: int) -> list[torch.Tensor]:
    """As many matrices (M, K), uninitialised, in `space`, which the first slice fills: no slice is larger.

    With new ones for every slice a process can grow by as much with each, since what it frees need not fit the next.
    """
    space += [query.new_empty(len(query), len(key)) for _ in range(number - len(space))]
    return [matrix[: len(query)] for matrix in space[:number]]


def _shifted_logits_(out: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Writes the exponents s (M, K); max a and its place (M, 1)."""
    logits = torch.mm(query * LOG2E, key.T, out=out)
    peak, indices = logits.max(dim=-1, keepdim=True)
    logits.sub_(peak)
    return peak, indices


def _entropy(shifted: torch.Tensor, space: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """H (M,), Z and Σ_k p_k s_k (M, 1); `space` (M, K) is written over."""
    probabilities = torch.exp2(shifted, out=space)
    total = probabilities.sum(dim=-1, keepdim=True)
    mean = probabilities.mul_(shifted).sum(dim=-1, keepdim=True) / total
    return (total.log2() - mean).squeeze(-1) * LN2, total, mean


def _entropy_gradient(
    shifted: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor, out: torch.Tensor, space: torch.Tensor
) -> torch.Tensor:
    """−γ ln 2 · p_k (s_k − Σ_j p_j s_j), (M, K), with `scale` −γ ln 2 / Z (M, 1); `out` may be `shifted`."""
    undivided = torch.exp2(shifted, out=space)
    return torch.sub(shifted, mean, out=out).mul_(scale).mul_(undivided)


def relaxed_quantize(
    query: torch.Tensor,
    key: torch.Tensor,
    codebook: torch.Tensor,
    temperature: torch.Tensor,
    max_elements: int = 2**27,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A relaxed sample of P̂ = softmax(query keyᵀ) by the Gumbel-softmax, the entropy of P̂ and its most probable code.

    z̃_q = Σ_k y_k b_k with y = softmax((query keyᵀ + g) / τ), soft: no straight-through and no stop-gradient. The
    Gumbel noise g comes from torch's global generator. Beyond `KEPT_ELEMENTS` no matrix of M × K exists, only slices
    of it, and the backward pass computes them again with the same noise. The backward pass cannot be differentiated.

    Args:
        query: (M, r).
        key: (K, r); with `query` the factors of the unnormalised log-probabilities.
        codebook: (K, d).
        temperature: τ > 0, a scalar tensor; not differentiated.
        max_elements: Largest number of elements of a slice; a row is the least.

    Returns:
        The relaxed samples (M, d), the entropies H(P̂) in nats (M,) and the most probable codes (M,).
    """
    return _outside_graphs(_RelaxedSample, (query, key, codebook, temperature), max_elements)


def sample_codes(
    query: torch.Tensor, key: torch.Tensor, max_elements: int = 2**27
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Samples of P̂ = softmax(query keyᵀ) by the Gumbel-max trick, the entropies of P̂ and its most probable codes.

    The noise comes from torch's global generator. Samples have no gradient, entropies have theirs.

    Args:
        query: (M, r).
        key: (K, r); with `query` the factors of the unnormalised log-probabilities.
        max_elements: Largest number of elements of a slice; a row is the least.

    Returns:
        Sampled codes (M,), the entropies H(P̂) in nats (M,) and the most probable codes (M,).
    """
    return _outside_graphs(_ExactSample, (query, key), max_elements)


def _outside_graphs(
    function: type[torch.autograd.Function], tensors: tuple[torch.Tensor, ...], max_elements: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Applies a function of query, key, … in slices; the compiler sees it whole, where it is small, or not at all."""
    num_vectors, num_codes = len(tensors[0]), len(tensors[1])
    num_elements = num_vectors * num_codes
    if torch.compiler.is_compiling() and num_elements <= max_elements:
        return function.apply(*tensors, num_vectors, True)
    preferred = CPU_SLICE if tensors[0].device.type == "cpu" else ACCELERATOR_SLICE
    rows = max(1, min(max(preferred // num_codes, SMALLEST_ROWS), max_elements // num_codes))
    keep = num_elements <= min(KEPT_ELEMENTS, max_elements)
    return _apply(function, *tensors, rows, keep)


@torch.compiler.disable
def _apply(
    function: type[torch.autograd.Function], *arguments: torch.Tensor | int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return function.apply(*arguments)


def _slices(number: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, number, size)]

"""Milliseconds for a forward and a backward pass of a quantiser alone, ours against the textbook and a peer.

    python benchmarks/quantizer.py
    python benchmarks/quantizer.py --threads 1 --sizes 2048x512x64
    python benchmarks/quantizer.py --memory --sizes 8192x65536x64

A size is vectors × codes × width. All take turns in one process; what is printed are the smallest times and, with
`--clock processor`, those of the processor's own clock for one thread, which other work on the machine disturbs less.
Before anything is timed, values and gradients of ours are compared with the textbook's in float64 on the same noise.
"relaxed" is ours with the papers' relaxed samples, and gradients to latents, codes and precision; the textbook writes
the same formulas as they read; the compiled one needs a C++ compiler. "StochasticQuantize" is our layer as the presets
train: codes drawn exactly, with the identity as their gradient, batch norm, moving averages and restarts; compared is
the entropy, which alone has a gradient of its own. The peer is the deterministic quantiser of vector-quantize-pytorch
with moving averages: what a stochastic one costs.
`--memory` prints, instead of times, how much a pass of ours holds at once besides its arguments, gradients included.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable

import torch

from hq_tokenizers import StochasticQuantize
from hq_tokenizers.quantization.functional import gaussian_factors
from hq_tokenizers.quantization.relaxed_sample import relaxed_quantize, sample_codes
from hq_tokenizers.randomness import draw_gumbel_
from hq_tokenizers.training.peak_memory import PeakMemory

TAU = 0.7
Tensors = tuple[torch.Tensor, ...]


def textbook(z: torch.Tensor, codes: torch.Tensor, precision: torch.Tensor, gumbel: torch.Tensor) -> Tensors:
    """Relaxed samples, entropies and most probable codes as in the paper: every matrix M × K is a node of autograd."""
    distances = z.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * z @ codes.T
    logits = -0.5 * precision * distances
    log_probabilities = logits.log_softmax(-1)
    assignment = ((logits + gumbel) / TAU).softmax(-1)
    return assignment @ codes, -(log_probabilities.exp() * log_probabilities).sum(-1), logits.argmax(-1)


def drawing_textbook(z: torch.Tensor, codes: torch.Tensor, precision: torch.Tensor) -> Tensors:
    uniform = torch.rand(len(z), len(codes), device=z.device)
    return textbook(z, codes, precision, -torch.log(-torch.log(uniform + 1e-10) + 1e-10))


def ours(z: torch.Tensor, codes: torch.Tensor, precision: torch.Tensor) -> Tensors:
    query, key = gaussian_factors(z, codes, precision)
    return relaxed_quantize(query, key, codes, torch.tensor(TAU, device=z.device, dtype=z.dtype))


def entropy_of_drawn(z: torch.Tensor, codes: torch.Tensor, precision: torch.Tensor) -> Tensors:
    """Of codes drawn exactly, which have no gradient: what has one."""
    return (sample_codes(*gaussian_factors(z, codes, precision))[1],)


def inputs(vectors: int, num_codes: int, width: int, device: torch.device) -> list[torch.Tensor]:
    """Latents, codes and a precision at which a few codes share most of the probability."""
    generator = torch.Generator().manual_seed(0)
    z, codes = (torch.randn(n, width, generator=generator).to(device) for n in (vectors, num_codes))
    return [tensor.requires_grad_() for tensor in (z, codes, torch.full((1, 1), 4 / width, device=device))]


def difference(vectors: int, num_codes: int, width: int) -> float:
    """The largest relative difference in norm of ours from the float64 textbook, of values and gradients."""
    arguments = inputs(vectors, num_codes, width, torch.device("cpu"))
    doubles = [tensor.detach().double().requires_grad_() for tensor in arguments]
    torch.manual_seed(0)
    reference = textbook(*doubles, draw_gumbel_(torch.empty(vectors, num_codes)).double())[:2]
    torch.manual_seed(0)
    pairs = [(ours(*arguments)[:2], reference), (entropy_of_drawn(*arguments), reference[1:])]
    found = [tensor for mine, _ in pairs for tensor in _with_gradients(mine, arguments)]
    expected = [tensor for _, right in pairs for tensor in _with_gradients(right, doubles)]
    return max(float(((a - e).norm() / e.norm()).detach()) for a, e in zip(found, expected, strict=True))


def _with_gradients(values: Tensors, arguments: list[torch.Tensor]) -> list[torch.Tensor]:
    loss = sum((value.sin() * 3 + value.square()).sum() for value in values)
    return [t.double() for t in (*values, *torch.autograd.grad(loss, arguments, retain_graph=True))]


def pass_of(function: Callable[..., Tensors], arguments: list[torch.Tensor], cotangent: torch.Tensor) -> None:
    quantized, entropy, _ = function(*arguments)
    torch.autograd.grad((quantized * cotangent).sum() - entropy.sum(), arguments)


def contestants(size: list[int], device: torch.device) -> dict[str, Callable[[], None] | str]:
    """By name what is timed, or why it is not."""
    arguments = inputs(*size, device)
    cotangent = torch.randn_like(arguments[0])
    layer = StochasticQuantize(size[2], size[1]).train().to(device)

    def pass_of_layer(quantizer: torch.nn.Module) -> None:
        quantized, _, loss = quantizer(arguments[0].unsqueeze(0))
        torch.autograd.grad((quantized * cotangent).sum() + loss.sum(), arguments[0])

    result: dict[str, Callable[[], None] | str] = {
        "relaxed": lambda: pass_of(ours, arguments, cotangent),
        "StochasticQuantize": lambda: pass_of_layer(layer),
        "textbook": lambda: pass_of(drawing_textbook, arguments, cotangent),
    }
    compiled = torch.compile(drawing_textbook)
    try:
        pass_of(compiled, arguments, cotangent)
        result["compiled textbook"] = lambda: pass_of(compiled, arguments, cotangent)
    except Exception as error:
        result["compiled textbook"] = f"not compiled: {str(error).strip().splitlines()[0][:80]}"
    try:
        library = importlib.import_module("vector_quantize_pytorch")
    except ImportError:
        result["vector-quantize-pytorch"] = "not installed: pip install vector-quantize-pytorch"
        return result
    peer = library.VectorQuantize(dim=size[2], codebook_size=size[1], decay=0.99).train().to(device)
    result["vector-quantize-pytorch"] = lambda: pass_of_layer(peer)
    return result


def print_memory(size: list[int], device: torch.device) -> None:
    """What `ours` holds at once, in MiB and as a share of one matrix vectors × codes."""
    arguments = inputs(*size, device)
    cotangent = torch.randn_like(arguments[0])
    with PeakMemory(torch.nn.Module(), [*arguments, cotangent]) as memory:
        pass_of(ours, arguments, cotangent)
    share = memory.peak / (4 * size[0] * size[1])
    print(
        f"  ours holds {memory.peak / 2**20:,.0f} MiB, {share:.1%} of a matrix of float32, vectors × codes", flush=True
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["2048x512x64", "2048x4096x64", "2048x8192x64"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    times_are = f"smallest of {options.repeats}, {options.clock} clock"
    print(f"{device.type}, {options.threads} threads, {'memory' if options.memory else times_are}")
    for text in options.sizes:
        size = [int(number) for number in text.split("x")]
        if options.memory:
            print(text)
            print_memory(size, device)
            continue
        print(f"{text}: from float64 by {difference(*size):.1e} at most")
        runs = contestants(size, device)
        times: dict[str, list[float]] = {name: [] for name, run in runs.items() if callable(run)}
        for _ in range(options.repeats + 2):
            for name, record in times.items():
                started = clock()
                runs[name]()  # type: ignore[operator]
                if device.type != "cpu":
                    torch.accelerator.synchronize()
                record.append(clock() - started)
        smallest = {name: min(record[2:]) for name, record in times.items()}
        for name, run in runs.items():
            figures = run
            if not isinstance(run, str):
                figures = (
                    f"{1e3 * smallest[name]:8.1f} ms, relaxed takes {smallest['relaxed'] / smallest[name]:.2f} of it"
                )
            print(f"  {name:24} {figures}", flush=True)


if __name__ == "__main__":
    main()

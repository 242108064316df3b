from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from hq_tokenizers.codes import CodeLayout
from hq_tokenizers.priors import RQPriorModel, fast_layers, modeling_rq_prior
from hq_tokenizers.priors.fast_layers import with_fast_layers

needs_onednn = pytest.mark.skipif(
    not fast_layers._has_packed_product(), reason="this PyTorch has no product with packed weights"
)


class Doubled(nn.Linear):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(inputs)


def network() -> nn.Sequential:
    norm = nn.RMSNorm(16, eps=0.1)
    nn.init.uniform_(norm.weight)
    blocks = [nn.Linear(24, 40), nn.GELU(), nn.Sequential(nn.Linear(40, 16, bias=False), norm, nn.Dropout(0.5))]
    return nn.Sequential(*blocks, Doubled(16, 5), nn.Linear(5, 7)).eval()


@pytest.fixture(params=[1, 2, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("num_rows", [1, 16])
@pytest.mark.parametrize("shape", [(16,), (8, 3), (16, 1), (1,), (1, 1), ()])
@torch.no_grad()
def test_results_are_those_of_float64(num_rows: int, shape: tuple[int, ...], threads: None) -> None:
    plain, inputs = network(), torch.randn(*shape, 24)
    fast = with_fast_layers(plain, num_rows)
    assert fast is not plain
    torch.testing.assert_close(fast(inputs).double(), plain.double()(inputs.double()), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_norm_of_zeros_and_of_tiny_inputs() -> None:
    plain = nn.Sequential(nn.RMSNorm(8))
    fast = with_fast_layers(plain, 1)
    assert fast is not plain
    for scale in (0, 1e-30, 1e-4, 1e4):
        inputs = scale * torch.randn(3, 8)
        torch.testing.assert_close(fast(inputs), plain(inputs))


@torch.no_grad()
def test_dropout_in_training_stays_dropout() -> None:
    plain = nn.Sequential(nn.Dropout(0.5), nn.Linear(100, 100)).train()
    fast = with_fast_layers(plain, 1)
    assert fast[0] is plain[0]
    assert fast[1] is not plain[1]


@pytest.fixture
def branch(make_prior: Callable[..., RQPriorModel], mixed_layout: CodeLayout) -> nn.Module:
    """A part of a prior, whose layers are called as functions."""
    return make_prior(mixed_layout).spatial_transformer.layers[0].mlp


def linear_of(branch: nn.Module) -> nn.Module:
    return next(module for module in branch.modules() if type(module) is nn.Linear)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
@torch.no_grad()
def test_hooks_of_layers_that_are_called_as_functions_still_run(branch: nn.Module, register: str) -> None:
    layer, seen = linear_of(branch), []
    inputs = torch.randn(2, 1, layer.in_features)
    called = with_fast_layers(branch, 2)
    assert any(not isinstance(value, nn.Module) and callable(value) for value in vars(called).values())
    getattr(layer, register)(lambda *args: seen.append(1))
    torch.testing.assert_close(with_fast_layers(branch, 2)(inputs), branch(inputs))
    assert seen == [1, 1]


@torch.no_grad()
def test_global_hooks_see_every_call(branch: nn.Module) -> None:
    seen: list[nn.Module] = []
    with nn.modules.module.register_module_forward_hook(lambda module, *args: seen.append(module)):
        with_fast_layers(branch, 2)(torch.randn(2, 1, linear_of(branch).in_features))
    assert linear_of(branch) in seen


class Adapter(nn.Module):
    """Reads its layers instead of only calling them, as adapters do."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer, self.dropout, self.norm = nn.Linear(6, 6), nn.Dropout(0.1), nn.RMSNorm(6)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        scaled = nn.functional.linear(inputs, self.base_layer.weight.square() * self.norm.weight)
        return self.base_layer(inputs) + scaled * (1 + self.dropout.p)


@pytest.mark.parametrize("num_rows", [1, 4])
@torch.no_grad()
def test_parents_may_read_their_layers(num_rows: int) -> None:
    plain, inputs = Adapter().eval(), torch.randn(num_rows, 6)
    torch.testing.assert_close(with_fast_layers(plain, num_rows)(inputs), plain(inputs))


class Negated(torch.Tensor):
    """A weight that multiplies in its own way, as quantised ones do."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(function, types, args, kwargs or {})
        return -result if function is nn.functional.linear else result


@pytest.mark.parametrize("num_rows", [1, 4])
@torch.no_grad()
def test_weights_of_tensor_subclasses_are_left_alone(num_rows: int) -> None:
    plain, inputs = nn.Sequential(nn.Linear(6, 6, bias=False), nn.RMSNorm(6)), torch.randn(num_rows, 6)
    plain[0].weight = nn.Parameter(plain[0].weight.detach().as_subclass(Negated))
    fast = with_fast_layers(plain, num_rows)
    assert fast[0] is plain[0]
    torch.testing.assert_close(fast(inputs).as_subclass(torch.Tensor), plain(inputs).as_subclass(torch.Tensor))


@torch.no_grad()
def test_a_weight_changed_before_preparing_counts() -> None:
    plain, inputs = Adapter().eval(), torch.randn(1, 6)
    with_fast_layers(plain, 1)
    plain.base_layer.weight.mul_(2)
    torch.testing.assert_close(with_fast_layers(plain, 1)(inputs), plain(inputs))


@needs_onednn
@torch.no_grad()
def test_the_module_stays_as_it_is_and_shares_its_tensors_and_hooks() -> None:
    plain, seen = network(), []
    forwards = [module.forward for module in plain.modules()]
    plain[0].register_forward_hook(lambda *args: seen.append(1))
    fast = with_fast_layers(plain, 16)
    assert [module.forward for module in plain.modules()] == forwards
    assert "forward" in vars(fast[0])
    # Classes of one's own are not looked through.
    assert "forward" not in vars(fast[3])
    assert all(a is b for a, b in zip(plain.parameters(), fast.parameters(), strict=True))
    fast(torch.randn(16, 24))
    assert seen == [1]


def test_where_nothing_is_gained_the_module_itself_is_returned() -> None:
    plain = network()
    with torch.autocast("cpu", torch.bfloat16):
        assert with_fast_layers(plain, 16) is plain
    elsewhere = network().to("meta")
    assert with_fast_layers(elsewhere, 16) is elsewhere


@torch.no_grad()
def test_other_number_types_are_left_as_they_are() -> None:
    half, inputs = network().bfloat16(), torch.randn(16, 24).bfloat16()
    assert torch.equal(with_fast_layers(half, 16)(inputs), half(inputs))


@pytest.mark.parametrize("number", [1, 12])
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_sampled_codes_are_those_of_the_model_itself(
    make_prior: Callable[..., RQPriorModel],
    layout: CodeLayout,
    guidance_scale: float,
    number: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, labels = make_prior(layout), torch.arange(number) % 3
    fast = model.generate(labels, generator=0, guidance_scale=guidance_scale)
    monkeypatch.setattr(modeling_rq_prior, "with_fast_layers", lambda module, num_rows: module)
    assert model.generate(labels, generator=0, guidance_scale=guidance_scale) == fast


@pytest.mark.parametrize("num_rows", [1, 16])
@torch.no_grad()
def test_weights_that_are_made_anew_in_every_pass_are_left_as_they_are(num_rows: int) -> None:
    plain, inputs = network(), torch.randn(num_rows, 24)
    parametrizations.weight_norm(plain[0])
    prune.l1_unstructured(plain[2][0], "weight", amount=0.5)
    fast = with_fast_layers(plain, num_rows)
    plain[0].parametrizations.weight.original0.mul_(3)
    plain[2][0].weight_orig.add_(1)
    torch.testing.assert_close(fast(inputs), plain(inputs))


@torch.no_grad()
def test_compiled_parts_stay_compiled() -> None:
    plain = network()
    plain[2].compile(backend="eager")
    fast = with_fast_layers(plain, 16)
    assert fast[2] is plain[2]
    assert fast[0] is not plain[0]


@pytest.mark.filterwarnings("ignore:TF32 acceleration")
@torch.no_grad()
def test_who_switches_onednn_off_does_not_get_it() -> None:
    plain = nn.Sequential(nn.Linear(24, 40))
    with torch.backends.mkldnn.flags(enabled=False):
        assert with_fast_layers(plain, 16) is plain

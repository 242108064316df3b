from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from hq_tokenizers.codes import CodeLayout
from hq_tokenizers.priors import RQPriorModel, autoregressive_sampler, fast_layers
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


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.proj, self.dropout = nn.RMSNorm(6), nn.Linear(6, 6), nn.Dropout(0.1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs + self.dropout(self.proj(self.norm(inputs)))


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
@pytest.mark.parametrize("hooked", ["norm", "proj", "dropout"])
@torch.no_grad()
def test_hooks_of_layers_that_are_called_as_functions_still_run(register: str, hooked: str) -> None:
    plain, inputs, seen = Branch().eval(), torch.randn(2, 6), []
    getattr(plain.get_submodule(hooked), register)(lambda *args: seen.append(1))
    fast = with_fast_layers(plain, 2)
    torch.testing.assert_close(fast(inputs), plain(inputs))
    assert seen == [1, 1]


@torch.no_grad()
def test_a_weight_changed_before_preparing_counts() -> None:
    plain, inputs = Branch().eval(), torch.randn(1, 6)
    with_fast_layers(plain, 1)
    plain.proj.weight.mul_(2)
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
    monkeypatch.setattr(autoregressive_sampler, "with_fast_layers", lambda module, num_rows: module)
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

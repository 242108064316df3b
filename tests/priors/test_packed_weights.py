from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from hq_tokenizers.codes import CodeLayout
from hq_tokenizers.priors import RQPriorModel, packed_weights
from hq_tokenizers.priors.packed_weights import with_packed_weights

needs_onednn = pytest.mark.skipif(
    not packed_weights._has_packed_product(), reason="this PyTorch has no product with packed weights"
)


class Doubled(nn.Linear):
    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(inputs)


def network() -> nn.Sequential:
    blocks = [nn.Linear(24, 40), nn.GELU(), nn.Sequential(nn.Linear(40, 16, bias=False), nn.RMSNorm(16))]
    return nn.Sequential(*blocks, Doubled(16, 5))


@needs_onednn
@pytest.mark.parametrize("shape", [(16,), (8, 3), (16, 1), (1,)])
@torch.no_grad()
def test_results_are_those_of_float64(shape: tuple[int, ...]) -> None:
    plain, inputs = network(), torch.randn(*shape, 24)
    packed = with_packed_weights(plain, 16)
    assert packed is not plain
    torch.testing.assert_close(packed(inputs).double(), plain.double()(inputs.double()), atol=1e-5, rtol=1e-5)


@needs_onednn
@torch.no_grad()
def test_the_module_stays_as_it_is_and_shares_its_tensors_and_hooks() -> None:
    plain, seen = network(), []
    forwards = [module.forward for module in plain.modules()]
    plain[0].register_forward_hook(lambda *args: seen.append(1))
    packed = with_packed_weights(plain, 16)
    assert [module.forward for module in plain.modules()] == forwards
    assert "forward" in vars(packed[0])
    # Classes of one's own are not looked through.
    assert "forward" not in vars(packed[3])
    assert all(a is b for a, b in zip(plain.parameters(), packed.parameters(), strict=True))
    packed(torch.randn(16, 24))
    assert seen == [1]


def test_where_packing_gains_nothing_the_module_itself_is_returned(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = network()
    with torch.autocast("cpu", torch.bfloat16):
        assert with_packed_weights(plain, 16) is plain
    elsewhere = network().to("meta")
    assert with_packed_weights(elsewhere, 16) is elsewhere
    monkeypatch.setattr(packed_weights, "_has_packed_product", lambda: False)
    assert with_packed_weights(plain, 16) is plain


@needs_onednn
@torch.no_grad()
def test_other_number_types_are_not_packed() -> None:
    half, inputs = network().bfloat16(), torch.randn(16, 24).bfloat16()
    assert torch.equal(with_packed_weights(half, 16)(inputs), half(inputs))


@needs_onednn
@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_sampled_codes_are_those_of_plain_weights(
    make_prior: Callable[..., RQPriorModel],
    layout: CodeLayout,
    guidance_scale: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, labels = make_prior(layout), torch.arange(12) % 3
    packed = model.generate(labels, generator=0, guidance_scale=guidance_scale)
    monkeypatch.setattr(packed_weights, "_has_packed_product", lambda: False)
    assert model.generate(labels, generator=0, guidance_scale=guidance_scale) == packed


@needs_onednn
@torch.no_grad()
def test_weights_that_are_made_anew_in_every_pass_are_not_packed() -> None:
    plain, inputs = network(), torch.randn(16, 24)
    parametrizations.weight_norm(plain[0])
    prune.l1_unstructured(plain[2][0], "weight", amount=0.5)
    packed = with_packed_weights(plain, 16)
    plain[0].parametrizations.weight.original0.mul_(3)
    plain[2][0].weight_orig.add_(1)
    assert torch.equal(packed(inputs), plain(inputs))


@needs_onednn
@torch.no_grad()
def test_compiled_parts_stay_compiled() -> None:
    plain = network()
    plain[2].compile(backend="eager")
    packed = with_packed_weights(plain, 16)
    assert packed[2] is plain[2]
    assert packed[0] is not plain[0]


@needs_onednn
@pytest.mark.filterwarnings("ignore:TF32 acceleration")
def test_who_switches_onednn_off_does_not_get_it() -> None:
    plain = network()
    with torch.backends.mkldnn.flags(enabled=False):
        assert with_packed_weights(plain, 16) is plain

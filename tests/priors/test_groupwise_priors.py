"""What holds for both priors that take group after group, masked and contextual."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from hq_tokenizers.codes import CodeLayout, Codes
from hq_tokenizers.models.checkpointed_layers import enable_gradient_checkpointing
from hq_tokenizers.priors.modeling_code_prior import CodePriorModel

Make = Callable[..., CodePriorModel]
Draw = Callable[..., Codes]

VARIANTS = {
    "plain": {},
    "code vectors": {"input_embeddings": "code_vectors", "code_vector_dim": 6},
    "gpt": {"block_type": "gpt"},
}
GUIDED = {"guidance_scale": 3.0, "guidance_schedule": "linear", "top_p": 0.9}


@pytest.fixture(params=["make_masked_prior", "make_contextual_prior"])
def make_groupwise(request: pytest.FixtureRequest) -> Make:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS.keys())
def test_gradient_reaches_every_parameter(
    make_groupwise: Make, random_codes: Draw, layout: CodeLayout, variant: dict
) -> None:
    model = make_groupwise(layout, dropout=0.1, **variant).train()
    model(random_codes(layout, 200), torch.arange(200) % 4 - 1).loss.backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_forward_compiles_without_graph_breaks(
    make_groupwise: Make, random_codes: Draw, mixed_layout: CodeLayout
) -> None:
    model, codes, labels = make_groupwise(mixed_layout), random_codes(mixed_layout, 2), torch.tensor([0, -1])
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.manual_seed(0)
    expected = model(codes, labels).loss
    torch.manual_seed(0)
    torch.testing.assert_close(compiled(codes, labels).loss, expected)


def test_gradient_checkpointing_changes_nothing(
    make_groupwise: Make, random_codes: Draw, mixed_layout: CodeLayout
) -> None:
    codes, gradients = random_codes(mixed_layout, 2), []
    for checkpointing in (False, True):
        model = make_groupwise(mixed_layout, label_dropout=0.0).train()
        if checkpointing:
            enable_gradient_checkpointing(model)
        torch.manual_seed(0)
        model(codes, torch.tensor([0, 1])).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("make_masked_prior", {}),
        ("make_masked_prior", {"num_steps": 3, "decoding_order": "random"}),
        ("make_masked_prior", {**GUIDED, "num_steps": 2}),
        ("make_contextual_prior", {}),
        ("make_contextual_prior", {"num_draft_steps": 3, "num_revisions": 0}),
        ("make_contextual_prior", {**GUIDED, "num_draft_steps": 2}),
    ],
)
def test_samples_do_not_depend_on_the_batch(
    request: pytest.FixtureRequest, layout: CodeLayout, kind: str, settings: dict
) -> None:
    model, labels = request.getfixturevalue(kind)(layout), torch.arange(16) % 4 - 1
    whole = model.generate(labels, generator=100, **settings)
    assert len(set(map(tuple, whole.flatten().tolist()))) == 16
    for size in (1, 3):
        parts = [
            model.generate(labels[first : first + size], generator=100 + first, **settings)
            for first in range(0, 16, size)
        ]
        assert Codes.cat(parts) == whole


def test_guidance(make_groupwise: Make, layout: CodeLayout) -> None:
    model = make_groupwise(layout)
    plain = model.generate([0, 1, 2], generator=0)
    # Both branches run and nothing is guided but, hardly, the first step.
    first_only = {"guidance_scale": 1.0 + 1e-9, "guidance_schedule": "interval", "guidance_interval": [0.0, 0.0]}
    assert model.generate([0, 1, 2], generator=0, **first_only) == plain
    assert model.generate([0, 1, 2], generator=0, guidance_scale=9.0) != plain
    assert model.generate([0, 1, 2], generator=0, guidance_scale=0.0) == model.generate([-1] * 3, generator=0)

"""The layers: the models' quantisers in other layouts, with masks, in 16 bits, and in training code of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from hq_tokenizers import (
    HQVAEConfig,
    HQVAEModel,
    ResidualStochasticQuantize,
    ResidualVectorQuantize,
    SQVAEConfig,
    SQVAEModel,
    StochasticQuantize,
    VectorQuantize,
    rq_vae,
    rsq_vae,
    sim_vq_vae,
    sq_vae,
    vq_vae,
)
from hq_tokenizers.quantization import stochastic_codebook
from hq_tokenizers.quantization.layer_training import StochasticTraining
from hq_tokenizers.quantization.layers import PAPER
from hq_tokenizers.quantization.usage import code_counts, usage_figures

DIM, K = 8, 16
LAYERS = {
    "sq": lambda **fields: StochasticQuantize(DIM, K, **fields),
    "rsq": lambda **fields: ResidualStochasticQuantize(DIM, K, 3, **fields),
    "vq": lambda **fields: VectorQuantize(DIM, K, **fields),
    "rq": lambda **fields: ResidualVectorQuantize(DIM, K, 3, **fields),
}
SIZES = {"codebook_dim": DIM}
MODELS = {
    "sq": (sq_vae("digits", codebook_size=K, variance_share=0.1, variance_factor=0.3, **SIZES), {}),
    "sq as for images": (
        sq_vae("digits", codebook_size=K, **SIZES),
        {"variance_share": 0.01, "variance_factor": 0.03, "kl_weight": 0.005},
    ),
    "rsq": (rsq_vae("digits", num_levels=3, codebook_size=K, **SIZES), {}),
    "vq": (vq_vae("digits", codebook_size=K, **SIZES), {"restart_threshold": 0.0}),
    "rq": (rq_vae("digits", num_levels=3, codebook_size=K, **SIZES), {}),
    "sq as in the paper": (sq_vae("digits", "paper", codebook_size=K, variance_floor=0.0, **SIZES), PAPER),
    "rsq as in the paper": (rsq_vae("digits", num_levels=3, codebook_size=K, recipe="paper", **SIZES), PAPER),
    "vq by gradient": (
        vq_vae("digits", codebook_size=K, codebook_update="gradient", **SIZES),
        {"codebook_update": "gradient"},
    ),
    "vq, linear": (sim_vq_vae("digits", codebook_size=K, **SIZES), {"codebook_update": "linear"}),
}


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def settings(module: nn.Module) -> list[dict[str, object]]:
    """Every plain public attribute of a module and its parts: numbers, truth values and texts."""
    return [
        {k: v for k, v in vars(part).items() if isinstance(v, bool | int | float | str | tuple) and k[0] != "_"}
        for part in module.modules()
    ]


def own_layer(name: str, **fields: object) -> nn.Module:
    """The layer of a key of `MODELS`."""
    return LAYERS[name.split()[0].strip(",")](**fields)


def model_parts(config: SQVAEConfig | HQVAEConfig) -> tuple[nn.Module, nn.Module]:
    """A model's normalisation and quantiser."""
    if isinstance(config, SQVAEConfig):
        single = SQVAEModel(config)
        return single.latent_norm, single.quantizer
    hierarchy = HQVAEModel(config)
    return hierarchy.latent_norms[0], hierarchy.quantizer[0]


@pytest.mark.parametrize("name", MODELS)
def test_outputs_gradients_and_averages_are_the_models(name: str) -> None:
    config, fields = MODELS[name]
    norm, quantizer = (part.train() for part in model_parts(config))
    layer = own_layer(name, channel_last=False, **fields)
    assert settings(layer.quantizer) == settings(quantizer)
    assert bool(len(norm)) == (layer.norm is not None)  # type: ignore[arg-type]
    layer.quantizer.load_state_dict(quantizer.state_dict())
    x, weights = vectors(4, DIM, 5, 6), vectors(4, 5, 6, DIM, seed=1)

    ours = x.clone().requires_grad_()
    torch.manual_seed(3)
    quantized, codes, _, terms = layer(ours, return_terms=True)
    theirs = x.clone().requires_grad_()
    torch.manual_seed(3)
    output = quantizer(norm(theirs).permute(0, 2, 3, 1), torch.ones(()))

    torch.testing.assert_close(quantized.movedim(1, -1), output.quantized, rtol=1e-4, atol=1e-5)
    assert codes.equal(output.indices[..., 0] if name[:2] in ("sq", "vq") else output.indices)
    scale = 30 if isinstance(layer, StochasticQuantize | ResidualStochasticQuantize) else 1
    for key, term in output.terms.items():
        torch.testing.assert_close(scale * terms[key], term, rtol=1e-4, atol=1e-5)
    ((quantized.movedim(1, -1) * weights).sum() + scale * sum(terms.values())).backward()
    ((output.quantized * weights).sum() + sum(output.terms.values())).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-4)
    for mine, other in zip(layer.quantizer.parameters(), quantizer.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=1e-3, atol=1e-4)
    for mine, other in zip(layer.quantizer.buffers(), quantizer.buffers(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_initial_state_is_the_models(name: str) -> None:
    config, fields = MODELS[name]
    usual = {} if config.is_deterministic else {"initial_log_variance": config.initial_log_variance}
    torch.manual_seed(0)
    own, models = own_layer(name, **fields, **usual).quantizer, model_parts(config)[1]
    for (key, mine), other in zip(own.state_dict().items(), models.state_dict().values(), strict=True):
        if key.endswith(("weight", "total", "bias")):
            assert mine.shape == other.shape
            assert mine.std() == pytest.approx(float(other.std()), rel=0.3)
        else:
            assert mine.equal(other)
    for book in own.level_codebooks():
        if book.averages is not None:
            torch.testing.assert_close(book.averages.total, book.averages.count[:, None] * book.weight)


def test_loss_is_the_formula() -> None:
    layer = ResidualStochasticQuantize(DIM, K, 2, normalize=False, kl_weight=0.3)
    x = 2 * vectors(3, 10, DIM)
    torch.manual_seed(1)
    quantized, _, loss, terms = layer(x, return_terms=True)
    share = (quantized - x).square().sum() / x.square().sum()
    expected = 2 * 0.3 / DIM * min(1.0, float(share)) * (terms["continuous"] + terms["discrete"])
    torch.testing.assert_close(loss, expected)
    # Nats per vector, whatever the number of vectors: twice the batch has the same terms.
    layer.eval()
    once, twice = (layer(y, return_terms=True)[3] for y in (x, torch.cat([x, x], dim=1)))
    for key in once:
        torch.testing.assert_close(once[key], twice[key])


def test_loss_has_the_gradient_of_the_bound() -> None:
    """Where the data are the latents, have variance 1, and are decoded as they are."""
    layer = StochasticQuantize(DIM, K, normalize=False, kl_weight=0.3, initial_log_variance=-1.0).eval()
    x = vectors(4, 9, DIM)
    x = x / x.square().mean().sqrt()
    with torch.no_grad():
        layer.quantizer.codebook.weight.copy_(x.reshape(-1, DIM)[:K] + 0.1)

    def gradient(bound: bool) -> torch.Tensor:
        latents = x.clone().requires_grad_()
        _, codes, loss, terms = layer(latents, return_terms=True)
        decoded = layer.from_codes(codes) + (latents - latents.detach())
        error = F.mse_loss(decoded, 2 * x - latents)  # any function of the latents with this value will do
        if bound:
            per_vector = 0.5 * DIM * error.log() + 0.3 * (terms["continuous"] + terms["discrete"])
            loss = per_vector * 2 * error.detach() / DIM
        else:
            loss = error + loss
        return torch.autograd.grad(loss, latents)[0]

    torch.testing.assert_close(gradient(bound=False), gradient(bound=True))


@pytest.mark.parametrize("shape", [(), (7,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("name", LAYERS)
def test_layouts(name: str, shape: tuple[int, ...]) -> None:
    last = LAYERS[name]().eval()
    first = LAYERS[name](channel_last=False).eval()
    first.load_state_dict(last.state_dict())
    x = vectors(5, *shape, DIM)
    quantized, codes, loss = last(x)
    assert quantized.shape == x.shape
    assert codes.shape == (5, *shape, *([3] if name in ("rsq", "rq") else []))
    assert codes.dtype == torch.long
    assert loss.shape == ()
    turned, same_codes, same_loss = first(x.movedim(-1, 1))
    assert turned.movedim(1, -1).equal(quantized)
    assert same_codes.equal(codes)
    torch.testing.assert_close(same_loss, loss)
    # The grid's form means nothing: the vectors alone have the same codes.
    assert last(x.reshape(-1, DIM))[1].equal(codes.reshape(-1, *codes.shape[1 + len(shape) :]))


@pytest.mark.parametrize("name", MODELS)
def test_padding_counts_nowhere(name: str) -> None:
    fields = MODELS[name][1]
    torch.manual_seed(0)
    masked, plain = own_layer(name, channel_last=False, **fields), own_layer(name, **fields)
    plain.load_state_dict(masked.state_dict())
    mask = torch.arange(9) < torch.tensor([[9], [4], [1]])
    x = vectors(3, 9, DIM)
    padded = x.masked_fill(~mask[..., None], float("nan")).movedim(-1, 1).requires_grad_()
    torch.manual_seed(1)
    quantized, codes, loss = masked(padded, mask)
    alone = x[mask][None].requires_grad_()
    torch.manual_seed(1)
    expected, expected_codes, expected_loss = plain(alone)
    back = quantized.movedim(1, -1)
    assert back[mask].equal(expected[0])
    assert not back[~mask].any()
    assert codes[mask].equal(expected_codes[0])
    assert (codes[~mask] == -1).all()
    assert loss.equal(expected_loss)
    assert all(mine.equal(plain.state_dict()[key]) for key, mine in masked.state_dict().items())
    (quantized.square().sum() + loss).backward()
    (expected.square().sum() + expected_loss).backward()
    gradient = padded.grad.movedim(1, -1)
    torch.testing.assert_close(gradient[mask], alone.grad[0])
    assert not gradient[~mask].any()
    assert masked.from_codes(codes).movedim(1, -1)[~mask].eq(0).all()


@pytest.mark.parametrize("name", LAYERS)
def test_codes_and_back(name: str) -> None:
    layer = LAYERS[name](channel_last=False)
    x = vectors(4, DIM, 5, 6)
    for _ in range(3):
        layer(x)
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    codes = layer.get_codes(x)
    assert layer.training
    assert all(value.equal(state[key]) for key, value in layer.state_dict().items())
    layer.eval()
    quantized, same, _ = layer(x)
    assert codes.equal(same)
    assert layer.from_codes(codes).equal(quantized)
    latents = x if layer.norm is None else F.batch_norm(x, layer.norm.running_mean, layer.norm.running_var)
    books = [book.codes for book in layer.quantizer.level_codebooks()]
    nearest = torch.cdist(latents.movedim(1, -1).flatten(0, 2).double(), books[0].double()).argmin(-1)
    first = codes if codes.ndim == 3 else codes[..., 0]
    assert first.flatten().equal(nearest)
    if codes.ndim == 4:
        torch.testing.assert_close(layer.from_codes(codes[..., :1]).movedim(1, -1), books[0][first])


@pytest.mark.parametrize("name", ["sq", "rsq"])
def test_codes_alone_need_no_entropies(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = LAYERS[name](), vectors(4, 30, DIM)
    expected = layer.eval()(x)[1]
    monkeypatch.setattr(stochastic_codebook, "entropy_of", None)
    with pytest.raises(TypeError, match="not callable"):
        layer(x)
    assert layer.get_codes(x).equal(expected)


@pytest.mark.parametrize("name", LAYERS)
def test_16_bits_round_nothing_inside(name: str) -> None:
    layer = LAYERS[name]()
    layer(vectors(4, 50, DIM))
    model = nn.Sequential(nn.Linear(DIM, DIM), layer).eval()
    x = vectors(2, 50, DIM, seed=5).bfloat16()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    expected, codes, loss = layer(x.float())
    model.bfloat16()
    assert model[0].weight.dtype == torch.bfloat16
    assert all(value.equal(before[key]) for key, value in layer.state_dict().items())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quantized, same, same_loss = layer(x)
    assert quantized.equal(expected.bfloat16())
    assert same.equal(codes)
    assert same_loss.equal(loss)


def test_temperature_counts_training_steps() -> None:
    layer = StochasticQuantize(DIM, K, **PAPER, gumbel_decay=0.5)
    for _ in range(3):
        layer(vectors(2, 5, DIM))
    layer.eval()(vectors(2, 5, DIM))
    layer.get_codes(vectors(2, 5, DIM))
    assert float(layer.temperature()) == pytest.approx(torch.tensor(-1.5).exp().item())


def test_mistakes_are_named() -> None:
    layer = VectorQuantize(DIM, K)
    with pytest.raises(ValueError, match="channel_last=False is for the other layout"):
        layer(vectors(2, DIM, 5))
    with pytest.raises(TypeError, match="floats"):
        layer(torch.zeros(2, DIM, dtype=torch.long))
    with pytest.raises(TypeError, match="bools"):
        layer(vectors(2, 5, DIM), torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"\(2, 5\), got \(2, 4\)"):
        layer(vectors(2, 5, DIM), torch.ones(2, 4, dtype=torch.bool))
    for empty in ((vectors(0, 5, DIM),), (vectors(2, 5, DIM), torch.zeros(2, 5, dtype=torch.bool))):
        with pytest.raises(ValueError, match="no vector"):
            layer(*empty)
    with pytest.raises(TypeError, match="integers"):
        layer.from_codes(torch.zeros(2, 5))
    for wrong in ([[0, 1]], np.zeros((2, 5), np.int64)):
        with pytest.raises(TypeError, match=rf"tensor of integers, got {type(wrong).__name__}"):
            layer.from_codes(wrong)
    for unmasked in ([[True] * 5] * 2, np.ones((2, 5), bool)):
        with pytest.raises(TypeError, match=rf"tensor of bools, .*, got {type(unmasked).__name__}"):
            layer.get_codes(vectors(2, 5, DIM), unmasked)
    with pytest.raises(ValueError, match="batch dimension, got the single number 3"):
        layer.from_codes(torch.tensor(3))
    with pytest.raises(TypeError, match="floats, got ndarray"):
        layer(np.zeros((2, DIM), np.float32))
    for number in (0, 4):
        with pytest.raises(ValueError, match="1 to 3"):
            ResidualVectorQuantize(DIM, K, 3).from_codes(torch.zeros(2, 5, number, dtype=torch.long))
    with pytest.raises(ValueError, match="codebook_size"):
        StochasticQuantize(DIM, 0)
    with pytest.raises(ValueError, match="kl_weight"):
        StochasticQuantize(DIM, K, kl_weight=-1)
    with pytest.raises(ValueError, match="restart_threshold"):
        StochasticQuantize(DIM, K, codebook_update="gradient")
    with pytest.raises(ValueError, match="linear"):
        StochasticTraining(codebook_update="linear", restart_threshold=0)
    with pytest.raises(TypeError, match=r"VectorQuantize has no argument 'decay'. Did you mean ema_decay\?"):
        VectorQuantize(DIM, K, decay=0.8)
    with pytest.raises(TypeError, match=r"ResidualStochasticQuantize has no argument 'heads'. .*shared_.* kl_weight"):
        ResidualStochasticQuantize(DIM, K, 2, heads=8)
    with pytest.raises(TypeError, match=r"Did you mean channel_last\?"):
        StochasticQuantize(DIM, K, channels_last=False)


@pytest.mark.parametrize("code", [K, -2])
def test_codes_out_of_range_are_named(code: int) -> None:
    codes = torch.zeros(2, 5, 3, dtype=torch.long)
    codes[1, 4, 2] = code
    with pytest.raises(ValueError, match=rf"level 3 must lie in \[0, {K}\).*be -1 for padding: found {code}\."):
        ResidualVectorQuantize(DIM, K, 3).from_codes(codes)
    # Padding beside it is not what is wrong.
    codes[0, 0, 2] = -1
    with pytest.raises(ValueError, match=rf"found {code}\."):
        ResidualVectorQuantize(DIM, K, 3).from_codes(codes)


def test_from_codes_is_compiled_whole() -> None:
    layer = ResidualVectorQuantize(DIM, K, 3)
    codes = torch.randint(-1, K, (2, 5, 3))
    compiled = torch.compile(layer.from_codes, fullgraph=True, backend="eager")
    assert compiled(codes).equal(layer.from_codes(codes))


def test_one_vector_cannot_be_normalised_in_training() -> None:
    layer = StochasticQuantize(DIM, K)
    with pytest.raises(ValueError, match="normalize=False"):
        layer(vectors(1, DIM))
    assert not layer.norm.num_batches_tracked
    assert layer.eval()(vectors(1, DIM))[0].shape == (1, DIM)
    assert StochasticQuantize(DIM, K, normalize=False)(vectors(1, DIM))[0].isfinite().all()


@pytest.mark.parametrize("name", LAYERS)
def test_toy_training_uses_its_codes(name: str) -> None:
    """An autoencoder of 8×8 digits with a plain loop around the layer."""
    torch.manual_seed(0)
    digits = torch.tensor(load_digits().images[:512], dtype=torch.float32)[:, None]
    digits = (digits - digits.mean()) / digits.std()
    layer = LAYERS[name](channel_last=False, normalize=True)
    encoder = nn.Sequential(nn.Conv2d(1, 32, 4, 2, 1), nn.ReLU(), nn.Conv2d(32, DIM, 4, 2, 1))
    decoder = nn.Sequential(nn.ConvTranspose2d(DIM, 32, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(32, 1, 4, 2, 1))
    model = nn.ModuleList([encoder, layer, decoder])
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(160):
        batch = digits[step % 8 :: 8]
        quantized, _, loss = layer(encoder(batch))
        optimizer.zero_grad()
        (F.mse_loss(decoder(quantized), batch) + loss).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        quantized, codes, _ = layer(encoder(digits))
        error = F.mse_loss(decoder(quantized), digits)
    levels = codes[..., None] if codes.ndim == 3 else codes
    usage = usage_figures([code_counts(level, K) for level in levels.unbind(-1)])["usage"]
    print(f"{name}: error {error:.3f}, usage {[round(float(value), 2) for value in usage]}")
    assert error < (0.17 if levels.shape[-1] > 1 else 0.25)
    assert usage.min() > (0.25 if name in ("vq", "rq") else 0.8)


@pytest.mark.parametrize("name", ["vq", "rq"])
def test_deterministic_codes_reach_latents_of_any_scale(name: str) -> None:
    """Where nothing is set and the encoder's outputs are a tenth of the initial code vectors."""
    torch.manual_seed(0)
    layer, centres = LAYERS[name](), 0.1 * vectors(K, DIM)
    for step in range(200):
        layer(centres.repeat(8, 1) + 0.01 * vectors(8 * K, DIM, seed=step))
    _, codes, _ = layer.eval()(centres)
    assert len(codes.unique()) > 0.7 * K


def test_page_runs() -> None:
    page = Path(__file__).resolve().parent.parent.parent / "docs" / "layers.md"
    scope: dict = {}
    for block in page.read_text(encoding="utf-8").split("```python\n")[1:]:
        exec(compile(block.partition("```")[0], page.name, "exec"), scope)
    assert scope["restored"].shape == scope["x"].shape
    assert scope["codes"].shape == (8, 100, 4)

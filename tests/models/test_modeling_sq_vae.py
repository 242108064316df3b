"""SQ-VAE and the single-layer baselines as models: objective, codes, checkpoints, precision and compilation."""

from __future__ import annotations

import copy
import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from scipy import integrate, stats
from torch import nn
from transformers import AutoModel

from hq_tokenizers.codes import CodeGroup, CodeLayout, Codes
from hq_tokenizers.hashing import weights_sha256
from hq_tokenizers.models.configuration_sq_vae import SQVAEConfig
from hq_tokenizers.models.modeling_sq_vae import SQVAEModel
from hq_tokenizers.models.presets import sq_vae
from hq_tokenizers.randomness import sample_generators

TINY: dict[str, Any] = {"image_size": 16, "hidden_size": 8, "codebook_dim": 6, "codebook_size": 16}
LABELS: dict[str, Any] = {"num_classes": 5, "hidden_size": 6}
FOLLOWING: dict[str, Any] = {
    "bottleneck_gradient": "straight_through",
    "codebook_update": "ema",
    "restart_threshold": 0.5,
    "variance_update": "residual",
    "normalize_latents": True,
    "ema_warmup": True,
}
SYSTEMS: dict[str, dict[str, Any]] = {
    **{f"gaussian {kind}": {"variance_type": kind} for kind in ("I", "II", "III", "IV")},
    "plain IV": {"variance_type": "IV", "variance_parametrization": "plain", "variance_floor": 0.0},
    "learned decoder variance": {"decoder_variance": "learned"},
    "dequantization noise": {"dequantization_noise": True, "variance_type": "III"},
    "vmf": {"quantizer": "vmf"},
    "gaussian, following": FOLLOWING,
    "vmf, following": {"quantizer": "vmf", **FOLLOWING},
    "vae": {"quantizer": "none"},
    "vq gradient": {"quantizer": "vq"},
    "vq ema": {"quantizer": "vq", "codebook_update": "ema", "restart_threshold": 1.0},
    "robust vq": {"quantizer": "vq", "bottleneck_batch_norm": True, "warmup_epochs": 1, "reestimation_epochs": 1},
    "estimated gaussian": {**FOLLOWING, "warmup_epochs": 1, "reestimation_epochs": 1},
    "sim vq": {"quantizer": "vq", "codebook_update": "linear"},
    "fsq": {"quantizer": "fsq", "fsq_levels": [8, 2], "codebook_dim": 2},
    "categorical labels": {**LABELS, "likelihood": "categorical"},
    "vmf labels": {**LABELS, "likelihood": "vmf", "quantizer": "vmf"},
}
WITH_CODES = [name for name in SYSTEMS if name != "vae"]
STOCHASTIC = ["gaussian I", "gaussian III", "gaussian IV", "gaussian, following", "vmf", "vmf, following"]


def lively(config: SQVAEConfig) -> SQVAEModel:
    """A model in evaluation mode whose codes differ between positions, unlike those of fresh weights."""
    model = SQVAEModel(config)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_normal_(module.weight, gain=1.5)
    with torch.no_grad():
        for _ in range(3):
            model.train()(data(config, 8))
    return model.eval()


def build(system: str, **overrides: Any) -> SQVAEModel:
    return lively(SQVAEConfig(**{**TINY, **SYSTEMS[system], **overrides}))


def data(config: SQVAEConfig, batch_size: int, seed: int = 0, size: tuple[int, int] = (16, 16)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if config.for_label_maps:
        return torch.randint(config.num_classes, (batch_size, *size), generator=generator)
    return torch.rand(batch_size, config.num_channels, *size, generator=generator)


class TestCompareCodes:
    @pytest.mark.parametrize("system", SYSTEMS)
    def test_nothing_but_reconstructions_is_added_to_forward(self, system: str) -> None:
        model = build(system)
        pixels = data(model.config, 4)
        expected = model(pixels)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        noise = torch.get_rng_state()
        output, others = model.compare_codes(pixels, sample_generators(5, 3))
        assert torch.equal(torch.get_rng_state(), noise)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
        assert torch.equal(output.loss, expected.loss)
        assert torch.equal(output.reconstruction, expected.reconstruction)
        kinds = {"relaxed", "sampled"} if model.config.draws_relaxed_samples else {"sampled"}
        assert set(others) == (kinds if model.config.is_stochastic else set())
        if others:
            drawn = model.decode(model.encode(pixels[:3], sample=True, generator=5))
            torch.testing.assert_close(others["sampled"], drawn)

    @pytest.mark.parametrize("system", ["gaussian I", "gaussian IV", "vmf"])
    def test_relaxed_samples_at_an_infinite_temperature_are_the_mean_code(self, system: str) -> None:
        model = build(system, gumbel_temperature=1e9)
        _, others = model.compare_codes(data(model.config, 4), sample_generators(5, 4))
        mean = model.codebooks()[0].mean(0).expand(4, 4, 4, -1).permute(0, 3, 1, 2)
        with torch.no_grad():
            expected = model.likelihood.outputs(model.decoder(mean.contiguous()))
        torch.testing.assert_close(others["relaxed"], expected, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize("system", ["gaussian I", "gaussian IV", "vmf", "vq ema", "gaussian, following"])
    def test_energies_are_those_of_what_the_codes_leave_over(self, system: str) -> None:
        model = build(system)
        latents = model._encoded(data(model.config, 4))[0].detach().double()
        if system == "vmf":
            latents = latents / latents.norm(dim=-1, keepdim=True)
        output = model(data(model.config, 4))
        (vectors,) = model.embed(output.codes)
        found = [float(output.diagnostics[f"{name}_energy"]) for name in ("latent", "residual")]
        expected = [float(part.square().mean()) for part in (latents, latents - vectors.detach().double())]
        assert found == pytest.approx(expected, rel=1e-4)


class TestForward:
    @pytest.mark.parametrize("system", SYSTEMS)
    def test_every_parameter_receives_a_gradient(self, system: str) -> None:
        model = build(system).train()
        model.start_epoch(5)
        model(data(model.config, 4)).loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            # The gradient of a bias before a batch normalisation is zero but for rounding.
            assert name.endswith("bias") or parameter.grad.any(), name

    @pytest.mark.parametrize("system", SYSTEMS)
    @pytest.mark.parametrize("training", [False, True])
    def test_terms_sum_to_the_loss(self, system: str, training: bool) -> None:
        model = build(system).train(training)
        output = model(data(model.config, 3))
        torch.testing.assert_close(output.loss, sum(output.terms.values()))
        assert set(output.terms) == {
            "none": {"reconstruction", "kl"},
            "vq": {
                "reconstruction",
                "commitment",
                *(["codebook"] if model.config.codebook_update != "ema" else []),
            },
            "fsq": {"reconstruction"},
        }.get(model.config.quantizer, {"reconstruction", "continuous", "discrete"})
        assert model(data(model.config, 3), return_loss=False).loss is None

    @pytest.mark.parametrize("system", [*STOCHASTIC, "vae"])
    def test_kl_weight(self, system: str) -> None:
        model = build(system, kl_weight=0.25)
        weighted = model(data(model.config, 3))
        model.config.kl_weight = 1.0
        bound = model(data(model.config, 3))
        torch.testing.assert_close(weighted.terms, bound.terms)
        charged = sum(term for name, term in bound.terms.items() if name != "reconstruction")
        torch.testing.assert_close(weighted.loss, bound.loss - 0.75 * charged)

    @pytest.mark.parametrize("decoder_variance", ["batch", "learned"])
    def test_reconstruction_term_is_that_of_the_reconstruction(self, decoder_variance: str) -> None:
        model = build("gaussian I", decoder_variance=decoder_variance)
        pixels = data(model.config, 3)
        output = model(pixels)
        error = float((output.reconstruction.double() - pixels.double()).square().sum().detach()) / 3
        values = 3 * 16 * 16
        variance = 0.1 if decoder_variance == "learned" else error / values
        expected = error / (2 * variance) + values / 2 * math.log(2 * math.pi * variance)
        assert float(output.terms["reconstruction"].detach()) == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("system", WITH_CODES)
    def test_diagnostics_describe_the_codes(self, system: str) -> None:
        model = build(system)
        output = model(data(model.config, 6))
        counts = np.bincount(output.codes.flatten().flatten().numpy(), minlength=16)
        assert float(output.diagnostics["perplexity"]) == pytest.approx(math.exp(stats.entropy(counts)), rel=1e-4)
        assert float(output.diagnostics["active_codes"]) == (counts > 0).sum()
        assert all(value.shape == (1,) and not value.requires_grad for value in output.diagnostics.values())
        if model.config.is_stochastic:
            (log_p,) = model.posterior(data(model.config, 6))
            entropy = -(log_p.double().exp() * log_p.double()).sum(-1).mean()
            assert float(output.diagnostics["entropy"]) == pytest.approx(float(entropy), rel=1e-4, abs=1e-5)
            uniform = output.codes.layout.num_codes * math.log(16)
            discrete = uniform - output.codes.layout.num_codes * float(entropy)
            assert float(output.terms["discrete"].detach()) == pytest.approx(discrete, rel=1e-4, abs=1e-2)

    def test_variance_diagnostic(self) -> None:
        model = build("gaussian I", variance_floor=1.0)
        assert float(model(data(model.config, 2)).diagnostics["variance"]) == pytest.approx(21.0, rel=1e-5)

    @pytest.mark.parametrize("noise_source", ["gaussian I", "vae"])
    def test_training_is_random_and_evaluation_is_not(self, noise_source: str) -> None:
        model = build(noise_source)
        pixels = data(model.config, 2)
        assert torch.equal(model(pixels).reconstruction, model(pixels).reconstruction)
        model.train()
        assert not torch.equal(model(pixels).reconstruction, model(pixels).reconstruction)


class TestElboBound:
    """One position, d = 1, K = 3 and a 2×2 image: small enough to enumerate the codes and integrate the latent."""

    @pytest.fixture
    def model(self) -> SQVAEModel:
        config = SQVAEConfig(
            image_size=2,
            num_channels=1,
            hidden_size=2,
            num_downsampling=1,
            num_residual_blocks=1,
            num_decoder_residual_blocks=1,
            codebook_dim=1,
            codebook_size=3,
            dequantization_noise=True,
            decoder_variance="learned",
            gumbel_temperature=1e-4,
            variance_floor=0.0,
            initial_log_variance=math.log(0.8),
        )
        model = SQVAEModel(config)
        torch.manual_seed(1)
        for parameter in model.decoder.parameters():
            nn.init.normal_(parameter, std=0.7)
        with torch.no_grad():
            model.quantizer.codebook.weight.copy_(torch.tensor([[-1.0], [0.2], [1.1]]))
            model.encoder.mean_head[1].bias.fill_(0.4)
        model.train()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()
        return model

    def test_monte_carlo_elbo_is_the_exact_one_and_below_the_likelihood(self, model: SQVAEModel) -> None:
        pixels = torch.tensor([[[[0.1, 0.8], [0.6, 0.3]]]])
        codebook = model.quantizer.codebook.weight.detach().double().flatten().numpy()
        layout = model.code_layout()
        codes = Codes((torch.arange(3).reshape(3, 1, 1, 1),), layout)
        means = model.decode(codes).double().flatten(1).numpy()
        decoder_scale = math.exp(model.likelihood.log_variance.item() / 2)
        log_likelihoods = stats.norm.logpdf(pixels.double().flatten().numpy(), means, decoder_scale).sum(axis=1)
        assert np.ptp(log_likelihoods) > 0.3, "the codes must matter"
        log_evidence = float(np.logaddexp.reduce(log_likelihoods - math.log(3)))

        latents, *_ = model._encoded(pixels)
        latent, scale = float(latents.detach()), math.sqrt(0.8)

        def integrand(z: float) -> float:
            logits = -((z - codebook) ** 2) / (2 * scale**2)
            log_p = logits - np.logaddexp.reduce(logits)
            joint = log_likelihoods - math.log(3) + stats.norm.logpdf(z, codebook, scale)
            posterior = log_p + stats.norm.logpdf(z, latent, scale)
            return float(stats.norm.pdf(z, latent, scale) * (np.exp(log_p) * (joint - posterior)).sum())

        exact, _ = integrate.quad(integrand, latent - 9, latent + 9)
        assert exact < log_evidence - 1e-3

        with torch.no_grad():
            estimates = torch.stack([-model(pixels.expand(2000, -1, -1, -1)).loss for _ in range(30)]).double()
        standard_error = float(estimates.std()) / math.sqrt(30)
        assert abs(float(estimates.mean()) - exact) < 4 * standard_error + 1e-3
        assert float(estimates.mean()) - 4 * standard_error < log_evidence
        assert standard_error < 0.02 * abs(log_evidence - exact), "too noisy to tell the bound from the likelihood"


class TestCodes:
    @pytest.mark.parametrize("system", WITH_CODES)
    def test_forward_is_decode_of_encode_bit_for_bit(self, system: str) -> None:
        model = build(system)
        pixels = data(model.config, 4)
        output, codes = model(pixels), model.encode(pixels)
        assert output.codes == codes
        assert torch.equal(output.reconstruction, model.decode(codes))
        assert len(codes.flatten().unique()) > 3, "a test with one code shows nothing"

    def test_codes_are_the_most_probable(self) -> None:
        model = build("gaussian IV")
        pixels = data(model.config, 4)
        (log_p,) = model.posterior(pixels)
        assert torch.equal(model.encode(pixels).groups[0][..., 0], log_p.argmax(-1))
        torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(4, 4, 4))

    @pytest.mark.parametrize("system", STOCHASTIC)
    def test_samples_do_not_depend_on_the_batch_size(self, system: str) -> None:
        model = build(system)
        pixels = data(model.config, 5)
        together = model.encode(pixels, sample=True, generator=7)
        apart = [model.encode(pixels[i : i + 1], sample=True, generator=7 + i) for i in range(5)]
        assert Codes.cat(apart) == together
        assert together == model.encode(
            pixels, sample=True, generator=[torch.Generator().manual_seed(7 + i) for i in range(5)]
        )
        assert together != model.encode(pixels, sample=True, generator=8)

    @pytest.mark.parametrize("system", STOCHASTIC)
    def test_samples_follow_the_posterior(self, system: str) -> None:
        model = build(system)
        pixels = data(model.config, 1)
        codes = model.encode(pixels.expand(3000, -1, -1, -1), sample=True, generator=0).groups[0][:, 1, 2, 0]
        p = model.posterior(pixels)[0][0, 1, 2].double().exp()
        # Codes that are expected less than five times are counted together.
        rare = p * 3000 < 5
        observed, expected = torch.bincount(codes, minlength=16).double(), p / p.sum() * 3000
        bins = [torch.cat([t[~rare], t[rare].sum().expand(int(rare.any()))]) for t in (observed, expected)]
        assert stats.chisquare(bins[0].numpy(), bins[1].numpy()).pvalue > 1e-3
        assert (~rare).sum() > 1

    def test_embed_gives_the_code_vectors(self) -> None:
        model = build("gaussian I")
        codes = model.encode(data(model.config, 2))
        (vectors,) = model.embed(codes)
        assert torch.equal(vectors, model.quantizer.codebook.weight[codes.groups[0][..., 0]])

    def test_one_level(self) -> None:
        model = build("gaussian I")
        codes = model.encode(data(model.config, 2))
        assert torch.equal(model.decode(codes, num_levels=1), model.decode(codes))
        with pytest.raises(ValueError, match="between 1 and 1"):
            model.decode(codes, num_levels=2)

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("size", [(28, 28), (32, 32), (64, 64), (128, 128), (256, 256), (32, 48), (20, 12)])
    def test_sizes(self, size: tuple[int, int], channels: int) -> None:
        model = SQVAEModel(SQVAEConfig(**{**TINY, "num_channels": channels, "hidden_size": 4})).eval()
        pixels = data(model.config, 1, size=size)
        codes = model.encode(pixels)
        assert codes.layout == model.code_layout(size) == CodeLayout((CodeGroup(size[0] // 4, size[1] // 4, (16,)),))
        assert model.decode(codes).shape == pixels.shape
        assert torch.equal(model(pixels).reconstruction, model.decode(codes))

    def test_layout_of_the_configured_size(self) -> None:
        assert SQVAEModel(SQVAEConfig(**{**TINY, "image_size": [16, 24]})).code_layout() == CodeLayout(
            (CodeGroup(4, 6, (16,)),)
        )


class TestErrors:
    @pytest.mark.parametrize("method", ["forward", "encode", "posterior"])
    def test_wrong_pixels(self, method: str) -> None:
        call = getattr(build("gaussian I"), method)
        with pytest.raises(ValueError, match=r"shape \(batch, 3, height, width\), got \(2, 1, 16, 16\)"):
            call(torch.rand(2, 1, 16, 16))
        with pytest.raises(ValueError, match=r"shape \(batch, 3, height, width\), got \(3, 16, 16\)"):
            call(torch.rand(3, 16, 16))
        with pytest.raises(TypeError, match=r"floats in \[0, 1\], got torch.uint8: divide integers by 255"):
            call(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
        with pytest.raises(ValueError, match="multiples of 4; instead of 18, use 16 or 20"):
            call(torch.rand(2, 3, 16, 18))

    @pytest.mark.parametrize(
        "wrong", [torch.rand(2, 3, 16, 16), torch.zeros(2, 16, 16), torch.zeros(2, 16, 16, dtype=torch.int32)]
    )
    def test_wrong_label_maps(self, wrong: torch.Tensor) -> None:
        with pytest.raises(ValueError, match=r"label maps, LongTensors of shape \(batch, height, width\)"):
            build("vmf labels")(wrong)

    @pytest.mark.parametrize("value", [-1, 5, 255])
    def test_classes_out_of_range(self, value: int) -> None:
        """Class 5 of 5 would train silently: the networks see an even number of channels, 6."""
        model = build("vmf labels", num_classes=5)
        label_map = torch.zeros(2, 8, 8, dtype=torch.long)
        model(label_map)
        label_map[1, 3, 3] = value
        with pytest.raises(
            ValueError, match=rf"must be 0 to 4 \(num_classes 5\), got {min(value, 0)} to {max(value, 0)}"
        ):
            model(label_map)
        with pytest.raises(ValueError, match="empty batch"):
            model(label_map[:0])

    def test_codes_of_another_layout(self) -> None:
        model = build("gaussian I")
        other = CodeLayout((CodeGroup(4, 4, (17,)),))
        with pytest.raises(ValueError, match=r"layout 4×4×1 of 17, but this tokenizer's, on .* of 4×4, is 4×4×1 of 16"):
            model.decode(Codes((torch.zeros(1, 4, 4, 1, dtype=torch.long),), other))

    def test_number_of_generators(self) -> None:
        model = build("gaussian I")
        with pytest.raises(ValueError, match="Got 1 generators for 2 samples"):
            model.encode(data(model.config, 2), sample=True, generator=[torch.Generator()])

    def test_size_of_a_layout(self) -> None:
        with pytest.raises(ValueError, match="multiples of 4"):
            build("gaussian I").code_layout(30)

    def test_a_vae_has_no_codes(self) -> None:
        model = build("vae")
        with pytest.raises(ValueError, match=r"A VAE .* has continuous latents and no codes"):
            model.encode(data(model.config, 1))
        with pytest.raises(ValueError, match="Only stochastic quantisers have a posterior over codes, not 'none'"):
            model.posterior(data(model.config, 1))
        assert model(data(model.config, 1)).codes is None

    def test_a_deterministic_quantiser_has_no_posterior(self) -> None:
        model = build("vq ema")
        with pytest.raises(ValueError, match="Only stochastic quantisers have a posterior over codes, not 'vq'"):
            model.posterior(data(model.config, 1))


class TestSchedule:
    def test_temperature(self) -> None:
        model = build("gaussian I", gumbel_temperature=2.0, gumbel_decay=0.1, gumbel_min_temperature=0.5)
        assert model.temperature().dtype == torch.float32
        for step in (0, 1, 5, 10, 20, 1000):
            model.temperature.step.zero_()
            model.advance(step)
            assert float(model.temperature()) == pytest.approx(max(2.0 * math.exp(-0.1 * step), 0.5), rel=1e-5)
        model.temperature.step.zero_()
        model.advance()
        model.advance(2)
        assert int(model.temperature.step) == 3

    def test_temperature_reaches_the_samples(self) -> None:
        model = build("gaussian I", gumbel_temperature=1e-4).train()
        seen: list[torch.Tensor] = []
        model.decoder.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        for temperature in (1e-4, 5.0):
            model.temperature.initial = temperature
            model(data(model.config, 2))
        distances = [
            torch.cdist(
                z.detach().movedim(1, -1).flatten(0, 2).double(), model.quantizer.codebook.weight.detach().double()
            )
            for z in seen
        ]
        hard, soft = (float(d.amin(-1).mean()) for d in distances)
        assert hard < 0.01
        assert soft > 0.3

    @pytest.mark.parametrize("system", ["gaussian IV", "vq gradient"])
    def test_codebooks_have_their_own_rate(self, system: str) -> None:
        assert [group["lr"] for group in build(system).parameter_groups(0.1)] == [0.1]
        model = build(system, codebook_learning_rate_factor=10.0)
        groups = model.parameter_groups(0.1)
        optimizer = torch.optim.Adam(groups)
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        assert len(rates) == len(list(model.parameters()))
        for name, parameter in model.named_parameters():
            is_codebook = name in ("quantizer.codebook.weight", "quantizer.codebooks.0.weight")
            assert rates[id(parameter)] == pytest.approx(1.0 if is_codebook else 0.1), name

    def test_frozen_variance_is_not_optimised(self) -> None:
        model = build("gaussian I", train_variance=False)
        frozen = model.quantizer.variance.log_variance
        assert all(p is not frozen for group in model.parameter_groups(0.1) for p in group["params"])

    @pytest.mark.parametrize("system", ["robust vq", "estimated gaussian"])
    def test_robust_training(self, system: str, tmp_path: Path) -> None:
        model = build(system, reservoir_size=500).train()
        pixels = data(model.config, 8)
        assert not model.start_epoch(0)
        model.quantizer.reestimation.reservoir.clear()
        output = model(pixels)
        charged = {name for name in output.terms if name != "reconstruction"}
        assert charged == {"robust vq": {"commitment", "codebook"}}.get(system, {"continuous", "discrete"})
        assert all(float(output.terms[name].detach()) == 0 for name in charged)
        model.save_pretrained(tmp_path)
        again = SQVAEModel.from_pretrained(tmp_path).train()
        states = []
        for either in (model, again):
            (book,) = either.quantizer.level_codebooks()
            before = book.weight.clone()
            assert either.start_epoch(1, seed=3)
            states.append(book.weight.clone())
            assert not torch.equal(before, states[-1])
            assert not either.start_epoch(2)
            after = either(pixels).terms
            assert all(float(after[name].detach()) > 0 for name in charged)
        assert torch.equal(*states)

    def test_a_finished_model_is_saved_without_its_reservoir(self, tmp_path: Path) -> None:
        model = build("estimated gaussian", reservoir_size=500).train()
        pixels = data(model.config, 8)
        files = {}
        for epoch in (0, 1):
            model.start_epoch(epoch)
            model(pixels)
            model.save_pretrained(tmp_path / str(epoch))
            files[epoch] = load_file(tmp_path / str(epoch) / "model.safetensors")
        left_out = {name for name in files[0] if ".reservoir." in name}
        assert len(left_out) == 2
        assert files[1].keys() == files[0].keys() - left_out
        model.eval()
        again = SQVAEModel.from_pretrained(tmp_path / "1")
        assert weights_sha256(again) == weights_sha256(model)
        assert torch.equal(again.encode(pixels).flatten(), model.encode(pixels).flatten())
        another = build("estimated gaussian", reservoir_size=500)
        another.load_state_dict(files[1])
        assert weights_sha256(another) == weights_sha256(model)

    def test_loading_a_part_in_the_warm_up_keeps_what_was_collected(self) -> None:
        model = build("estimated gaussian", reservoir_size=500).train()
        model.start_epoch(0)
        model(data(model.config, 8))
        collected = model.quantizer.reestimation.reservoir.contents().clone()
        decoder = {name: value for name, value in model.state_dict().items() if name.startswith("decoder.")}
        model.load_state_dict(decoder, strict=False)
        assert len(collected) > 0
        assert torch.equal(model.quantizer.reestimation.reservoir.contents(), collected)

    def test_a_skipped_warm_up_leaves_nothing_collected(self, tmp_path: Path) -> None:
        model = build("estimated gaussian", reservoir_size=500).train()
        model(data(model.config, 8))
        model.start_epoch(9)
        model.save_pretrained(tmp_path)
        assert weights_sha256(SQVAEModel.from_pretrained(tmp_path)) == weights_sha256(model)

    def test_a_model_that_was_trained_has_no_second_warm_up(self) -> None:
        """What is left of the schedule, here a second estimate, comes in its epoch."""
        model = build("estimated gaussian", reservoir_size=500, reestimation_epochs=2).train()
        pixels = data(model.config, 8)
        replaced = []
        for epoch in (0, 1, 0, 1, 2, 3):
            replaced.append(model.start_epoch(epoch))
            assert model.warming_up == (len(replaced) == 1)
            model(pixels)
        assert replaced == [False, True, False, False, True, False]

    def test_a_warm_up_that_saw_too_little_says_so(self) -> None:
        model = build("estimated gaussian", reservoir_size=500).train()
        model.start_epoch(0)
        still = nn.Parameter(torch.ones(2))
        optimizer = torch.optim.Adam([still])
        still.grad = torch.zeros(2)
        optimizer.step()
        with pytest.warns(UserWarning, match="too few vectors were seen .* train on more images"):
            assert not model.start_epoch(1, optimizer=optimizer)
        assert not optimizer.state
        for epoch in (-1, 1.5, "1", None, True):
            with pytest.raises(ValueError, match="epoch must be an integer from 0"):
                model.start_epoch(epoch)


class TestCheckpoints:
    @pytest.mark.parametrize("system", SYSTEMS)
    def test_round_trip(self, system: str, tmp_path: Path) -> None:
        model = build(system)
        model.advance(123)
        model.save_pretrained(tmp_path)
        assert not list(tmp_path.glob("*.bin"))
        again = SQVAEModel.from_pretrained(tmp_path)
        assert not again.training
        state = again.state_dict()
        assert state.keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[name]), name
        assert int(again.temperature.step) == 123
        pixels = data(model.config, 2)
        # Equal but for the alignment of the weights in memory, on which kernels depend.
        torch.testing.assert_close(model(pixels).reconstruction, again(pixels).reconstruction)

    @pytest.mark.parametrize(
        "system", ["gaussian I", "gaussian IV", "learned decoder variance", "vmf", "vq ema", "robust vq"]
    )
    def test_bfloat16_keeps_the_quantiser_in_float32(self, system: str, tmp_path: Path) -> None:
        model = build(system)
        model.save_pretrained(tmp_path)
        half = SQVAEModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert half.encoder.stem[0].weight.dtype == half.dtype == torch.bfloat16
        for name, value in half.quantizer.state_dict().items():
            assert torch.equal(value, model.quantizer.state_dict()[name]), name
            assert value.dtype == model.quantizer.state_dict()[name].dtype, name
        pixels = data(model.config, 8)
        same = half.encode(pixels).flatten() == model.encode(pixels).flatten()
        assert same.double().mean() > 0.9
        output = half.train()(pixels)
        assert {term.dtype for term in output.terms.values()} == {torch.float32}
        output.loss.backward()
        assert torch.equal(half.eval()(pixels).reconstruction, half.decode(half.encode(pixels)))

    @pytest.mark.parametrize("system", ["gaussian IV", "learned decoder variance", "vmf", "vq ema", "robust vq"])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_conversion_never_rounds_quantiser_or_likelihood(self, system: str, dtype: torch.dtype) -> None:
        model = build(system)
        exact = {name: value.clone() for name, value in model.state_dict().items() if name[:4] in ("quan", "like")}
        for converted in (copy.deepcopy(model).to(dtype), copy.deepcopy(model).to(dtype).to("cpu").float()):
            state = converted.state_dict()
            assert all(torch.equal(state[name], value) for name, value in exact.items())
        assert copy.deepcopy(model).to(dtype).dtype == dtype
        assert copy.deepcopy(model).double().quantizer.state_dict().keys() == model.quantizer.state_dict().keys()
        built = AutoModel.from_config(model.config, dtype=dtype)
        assert built.dtype == dtype
        kept = {name: value.dtype for name, value in built.state_dict().items() if name in exact}
        assert kept == {name: value.dtype for name, value in exact.items()}

    @pytest.mark.parametrize("system", ["learned decoder variance", "vq ema"])
    def test_a_converted_model_trains(self, system: str) -> None:
        """In bfloat16 steps of 1e-3 would be lost in log σ², and the moving averages would stand still."""
        model = build(system).to(torch.bfloat16).train()
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)
        before = {name: value.clone() for name, value in model.state_dict().items() if name[:4] in ("quan", "like")}
        for _ in range(3):
            model(data(model.config, 4)).loss.backward()
            optimizer.step()
        changed = [name for name, value in before.items() if not torch.equal(model.state_dict()[name], value)]
        assert "likelihood.log_variance" in changed or "quantizer.codebooks.0.averages.total" in changed

    @pytest.mark.parametrize("system", WITH_CODES)
    def test_autocast(self, system: str) -> None:
        model = build(system)
        pixels = data(model.config, 8)
        plain = model(pixels)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(pixels)
            assert torch.equal(mixed.reconstruction, model.decode(model.encode(pixels)))
        assert (mixed.codes.flatten() == plain.codes.flatten()).double().mean() > 0.85
        assert {term.dtype for term in mixed.terms.values()} == {torch.float32}
        assert {value.dtype for value in mixed.diagnostics.values()} == {torch.float32}
        with torch.autocast("cpu", torch.bfloat16):
            model.train()(pixels).loss.backward()


class TestCompile:
    @pytest.mark.slow
    @pytest.mark.parametrize("system", ["gaussian IV", "gaussian, following", "vq ema"])
    def test_no_graph_breaks(self, system: str) -> None:
        model = build(system)
        pixels = data(model.config, 2)
        expected, codes = model(pixels), model.encode(pixels)
        options: dict[str, Any] = {"fullgraph": True, "backend": "eager"}
        output = torch.compile(model.forward, **options)(pixels)
        assert torch.equal(output.reconstruction, expected.reconstruction)
        assert torch.equal(output.loss, expected.loss)
        assert output.codes == codes == torch.compile(model.encode, **options)(pixels)
        assert torch.equal(torch.compile(model.decode, **options)(codes), expected.reconstruction)
        # A second image size makes the sizes symbolic.
        pixels = data(model.config, 2, size=(32, 24))
        larger = model.encode(pixels)
        assert torch.compile(model.encode, **options)(pixels) == larger
        torch.testing.assert_close(torch.compile(model.decode, **options)(larger), model.decode(larger))

        gradients: list[list[torch.Tensor | None]] = []
        for module in (copy.deepcopy(model).train(), copy.deepcopy(model).train()):
            call = torch.compile(module, **options) if gradients else module
            torch.manual_seed(0)
            call(pixels).loss.backward()
            gradients.append([parameter.grad for parameter in module.parameters()])
        for plain, compiled in zip(*gradients, strict=True):
            torch.testing.assert_close(plain, compiled, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_quantisation_anneals_itself_when_its_variance_is_trainable(data_folder: Path) -> None:
    images = mnist(data_folder, 3200)
    entropies: dict[bool, list[float]] = {}
    variances: dict[bool, list[float]] = {}
    for trainable in (True, False):
        torch.manual_seed(0)
        fields = {"hidden_size": 16, "codebook_dim": 8, "codebook_size": 32, "variance_floor": 0.0}
        model = SQVAEModel(sq_vae("mnist", recipe="paper", train_variance=trainable, **fields)).train()
        optimizer = torch.optim.Adam(model.parameter_groups(3e-2))
        entropies[trainable], variances[trainable] = [], []
        for step in range(300):
            output = model(images[32 * step % 3200 :][:32])
            optimizer.zero_grad()
            output.loss.backward()
            optimizer.step()
            model.advance()
            entropies[trainable].append(float(output.diagnostics["entropy"]))
            variances[trainable].append(float(output.diagnostics["variance"]))
    final = {trainable: float(np.mean(values[-20:])) for trainable, values in entropies.items()}
    assert variances[True][-1] < 0.2 * variances[True][0]
    assert final[True] < entropies[True][0] - 1.2
    # With a fixed variance the latents can only grow away from each other, which takes longer and leads less far.
    assert set(variances[False]) == {variances[False][0]}
    assert final[True] < final[False] - 0.2


def mnist(data_folder: Path, number: int) -> torch.Tensor:
    table = parquet.ParquetFile(data_folder / "mnist-train.parquet").iter_batches(number, columns=["image"])
    rows = next(iter(table)).to_pylist()
    images = [np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))) for row in rows]
    return torch.from_numpy(np.stack(images)).unsqueeze(1).float() / 255


def test_encoding_while_training_changes_nothing_and_does_not_depend_on_the_batch() -> None:
    model = SQVAEModel(SQVAEConfig(image_size=16, hidden_size=8, codebook_dim=4, codebook_size=16))
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    codes = model.encode(images)
    assert codes[1:2] == model.encode(images[1:2])
    model.decode(codes)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_what_is_not_codes_is_refused_with_the_way_out() -> None:
    model = SQVAEModel(SQVAEConfig(image_size=16, hidden_size=8, codebook_dim=4, codebook_size=16)).eval()
    with pytest.raises(TypeError, match=r"becomes Codes by model.code_layout\(\).unflatten"):
        model.decode(torch.zeros(1, 16, dtype=torch.long))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"level 1 must lie in \[0, 16\).*found 16"):
        model.decode(model.code_layout().unflatten(torch.full((1, 16), 16)))
    with pytest.raises(ValueError, match="empty batch"):
        model.encode(torch.zeros(0, 3, 16, 16))
    with pytest.raises(ValueError, match="one code per latent vector"):
        SQVAEModel(SQVAEConfig(quantizer="vq")).encode(torch.zeros(1, 3, 32, 32), sample=True)
    short = model.code_layout().unflatten(torch.zeros(1, 16, dtype=torch.int16))
    assert model.decode(short).shape == (1, 3, 16, 16)

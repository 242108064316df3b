"""HQ-VAE, its special cases and the deterministic baselines as models: objective, codes, checkpoints, compilation."""

from __future__ import annotations

import copy
import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from hq_tokenizers.codes import CodeGroup, CodeLayout, Codes
from hq_tokenizers.losses.elbo import gaussian_nll
from hq_tokenizers.models.configuration_hq_vae import HQVAEConfig
from hq_tokenizers.models.configuration_sq_vae import SQVAEConfig
from hq_tokenizers.models.modeling_hq_vae import HQVAEModel
from hq_tokenizers.models.modeling_sq_vae import SQVAEModel
from hq_tokenizers.quantization.residual_gaussian import ResidualGaussianQuantizer
from hq_tokenizers.randomness import sample_generators

TINY: dict[str, Any] = {"image_size": 16, "hidden_size": 8, "codebook_dim": 6, "initial_log_variance": 0.0}
RESIDUAL, TWO, HYBRID, THREE = (
    ["stride 4: 16 x 3"],
    ["stride 8: 16", "stride 4: 12"],
    ["stride 8: 16 x 2", "stride 4: 12, 10"],
    ["stride 16: 5", "stride 4: 12 x 2", "stride 2: 7"],
)
FOLLOWING: dict[str, Any] = {
    "bottleneck_gradient": "straight_through",
    "codebook_update": "ema",
    "restart_threshold": 0.5,
    "variance_update": "residual",
    "normalize_latents": True,
    "ema_warmup": True,
}
SYSTEMS: dict[str, dict[str, Any]] = {
    "sq-vae": {"code_groups": ["stride 4: 16"]},
    "rsq-vae": {"code_groups": RESIDUAL},
    "sq-vae-2": {"code_groups": TWO},
    "hybrid": {"code_groups": HYBRID},
    "three groups": {"code_groups": THREE},
    "shared codebook": {"code_groups": RESIDUAL, "shared_codebook": True},
    "progressive residual": {"code_groups": RESIDUAL, "progressive": True},
    "progressive hybrid": {"code_groups": HYBRID, "progressive": True},
    "learned prior": {"code_groups": HYBRID, "learned_prior": True},
    "everything": {
        "code_groups": THREE,
        "learned_prior": True,
        "progressive": True,
        "decoder_variance": "learned",
        "bottleneck_batch_norm": True,
    },
    "rsq-vae, following": {"code_groups": RESIDUAL, **FOLLOWING},
    "hybrid, following": {"code_groups": HYBRID, "learned_prior": True, **FOLLOWING},
    "rq-vae": {
        "code_groups": RESIDUAL,
        "quantizer": "vq",
        "codebook_update": "ema",
        "shared_codebook": True,
        "restart_threshold": 1.0,
    },
    "vq-vae-2": {"code_groups": TWO, "quantizer": "vq"},
    "progressive vq": {"code_groups": HYBRID, "quantizer": "vq", "progressive": True},
}
STOCHASTIC = [name for name, fields in SYSTEMS.items() if "quantizer" not in fields]
PROGRESSIVE = [name for name, fields in SYSTEMS.items() if fields.get("progressive")]


def lively(config: HQVAEConfig) -> HQVAEModel:
    """A model in evaluation mode whose codes differ between positions, unlike those of fresh weights."""
    model = HQVAEModel(config)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_normal_(module.weight, gain=1.5)
    with torch.no_grad():
        for _ in range(3):
            model.train()(data(8))
    return model.eval()


def build(system: str, **overrides: Any) -> HQVAEModel:
    return lively(HQVAEConfig(**{**TINY, **SYSTEMS[system], **overrides}))


def data(batch_size: int, seed: int = 0, size: tuple[int, int] = (16, 16), channels: int = 3) -> torch.Tensor:
    return torch.rand(batch_size, channels, *size, generator=torch.Generator().manual_seed(seed))


class TestCompareCodes:
    @pytest.mark.parametrize("system", SYSTEMS)
    def test_output_is_that_of_forward_and_the_encoder_runs_once(self, system: str) -> None:
        model, pixels = build(system), data(4)
        expected = model(pixels)
        calls: list[int] = []
        model.bottom_up.register_forward_hook(lambda *arguments: calls.append(1))
        output, others = model.train().compare_codes(pixels, sample_generators(5, 3))
        assert model.training
        assert torch.equal(output.loss, expected.loss)
        assert torch.equal(output.reconstruction, expected.reconstruction)
        kinds = {"relaxed", "sampled"} if model.config.draws_relaxed_samples else {"sampled"}
        assert set(others) == (kinds if system in STOCHASTIC else set())
        assert calls == [1]
        assert model.compare_codes(pixels)[1] == {}

    @pytest.mark.parametrize("system", STOCHASTIC)
    def test_samples_are_those_of_encode_whatever_the_batch(self, system: str) -> None:
        model, pixels = build(system), data(4)
        _, others = model.compare_codes(pixels, sample_generators(5, 3))
        drawn = model.decode(model.encode(pixels[:3], sample=True, generator=5))
        torch.testing.assert_close(others["sampled"], drawn)
        _, alone = model.compare_codes(pixels[1:2], sample_generators(6, 1))
        for kind, images in alone.items():
            torch.testing.assert_close(images[0], others[kind][1], rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("system", STOCHASTIC)
    def test_nothing_is_learned_and_training_goes_on_with_its_noise(self, system: str) -> None:
        model = build(system)
        state = {name: value.clone() for name, value in model.state_dict().items()}
        noise = torch.get_rng_state()
        model.compare_codes(data(4), sample_generators(5, 4))
        assert torch.equal(torch.get_rng_state(), noise)
        assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())

    @pytest.mark.parametrize("system", ["rsq-vae", "hybrid", "learned prior"])
    def test_relaxed_samples_have_two_limits(self, system: str) -> None:
        """Codes drawn with Gumbel noise at temperature 0; at an infinite one the mean code of every level."""
        model, pixels = build(system, gumbel_temperature=1e-5), data(4)
        partial: list[torch.Tensor] = []
        for quantizer in model.quantizer:
            quantizer.register_forward_hook(lambda *arguments: partial.append(arguments[2].partial_sums))
        model.compare_codes(pixels, sample_generators(5, 4))
        groups = len(model.quantizer)
        for quantizer, sums in zip(model.quantizer, partial[-groups:], strict=True):
            steps = [b - a for a, b in itertools.pairwise([torch.zeros_like(sums[0]), *sums])]
            for book, step in zip(quantizer.level_codebooks(), steps, strict=True):
                assert torch.cdist(step.flatten(0, 2), book.codes).amin(-1).max() < 1e-2
        model.temperature.initial = 1e9
        model.compare_codes(pixels, sample_generators(5, 4))
        for quantizer, sums in zip(model.quantizer, partial[-groups:], strict=True):
            means = torch.stack([book.codes.mean(0) for book in quantizer.level_codebooks()])
            torch.testing.assert_close(sums[-1], means.sum(0).expand_as(sums[-1]), rtol=1e-3, atol=1e-4)


class TestForward:
    @pytest.mark.parametrize("system", SYSTEMS)
    def test_every_parameter_receives_a_gradient(self, system: str) -> None:
        model = build(system).train()
        model(data(4)).loss.backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
            # The gradient of a bias before a batch normalisation is zero but for rounding.
            assert name.endswith("bias") or parameter.grad.any(), name

    @pytest.mark.parametrize("system", SYSTEMS)
    @pytest.mark.parametrize("training", [False, True])
    def test_terms_sum_to_the_loss(self, system: str, training: bool) -> None:
        model = build(system).train(training)
        output = model(data(3))
        torch.testing.assert_close(output.loss, sum(output.terms.values()))
        assert ("progressive" in output.terms) == model.config.progressive
        assert model(data(3), return_loss=False).loss is None

    @pytest.mark.parametrize("system", STOCHASTIC)
    def test_kl_weight(self, system: str) -> None:
        model = build(system, kl_weight=3)
        weighted = model(data(3))
        model.config.kl_weight = 1.0
        bound = model(data(3))
        torch.testing.assert_close(weighted.terms, bound.terms)
        charged = bound.terms["continuous"] + bound.terms["discrete"]
        torch.testing.assert_close(weighted.loss, bound.loss + 2 * charged)

    def test_one_group_of_one_level_is_sq_vae(self) -> None:
        model = build("sq-vae")
        single = SQVAEModel(SQVAEConfig(**{**TINY, "codebook_size": 16, "variance_floor": 0.0})).eval()
        assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in single.parameters())
        # The weights in order of their shapes are the same; the names differ with the networks' structure.
        single.encoder.stem.load_state_dict(model.bottom_up.stages[0][0].state_dict())
        single.encoder.blocks.load_state_dict(model.bottom_up.stages[0][1].state_dict())
        single.encoder.mean_head.load_state_dict(model.blocks[0].latent_head.state_dict())
        single.decoder.projection.load_state_dict(model.blocks[0].state.state_dict())
        single.decoder.blocks.load_state_dict(model.decoder.blocks.state_dict())
        single.decoder.head.load_state_dict(model.decoder.head.state_dict())
        with torch.no_grad():
            single.quantizer.codebook.weight.copy_(model.quantizer[0].codebooks[0].weight)
            single.quantizer.variance.log_variance.copy_(model.quantizer[0].log_variances[0])
        for training in (False, True):
            outputs = []
            for either in (model, single):
                torch.manual_seed(1)
                outputs.append(either.train(training)(data(4)))
            assert outputs[0].codes == outputs[1].codes
            torch.testing.assert_close(outputs[0].reconstruction, outputs[1].reconstruction)
            assert outputs[0].terms.keys() == outputs[1].terms.keys()
            for name, value in outputs[0].terms.items():
                torch.testing.assert_close(value, outputs[1].terms[name])

    @pytest.mark.parametrize("system", [name for name in STOCHASTIC if "learned_prior" not in SYSTEMS[name]])
    def test_terms_by_hand(self, system: str) -> None:
        model = build(system)
        output = model(data(4))
        latents = latents_of(model, data(4))
        continuous = discrete = 0.0
        vectors = iter(model.embed(output.codes))
        log_probabilities = iter(model.posterior(data(4)))
        for group, quantizer, spec in zip(latents, model.quantizer, model.config.groups, strict=True):
            residual = group.double()
            for size in spec.codebook_sizes:
                residual = residual - next(vectors).detach().double()
                log_p = next(log_probabilities).double()
                discrete += float((log_p.exp() * (log_p + math.log(size))).sum()) / 4
            summed_variance = float(variances_by_hand(quantizer).sum())
            continuous += float(residual.square().sum()) / (2 * summed_variance) / 4
        assert float(output.terms["continuous"].detach()) == pytest.approx(continuous, rel=1e-4)
        assert float(output.terms["discrete"].detach()) == pytest.approx(discrete, rel=1e-3)
        assert discrete > 0

    @pytest.mark.parametrize("system", ["learned prior", "everything"])
    def test_discrete_term_of_a_learned_prior_by_hand(self, system: str) -> None:
        model = build(system)
        for quantizer in list(model.quantizer)[1:]:
            nn.init.normal_(quantizer.prior_log_variances)
        prior_means: list[torch.Tensor] = []
        hooks = [
            block.fill_head.register_forward_hook(lambda *arguments: prior_means.append(arguments[2].detach()))
            for block in list(model.blocks)[1:]
        ]
        with torch.no_grad():
            model._top_down(model._encoded(data(4)))
        for hook in hooks:
            hook.remove()
        output = model(data(4))
        vectors, log_probabilities = iter(model.embed(output.codes)), iter(model.posterior(data(4)))
        expected = 0.0
        for index, quantizer in enumerate(model.quantizer):
            residual = prior_means[index - 1].double().permute(0, 2, 3, 1) if index else None
            for level, codebook in enumerate(quantizer.level_codebooks()):
                log_p = next(log_probabilities).double()
                if residual is None:
                    log_prior = torch.full_like(log_p, -math.log(len(codebook.weight)))
                    next(vectors)
                else:
                    distance = (residual.unsqueeze(3) - codebook.weight.detach().double()).square().sum(-1)
                    variance = float(quantizer.prior_log_variances[level].detach().double().exp())
                    log_prior = (-distance / (2 * variance)).log_softmax(-1)
                    residual = residual - next(vectors).detach().double()
                expected += float((log_p.exp() * (log_p - log_prior)).sum()) / 4
        assert float(output.terms["discrete"].detach()) == pytest.approx(expected, rel=1e-4)

    def test_batch_norms_see_all_partial_decodes_together(self) -> None:
        model = build("progressive hybrid").train()
        norm = next(module for module in model.decoder.modules() if isinstance(module, nn.BatchNorm2d))
        seen: list[int] = []
        norm.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
        model(data(3))
        assert seen == [3 * 4]

    @pytest.mark.parametrize("system", PROGRESSIVE)
    def test_every_partial_decode_is_in_the_loss(self, system: str) -> None:
        model = build(system)
        pixels = data(4)
        output = model(pixels)
        variances = model.likelihood.log_variance
        if variances is not None:  # each reconstruction has its own
            with torch.no_grad():
                variances += torch.arange(output.codes.num_levels) / 10
            output = model(pixels)
        levels = range(1, output.codes.num_levels + 1)
        *partial, full = (
            reconstruction_term(model, output.codes, n, pixels, None if variances is None else variances[n - 1])
            for n in levels
        )
        assert float(output.terms["reconstruction"].detach()) == pytest.approx(full, rel=1e-5)
        assert float(output.terms["progressive"].detach()) == pytest.approx(sum(partial), rel=1e-5)
        assert len(set(partial)) == len(partial)

    @pytest.mark.parametrize("system", PROGRESSIVE)
    def test_progressive_training_reaches_the_first_level_through_every_decode(self, system: str) -> None:
        model = build(system).train()
        terms = model(data(4)).terms
        first = model.quantizer[0].codebooks[0].weight
        last = model.quantizer[-1].codebooks[-1].weight
        if model.config.quantizer == "vq":
            first = last = model.bottom_up.stages[0][0][0].weight
        for name in ("reconstruction", "progressive"):
            gradient = torch.autograd.grad(terms[name], first, retain_graph=True)[0]
            assert gradient.any(), name
        assert torch.autograd.grad(terms["reconstruction"], last, retain_graph=True)[0].any()

    @pytest.mark.parametrize("system", SYSTEMS)
    def test_energies_are_those_of_what_the_codes_leave_over(self, system: str) -> None:
        model = build(system)
        given: list[torch.Tensor] = []
        for quantizer in model.quantizer:
            quantizer.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
        output = model(data(6))
        vectors = iter(model.embed(output.codes))
        latent, left = [], []
        for latents, group in zip(given, output.codes.groups, strict=True):
            remaining = latents.detach().double()
            for _ in range(group.shape[-1]):
                latent.append(float(latents.detach().double().square().mean()))
                remaining = remaining - next(vectors).detach().double()
                left.append(float(remaining.square().mean()))
        assert output.diagnostics["latent_energy"].tolist() == pytest.approx(latent, rel=1e-4)
        assert output.diagnostics["residual_energy"].tolist() == pytest.approx(left, rel=1e-4)

    @pytest.mark.parametrize("system", SYSTEMS)
    def test_diagnostics_describe_every_level(self, system: str) -> None:
        model = build(system)
        output = model(data(6))
        for values in output.diagnostics.values():
            assert values.shape == (output.codes.num_levels,)
            assert not values.requires_grad
        for level, (codes, size) in enumerate(
            zip(output.codes.levels(), output.codes.layout.codebook_sizes, strict=True)
        ):
            counts = np.bincount(codes.flatten().numpy(), minlength=size)
            perplexity = float(output.diagnostics["perplexity"][level])
            assert perplexity == pytest.approx(math.exp(stats.entropy(counts)), rel=1e-4)
            assert float(output.diagnostics["active_codes"][level]) == (counts > 0).sum()
        if system in STOCHASTIC:
            for level, log_p in enumerate(model.posterior(data(6))):
                entropy = -(log_p.double().exp() * log_p.double()).sum(-1).mean()
                assert float(output.diagnostics["entropy"][level]) == pytest.approx(float(entropy), rel=1e-3, abs=1e-5)


def variances_by_hand(quantizer: ResidualGaussianQuantizer) -> torch.Tensor:
    if quantizer.residual_variance is None:
        return quantizer.log_variances.detach().double().exp()
    following = quantizer.residual_variance
    return torch.maximum(following.energy.double(), 0.1 * following.spread.double())


def latents_of(model: HQVAEModel, pixels: torch.Tensor) -> list[torch.Tensor]:
    """Ẑ_g of every group in a deterministic pass."""
    seen: list[torch.Tensor] = []
    hooks = [q.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach())) for q in model.quantizer]
    model(pixels, return_loss=False)
    for hook in hooks:
        hook.remove()
    return seen


def reconstruction_term(
    model: HQVAEModel, codes: Codes, num_levels: int, pixels: torch.Tensor, log_variance: torch.Tensor | None
) -> float:
    if model.config.quantizer == "vq":
        error = (model.decode(codes, num_levels=num_levels).double() - pixels.double()).square().mean()
        return float(error) / model.likelihood.data_variance
    return float(gaussian_nll(model.decode(codes, num_levels=num_levels), pixels, log_variance).detach())


class TestCodes:
    @pytest.mark.parametrize("system", SYSTEMS)
    def test_forward_is_decode_of_encode_bit_for_bit(self, system: str) -> None:
        model = build(system)
        output, codes = model(data(32)), model.encode(data(32))
        assert output.codes == codes
        assert torch.equal(output.reconstruction, model.decode(codes))
        assert all(len(level.unique()) > 1 for level in codes.levels()), "a test with one code shows nothing"

    @pytest.mark.parametrize("system", ["rsq-vae", "hybrid", "learned prior", "rq-vae"])
    def test_a_beam_leaves_over_less(self, system: str) -> None:
        model = build(system)
        images = data(32)
        greedy, searched = model.encode(images), model.encode(images, beam_width=4)
        assert searched.layout == greedy.layout
        assert model.encode(images, beam_width=1) == greedy
        # The first grid's latents are those of the image, whatever the codes.
        latents, _, _ = model._latents(0, model._encoded(images)[0], None)
        depth = greedy.groups[0].shape[-1]

        def left_over(codes: Codes) -> float:
            total = sum(model.embed(codes)[:depth])
            return (latents.double() - total.double()).square().mean().item()

        assert left_over(searched) < left_over(greedy)

    def test_what_a_beam_is_not_for(self) -> None:
        images = data(2)
        with pytest.raises(ValueError, match="beam_width 3 searches for codes, and sample draws them"):
            build("rsq-vae").encode(images, sample=True, generator=0, beam_width=3)
        with pytest.raises(ValueError, match="beam_width is 3, but no grid of this tokenizer has several"):
            build("sq-vae-2").encode(images, beam_width=3)
        model = build("sq-vae-2")
        assert model.encode(images, beam_width=1) == model.encode(images)
        for width in (0, 1.5, True, 5000):
            with pytest.raises((ValueError, TypeError), match="beam_width"):
                build("rsq-vae").encode(images, beam_width=width)

    @pytest.mark.parametrize("system", SYSTEMS)
    def test_partial_decodes(self, system: str) -> None:
        model = build(system)
        codes = model.encode(data(3))
        images = [model.decode(codes, num_levels=n) for n in range(1, codes.num_levels + 1)]
        for n, image in enumerate(images, start=1):
            assert torch.equal(image, model.decode(codes.truncate(n)))
        assert torch.equal(images[-1], model.decode(codes))
        assert not any(torch.equal(a, b) for a, b in itertools.pairwise(images))

    @pytest.mark.parametrize("system", ["sq-vae-2", "hybrid", "three groups", "vq-vae-2"])
    def test_missing_groups_are_zero_without_a_network_that_fills_them(self, system: str) -> None:
        model = build(system)
        codes = model.encode(data(3))
        first = codes.groups[0].shape[-1]
        inputs: list[torch.Tensor] = []
        hooks = [b.state.register_forward_pre_hook(lambda _, i: inputs.append(i[0])) for b in list(model.blocks)[1:]]
        model.decode(codes, num_levels=first)
        for hook in hooks:
            hook.remove()
        assert len(inputs) == len(model.blocks) - 1
        assert all(not state[:, -6:].any() and state[:, :-6].any() for state in inputs)

    def test_codes_are_the_most_probable_level_after_level(self) -> None:
        model = build("hybrid")
        for codes, log_p in zip(model.encode(data(4)).levels(), model.posterior(data(4)), strict=True):
            assert torch.equal(codes, log_p.argmax(-1))
            torch.testing.assert_close(log_p.exp().sum(-1), torch.ones(codes.shape))

    @pytest.mark.parametrize("system", STOCHASTIC)
    def test_samples_do_not_depend_on_the_batch_size(self, system: str) -> None:
        model = build(system)
        together = model.encode(data(5), sample=True, generator=7)
        apart = [model.encode(data(5)[i : i + 1], sample=True, generator=7 + i) for i in range(5)]
        assert Codes.cat(apart) == together
        assert together != model.encode(data(5), sample=True, generator=8)

    def test_samples_follow_the_posterior(self) -> None:
        model = build("rsq-vae")
        codes = model.encode(data(1).expand(4000, -1, -1, -1), sample=True, generator=0).groups[0][:, 1, 2]
        posterior = model.posterior(data(1))
        for level, log_p in enumerate(posterior):
            # The posterior of a level is given the most probable codes before it.
            best = torch.tensor([int(p[0, 1, 2].argmax()) for p in posterior[:level]], dtype=torch.long)
            sample = codes[(codes[:, :level] == best).all(dim=1), level]
            p = log_p[0, 1, 2].double().exp()
            observed, expected = torch.bincount(sample, minlength=16).double(), p / p.sum() * len(sample)
            rare = expected < 5
            bins = [torch.cat([t[~rare], t[rare].sum().expand(int(rare.any()))]) for t in (observed, expected)]
            assert len(bins[0]) > 1
            assert len(sample) > 100
            assert stats.chisquare(bins[0].numpy(), bins[1].numpy()).pvalue > 1e-3

    def test_samples_of_a_level_continue_from_the_samples_before(self) -> None:
        model = build("sq-vae-2")
        codes = model.encode(data(2), sample=True, generator=3)
        # The finer group's latents must be those of the sampled coarse codes, not of the most probable ones.
        features = model._encoded(data(2))
        coarse = model.quantizer[0].embed(codes.groups[0])[0]
        state = model.blocks[0].next_state(None, coarse.permute(0, 3, 1, 2))
        latents, *_ = model._latents(1, features[1], state)
        seen: list[torch.Tensor] = []
        model.quantizer[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        again = model.encode(data(2), sample=True, generator=3)
        assert again == codes
        torch.testing.assert_close(seen[0], latents.detach())
        assert codes.groups[0].ne(model.encode(data(2)).groups[0]).any()

    def test_embed_gives_the_code_vectors_of_every_level(self) -> None:
        model = build("shared codebook")
        codes = model.encode(data(2))
        weight = model.quantizer[0].codebooks[0].weight
        for vectors, level in zip(model.embed(codes), codes.levels(), strict=True):
            assert torch.equal(vectors, weight[level])
        assert sum("codebooks" in name for name, _ in model.named_parameters()) == 1

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize("size", [(28, 28), (32, 32), (64, 64), (128, 128), (256, 256), (32, 48), (20, 12)])
    def test_sizes(self, size: tuple[int, int], channels: int) -> None:
        groups = ["stride 4: 6", "stride 2: 5 x 2"]
        fields = {**TINY, "num_channels": channels, "hidden_size": 4, "code_groups": groups}
        model = HQVAEModel(HQVAEConfig(**fields)).eval()
        pixels = data(1, size=size, channels=channels)
        codes = model.encode(pixels)
        height, width = size
        expected = (CodeGroup(height // 4, width // 4, (6,)), CodeGroup(height // 2, width // 2, (5, 5)))
        assert codes.layout == model.code_layout(size) == CodeLayout(expected)
        assert model.decode(codes).shape == pixels.shape
        assert model.decode(codes, num_levels=1).shape == pixels.shape


class TestErrors:
    @pytest.mark.parametrize("method", ["forward", "encode", "posterior"])
    def test_wrong_pixels(self, method: str) -> None:
        call = getattr(build("sq-vae-2"), method)
        with pytest.raises(ValueError, match=r"shape \(batch, 3, height, width\), got \(2, 1, 16, 16\)"):
            call(torch.rand(2, 1, 16, 16))
        with pytest.raises(TypeError, match=r"floats in \[0, 1\], got torch.int64"):
            call(torch.zeros(2, 3, 16, 16, dtype=torch.long))
        # 20 is a multiple of the finest stride only.
        with pytest.raises(ValueError, match="multiples of 8; instead of 20, use 16 or 24"):
            call(torch.rand(2, 3, 16, 20))

    def test_codes_of_another_layout(self) -> None:
        model, other = build("sq-vae-2"), build("hybrid")
        with pytest.raises(ValueError, match=r"layout 2×2×2 of 16 .*on a coarsest grid of 2×2, is 2×2×1 of 16"):
            model.decode(other.encode(data(1)))
        with pytest.raises(ValueError, match="have the layout 4×4×3 of 16"):
            model.decode(build("rsq-vae").encode(data(1)))

    @pytest.mark.parametrize("num_levels", [None, 1])
    def test_what_is_no_codes_is_told_how_to_become_some(self, num_levels: int | None) -> None:
        model = build("sq-vae-2")
        with pytest.raises(TypeError, match=r"becomes Codes by model.code_layout\(\).unflatten"):
            model.decode(model.encode(data(1)).flatten(), num_levels)

    @pytest.mark.parametrize("num_levels", [0, 3])
    def test_number_of_levels(self, num_levels: int) -> None:
        model = build("sq-vae-2")
        with pytest.raises(ValueError, match="num_levels must be between 1 and 2"):
            model.decode(model.encode(data(1)), num_levels=num_levels)

    def test_a_deterministic_quantiser_has_no_posterior(self) -> None:
        with pytest.raises(ValueError, match="Only stochastic quantisers have a posterior over codes, not 'vq'"):
            build("rq-vae").posterior(data(1))


class TestState:
    @pytest.mark.parametrize("system", SYSTEMS)
    def test_round_trip(self, system: str, tmp_path: Path) -> None:
        model = build(system)
        model.advance(77)
        model.save_pretrained(tmp_path)
        again = HQVAEModel.from_pretrained(tmp_path)
        state = again.state_dict()
        assert state.keys() == model.state_dict().keys()
        for name, value in model.state_dict().items():
            assert torch.equal(value, state[name]), name
        assert float(again.temperature()) == pytest.approx(math.exp(-77e-5), rel=1e-6)
        # Equal but for the alignment of the weights in memory, on which kernels depend.
        torch.testing.assert_close(model(data(2)).reconstruction, again(data(2)).reconstruction)

    @pytest.mark.parametrize("system", ["hybrid", "everything", "rq-vae"])
    def test_bfloat16_keeps_the_quantisers_in_float32(self, system: str, tmp_path: Path) -> None:
        model = build(system)
        model.save_pretrained(tmp_path)
        half = HQVAEModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert half.decoder.blocks[0].layers[1].weight.dtype == half.dtype == torch.bfloat16
        for name, value in half.quantizer.state_dict().items():
            assert value.dtype == torch.float32
            assert torch.equal(value, model.quantizer.state_dict()[name]), name
        # Errors add up from level to level, so the first is compared.
        same = half.encode(data(8)).levels()[0] == model.encode(data(8)).levels()[0]
        assert same.double().mean() > 0.85
        output = half.train()(data(8))
        assert {term.dtype for term in output.terms.values()} == {torch.float32}
        output.loss.backward()
        half.eval()
        assert torch.equal(half(data(8)).reconstruction, half.decode(half.encode(data(8))))

    @pytest.mark.parametrize("system", ["hybrid", "everything", "rq-vae"])
    def test_autocast(self, system: str) -> None:
        model = build(system)
        with torch.autocast("cpu", torch.bfloat16):
            output = model(data(4))
            assert torch.equal(output.reconstruction, model.decode(model.encode(data(4))))
            model.train()(data(4)).loss.backward()
        assert {term.dtype for term in output.terms.values()} == {torch.float32}
        assert {value.dtype for value in output.diagnostics.values()} == {torch.float32}

    @pytest.mark.parametrize("system", ["progressive vq", "hybrid, following"])
    def test_reestimation_reaches_every_group(self, system: str, tmp_path: Path) -> None:
        model = build(system, warmup_epochs=1, reestimation_epochs=1, reservoir_size=200).train()
        model.start_epoch(0)
        model(data(16))
        model.save_pretrained(tmp_path)
        again = HQVAEModel.from_pretrained(tmp_path).train()
        assert model.start_epoch(1, seed=2)
        assert again.start_epoch(1, seed=2)
        fresh = build(system, warmup_epochs=1, reestimation_epochs=1, reservoir_size=200)
        for a, b, c in zip(model.quantizer, again.quantizer, fresh.quantizer, strict=True):
            for first, second, third in zip(a.codebooks, b.codebooks, c.codebooks, strict=True):
                assert torch.equal(first.weight, second.weight)
                assert not torch.equal(first.weight, third.weight)

    def test_codebooks_have_their_own_rate(self) -> None:
        model = build("hybrid", codebook_learning_rate_factor=5.0)
        others, codebooks = model.parameter_groups(0.2)
        assert (others["lr"], codebooks["lr"]) == (0.2, 1.0)
        expected = [book.weight for quantizer in model.quantizer for book in quantizer.codebooks]
        assert {id(p) for p in codebooks["params"]} == {id(p) for p in expected}
        assert len(others["params"]) + len(codebooks["params"]) == len(list(model.parameters()))


@pytest.mark.slow
@pytest.mark.parametrize("system", ["everything", "rq-vae"])
def test_no_graph_breaks(system: str) -> None:
    model = build(system)
    expected, codes = model(data(2)), model.encode(data(2))
    options: dict[str, Any] = {"fullgraph": True, "backend": "eager"}
    output = torch.compile(model.forward, **options)(data(2))
    assert torch.equal(output.reconstruction, expected.reconstruction)
    assert torch.equal(output.loss, expected.loss)
    assert output.codes == codes == torch.compile(model.encode, **options)(data(2))
    assert torch.equal(torch.compile(model.decode, **options)(codes), expected.reconstruction)
    assert torch.equal(torch.compile(model.decode, **options)(codes, num_levels=1), model.decode(codes, num_levels=1))
    # A second image size makes the sizes symbolic.
    larger = model.encode(data(2, size=(32, 48)))
    assert torch.compile(model.encode, **options)(data(2, size=(32, 48))) == larger
    torch.testing.assert_close(torch.compile(model.decode, **options)(larger), model.decode(larger))

    gradients: list[list[torch.Tensor | None]] = []
    for module in (copy.deepcopy(model).train(), copy.deepcopy(model).train()):
        call = torch.compile(module, **options) if gradients else module
        torch.manual_seed(0)
        call(data(2)).loss.backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    for plain, compiled in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, compiled, rtol=1e-3, atol=1e-3)

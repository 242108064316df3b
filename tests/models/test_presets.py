"""Named constructors: the papers' parameter counts, and every system builds, trains and initialises all it has."""

from __future__ import annotations

import math
from functools import partial
from inspect import signature
from typing import Any

import pytest
import torch

from hq_tokenizers.models.configuration_hq_vae import HQVAEConfig
from hq_tokenizers.models.configuration_sq_vae import SQVAEConfig
from hq_tokenizers.models.modeling_hq_vae import HQVAEModel
from hq_tokenizers.models.modeling_sq_vae import SQVAEModel
from hq_tokenizers.models.presets import (
    NETWORKS,
    PRESETS,
    fsq_vae,
    hybrid_vae,
    robust_vq_vae,
    rq_vae,
    rsq_vae,
    sim_vq_vae,
    sq_vae,
    sq_vae_2,
    vq_vae,
)
from hq_tokenizers.quantization import stochastic_codebook
from hq_tokenizers.randomness import sample_generators

SMALL: dict[str, Any] = {"hidden_size": 8, "codebook_dim": 6}
IMAGE_NETWORKS = [
    name for name, fields in NETWORKS.items() if name != "celebamask" and not {"backbone", "modality"} & set(fields)
]
SOUND_NETWORKS = [name for name, fields in NETWORKS.items() if fields.get("modality") == "sound"]


def small(preset: str, **fields: Any) -> dict[str, Any]:
    """Fields of a small model of a preset; the width of FSQ's codes is the number of its levels."""
    return {name: value for name, value in (SMALL | fields).items() if (preset, name) != ("fsq_vae", "codebook_dim")}


def build(config: SQVAEConfig | HQVAEConfig) -> SQVAEModel | HQVAEModel:
    return SQVAEModel(config) if isinstance(config, SQVAEConfig) else HQVAEModel(config)


def num_parameters(config: SQVAEConfig | HQVAEConfig) -> int:
    return sum(parameter.numel() for parameter in build(config).parameters())


@pytest.mark.parametrize(
    ("config", "parameters"),
    [
        (sq_vae("mnist", recipe="paper"), 240_386),
        (sq_vae("cifar10", recipe="paper"), 341_252),
        (sq_vae("celeba", recipe="paper"), 630_532),
        *((sq_vae("celeba", recipe="paper", variance_type=kind), 671_876) for kind in ("II", "III", "IV")),
        (sq_vae("celebamask", recipe="paper"), 354_989),
    ],
)
def test_parameter_counts_of_the_paper(config: SQVAEConfig, parameters: int) -> None:
    assert num_parameters(config) == parameters


@pytest.mark.parametrize("network", IMAGE_NETWORKS)
def test_rsq_vae_of_one_level_has_the_network_of_sq_vae(network: str) -> None:
    assert num_parameters(rsq_vae(network, num_levels=1)) == num_parameters(sq_vae(network))


@pytest.mark.parametrize("network", IMAGE_NETWORKS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_network_of_every_preset_builds(preset: str, network: str) -> None:
    config = PRESETS[preset](network, **small(preset))
    model = build(config).eval()
    height, width = (config.image_size,) * 2
    output = model(torch.rand(1, config.num_channels, height, width))
    assert output.reconstruction is not None
    assert output.reconstruction.shape == (1, config.num_channels, height, width)
    if output.codes is not None:
        assert output.codes.layout == model.code_layout()
    assert output.loss is not None
    assert output.terms is not None
    weights = {"continuous": config.kl_weight, "discrete": config.kl_weight}
    weighted = [weights.get(name, 1.0) * term for name, term in output.terms.items()]
    torch.testing.assert_close(output.loss, torch.stack(weighted).sum())


@pytest.mark.parametrize("network", SOUND_NETWORKS)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_network_of_sound_builds(preset: str, network: str) -> None:
    if network == "speech" and preset in ("sq_vae_2", "vq_vae_2", "hybrid_vae"):
        with pytest.raises(ValueError, match="'speech' has one resolution"):
            PRESETS[preset](network, **small(preset))
        return
    model = build(PRESETS[preset](network, **small(preset))).eval()
    height = model.config.image_size[0]
    mask = (torch.arange(16) < 9).long()[None]
    output = model(torch.randn(1, model.config.num_channels, height, 16), attention_mask=mask)
    assert output.reconstruction.shape == (1, model.config.num_channels, height, 16)
    assert output.loss.isfinite()


@pytest.mark.parametrize(
    ("preset", "network"), [*((preset, "digits") for preset in PRESETS), ("sq_vae", "speech"), ("rsq_vae", "speech")]
)
def test_every_parameter_receives_a_gradient(preset: str, network: str) -> None:
    model = build(PRESETS[preset](network, **small(preset))).train()
    model.start_epoch(10)
    values = torch.rand(4, 1, 8, 8) if network == "digits" else torch.rand(4, 80, 1, 8)
    model(values).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # The gradient of a bias before a batch normalisation is zero but for rounding.
        assert name.endswith("bias") or parameter.grad.any(), name


OPTIONS: dict[str, dict[str, Any]] = {
    "sq_vae": {"decoder_variance": "learned", "variance_type": "IV"},
    "sq_vae_2": {"progressive": True, "learned_prior": True, "decoder_variance": "learned"},
    "rq_vae": {"reestimation_epochs": 2, "warmup_epochs": 1},
}


@pytest.mark.usefixtures("memory_full_of_nan")
@pytest.mark.parametrize("preset", PRESETS)
def test_nothing_is_left_uninitialised(preset: str) -> None:
    systems = [("digits", {}), ("digits", OPTIONS.get(preset, {}))]
    systems += [("speech", {"num_speakers": 2})] if preset == "sq_vae" else []
    for network, options in systems:
        states = []
        for _ in range(2):
            torch.manual_seed(0)
            states.append(build(PRESETS[preset](network, **small(preset), **options)).state_dict())
        for name, value in states[0].items():
            assert value.isfinite().all(), name
            assert torch.equal(value, states[1][name]), name


@pytest.mark.usefixtures("memory_full_of_nan")
def test_weights_a_checkpoint_lacks_are_initialised_when_that_is_asked_for(tmp_path: Any) -> None:
    config = sq_vae_2("digits", **SMALL)
    HQVAEModel(config).save_pretrained(tmp_path)
    fields = {"progressive": True, "learned_prior": True, "decoder_variance": "learned"}
    with pytest.raises(ValueError, match="lacks the weights"):
        HQVAEModel.from_pretrained(tmp_path, **fields)
    more = HQVAEModel.from_pretrained(tmp_path, **fields, ignore_mismatched_sizes=True)
    missing = set(more.state_dict()) - set(HQVAEModel(config).state_dict())
    assert {"likelihood.log_variance", "quantizer.1.prior_log_variances"} <= missing
    for name, value in more.state_dict().items():
        assert value.isfinite().all(), name


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"network": "mnist"}, "The network is the first argument, without a name: 'mnist'"),
        ({"network_name": "mnist"}, "The network is the first argument"),
        ({"num_embeddings": 3}, "A tokenizer has no field 'num_embeddings'"),
        ({"codebok_dim": 3}, "no field 'codebok_dim'. Did you mean codebook_dim"),
    ],
)
@pytest.mark.parametrize("preset", PRESETS.values())
def test_what_is_no_field_is_refused(preset: Any, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        preset(**fields)


def test_levels_are_for_those_that_have_some() -> None:
    with pytest.raises(ValueError, match="num_levels is for rsq_vae and rq_vae"):
        sq_vae("digits", num_levels=2)
    with pytest.raises(ValueError, match=r"no field 'num_levls'\. Did you mean num_levels"):
        rsq_vae("digits", num_levls=2)
    assert {name for name, preset in PRESETS.items() if "num_levels" in signature(preset).parameters} == {
        *("rsq_vae", "rq_vae")
    }


@pytest.mark.parametrize("size", ["abc", None, -64, math.nan])
def test_a_wrong_codebook_size_is_named(size: Any) -> None:
    with pytest.raises(ValueError, match="codebook_size must be an integer"):
        robust_vq_vae("digits", codebook_size=size)
    if size is not None:
        with pytest.raises(ValueError, match=r"^codebook_size must be an integer"):
            rsq_vae("digits", codebook_size=size)


def test_initial_weights_are_the_papers() -> None:
    model = SQVAEModel(sq_vae("cifar10", recipe="paper")).requires_grad_(False)
    assert float(model.quantizer.codebook.weight.std()) == pytest.approx(1.0, rel=0.03)
    assert float(model.encoder.stem[3].weight.std()) == pytest.approx(0.02, rel=0.05)
    norm = model.encoder.stem[1]
    assert float(norm.weight.mean()) == pytest.approx(1.0, abs=0.02)
    assert 0.01 < float(norm.weight.std()) < 0.04
    # The authors' convolutions keep the biases of PyTorch: uniform within ±1/√(4 · 4 · 32 inputs).
    assert float(model.encoder.stem[3].bias.abs().max()) == pytest.approx(1 / math.sqrt(512), rel=0.1)
    assert float(model.quantizer.variance.log_variance.exp()) == pytest.approx(20.0)
    mnist = SQVAEModel(sq_vae("mnist", recipe="paper")).requires_grad_(False)
    assert float(mnist.quantizer.variance.log_variance.exp()) == pytest.approx(10.0)
    assert float(mnist.quantizer.variance(None)) == pytest.approx(11.0)
    hierarchy = HQVAEModel(rsq_vae("mnist", recipe="paper"))
    torch.testing.assert_close(hierarchy.quantizer[0].variances(), torch.full((4,), 60.0))


def test_projections_keep_the_scale_of_what_they_carry() -> None:
    model = HQVAEModel(sq_vae_2("cifar10", hidden_size=128, codebook_dim=64)).requires_grad_(False)
    vectors = torch.randn(4, 128 + 64, 8, 8)
    assert float(model.blocks[1].state(vectors).std()) == pytest.approx(1.0, rel=0.1)
    assert float(model.blocks[0].state(vectors[:, :64]).std()) == pytest.approx(1.0, rel=0.1)
    assert float(model.blocks[1].latent_head[1](vectors[:, :128]).std()) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize("preset", [sq_vae, rsq_vae, sq_vae_2, hybrid_vae])
def test_the_papers_recipe_trains_on_the_bound(preset: Any) -> None:
    config = preset("mnist", recipe="paper")
    assert (config.kl_weight, config.bottleneck_gradient) == (1.0, "pathwise")
    assert (config.codebook_update, config.variance_update) == ("gradient", "trained")
    tuned = preset("mnist")
    assert (tuned.bottleneck_gradient, tuned.codebook_update) == ("straight_through", "ema")


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"codebook_update": "gradient"}, {"restart_threshold": 0.0, "variance_update": "residual"}),
        ({"variance_update": "trained"}, {"codebook_update": "ema"}),
        ({"quantizer": "vq"}, {"codebook_update": "gradient", "kl_weight": 1.0}),
    ],
)
@pytest.mark.parametrize("preset", [sq_vae, rsq_vae, sq_vae_2, hybrid_vae])
def test_the_recipe_gives_way_to_what_is_set(preset: Any, overrides: dict[str, Any], expected: dict[str, Any]) -> None:
    config = preset("mnist", **overrides)
    assert {name: getattr(config, name) for name in expected} == expected


def test_variances_of_a_network_are_trained() -> None:
    config = sq_vae("mnist", variance_type="III")
    assert (config.variance_update, config.codebook_update) == ("trained", "ema")


@pytest.mark.parametrize(
    ("options", "floor", "softplus"),
    [
        ({}, 1.0, False),
        ({"variance_type": "IV"}, 0.0, False),
        ({"variance_floor": 0.5}, 0.5, False),
        ({"quantizer": "vq"}, 0.0, False),
    ],
)
def test_the_papers_recipe_has_the_floor_of_type_i(options: dict[str, Any], floor: float, softplus: bool) -> None:
    config = sq_vae("mnist", recipe="paper", **options)
    assert (config.variance_floor, config.decoder_softplus) == (floor, softplus)


def test_the_papers_recipe_of_label_maps_ends_in_softplus() -> None:
    assert sq_vae("celebamask", recipe="paper").decoder_softplus
    assert not sq_vae("celebamask").decoder_softplus


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="recipe must be one of 'tuned', 'paper', got 'best'"):
        sq_vae(recipe="best")  # type: ignore[arg-type]


def test_overrides_win() -> None:
    assert sq_vae("mnist", codebook_size=7, image_size=32).codebook_size == 7
    assert rsq_vae("mnist", num_levels=3, codebook_size=9).groups[0].codebook_sizes == (9, 9, 9)
    assert vq_vae("mnist", codebook_update="gradient").codebook_update == "gradient"
    assert robust_vq_vae("mnist", warmup_epochs=1).warmup_epochs == 1
    assert rq_vae("mnist", restart_threshold=0.0, shared_codebook=False).shared_codebook is False


def test_systems_are_what_they_are_called() -> None:
    assert vq_vae().quantizer == "vq"
    assert PRESETS["vae"]().quantizer == "none"
    robust = robust_vq_vae()
    assert (robust.quantizer, robust.bottleneck_batch_norm, robust.codebook_learning_rate_factor) == ("vq", True, 10)
    simple = sim_vq_vae("mnist", codebook_dim=16)
    assert (simple.quantizer, simple.codebook_update, simple.codebook_init_std) == ("vq", "linear", 0.25)
    for network, size in {"digits": 64, "mnist": 125, "cifar10": 512, "celeba": 512}.items():
        assert (fsq_vae(network).quantizer, fsq_vae(network).codebook_size) == ("fsq", size)
    assert fsq_vae("mnist", fsq_levels=[8, 5, 5, 5]).codebook_size == 1000
    assert rq_vae().shared_codebook
    assert rq_vae().restart_threshold == 1.0
    for name, groups in {"rsq_vae": 1, "rq_vae": 1, "sq_vae_2": 2, "vq_vae_2": 2, "hybrid_vae": 2}.items():
        config = PRESETS[name]("cifar10")
        assert isinstance(config, HQVAEConfig)
        assert len(config.groups) == groups
    assert [len(group.codebook_sizes) for group in PRESETS["hybrid_vae"]().groups] == [2, 2]


def test_unknown_network_names_the_known_ones() -> None:
    for preset in PRESETS.values():
        with pytest.raises(ValueError, match=r"network must be one of 'digits', 'mnist'.*, got 'imagenet'"):
            preset("imagenet")


@pytest.mark.parametrize(
    "preset",
    ["vq_vae", "robust_vq_vae", "sim_vq_vae", "fsq_vae", "rsq_vae", "rq_vae", "sq_vae_2", "vq_vae_2", "hybrid_vae"],
)
def test_systems_without_label_maps_refuse_their_network(preset: str) -> None:
    with pytest.raises(ValueError, match=r"label maps|network must be one of 'digits'"):
        PRESETS[preset]("celebamask")


def test_a_group_needs_a_level() -> None:
    with pytest.raises(ValueError, match="num_levels must be at least 1, got 0"):
        rsq_vae(num_levels=0)


@pytest.mark.parametrize(
    ("preset", "arguments"),
    [
        (rsq_vae, {"num_levels": 7}),
        (rsq_vae, {"num_levels": 4}),
        (rq_vae, {"codebook_size": 16}),
        (sq_vae_2, {"codebook_size": 16}),
        (hybrid_vae, {"codebook_size": 16}),
    ],
)
def test_groups_are_described_once(preset: Any, arguments: dict[str, int]) -> None:
    groups = ["stride 4: 8 x 2"]
    assert preset(code_groups=groups).groups[0].codebook_sizes == (8, 8)
    with pytest.raises(ValueError, match=f"{next(iter(arguments))} has no effect beside code_groups"):
        preset(code_groups=groups, **arguments)


@pytest.mark.parametrize("backbone", [[5], {"resnet": 1}, "vit", None])
def test_an_unknown_backbone_is_told_the_known_ones(backbone: Any) -> None:
    with pytest.raises(ValueError, match="backbone must be one of 'resnet', 'diffusers', got"):
        sq_vae(backbone=backbone)


@pytest.mark.parametrize("preset", [rsq_vae, sq_vae_2, hybrid_vae])
def test_groups_that_are_no_list_are_refused_by_their_name(preset: Any) -> None:
    with pytest.raises(ValueError, match="code_groups is a list with one line per resolution, got 5"):
        preset(code_groups=5)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "vae"])
def test_codebooks_are_the_vectors_that_codes_stand_for(preset: str) -> None:
    config = PRESETS[preset]("digits", **small(preset))
    model = (SQVAEModel if config.model_type == "sq_vae" else HQVAEModel)(config).eval()
    codes = model.encode(torch.rand(2, 1, 8, 8))
    books = model.codebooks()
    assert [len(book) for book in books] == list(model.code_layout().codebook_sizes)
    for book, indices, vectors in zip(books, codes.levels(), model.embed(codes), strict=True):
        assert torch.equal(book[indices], vectors)
    for book in books:
        book.fill_(7.0)  # a copy of the user's
    assert not any((vectors == 7).any() for vectors in model.embed(codes))


@pytest.mark.parametrize(
    ("preset", "fields"),
    [
        ("sq_vae", {}),
        ("sq_vae", {"max_quantizer_elements": 64}),
        ("sq_vae", {"quantizer": "vmf"}),
        ("rsq_vae", {}),
        ("sq_vae_2", {"learned_prior": True}),
        ("hybrid_vae", {"recipe": "paper"}),
    ],
)
def test_entropies_of_images_are_not_computed_for_their_codes(
    preset: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PRESETS[preset]("digits", **fields)
    model = (SQVAEModel if config.model_type == "sq_vae" else HQVAEModel)(config).eval()
    images = torch.rand(2, 1, 8, 8)
    expected = model(images).codes

    def refuse(*arguments: Any) -> torch.Tensor:
        raise AssertionError("computed")

    sampled = model._decoded(model._encoded(images), None, sample_generators(3, 2)).codes
    monkeypatch.setattr(stochastic_codebook, "entropy_of", refuse)
    monkeypatch.setattr(stochastic_codebook.StochasticCodebook, "cross_entropy", refuse)
    with pytest.raises(AssertionError, match="computed"):
        model(images)
    assert model.encode(images) == expected
    assert model.encode(images, sample=True, generator=3) == sampled


def test_one_grid_has_sharper_variances_than_several() -> None:
    assert rsq_vae().variance_factor == sq_vae(quantizer="vmf").variance_factor == 0.3
    assert sq_vae_2().variance_factor == rsq_vae(code_groups=["stride 8: 4", "stride 4: 4"]).variance_factor == 1.0
    for config in (sq_vae(variance_type="III"), rsq_vae(variance_update="trained")):
        assert config.variance_update == "trained"


WITHOUT_FLOOR: list[dict[str, Any]] = [
    {"decoder_variance": "learned"},
    {"variance_update": "trained"},
    {"recipe": "paper"},
    {"recipe": "paper", "variance_update": "residual"},
    {"quantizer": "vq"},
    {"modality": "sound"},
    {"min_decoder_variance": 0.0},
]


@pytest.mark.parametrize(
    ("preset", "floor", "others"),
    [
        (sq_vae, 0.02, [{"variance_type": "IV"}, {"quantizer": "vmf"}, {"likelihood": "vmf", "num_classes": 3}]),
        # 48 pixel values of a position and 65 latent ones; 16 and 64.
        (partial(rsq_vae, codebook_dim=65), 0.005, [{"num_levels": 1}]),
        (partial(rsq_vae, "mnist"), 0.005, [{"num_channels": 3}]),
        (partial(rsq_vae, "mnist", code_groups=["stride 4: 4 x 2", "stride 2: 4"]), 0.001, []),
        # Of the finest grid, 48 and 65; 4 and 64.
        (partial(sq_vae_2, codebook_dim=65), 0.001, []),
        (partial(sq_vae_2, "mnist"), 0.001, [{"code_groups": ["stride 4: 4"]}]),
        (partial(hybrid_vae, "mnist"), 0.001, []),
    ],
)
def test_the_floor_under_the_decoders_variance_is_for_images_and_variances_of_residuals(
    preset: Any, floor: float, others: list[dict[str, Any]]
) -> None:
    assert preset().min_decoder_variance == floor
    for fields in WITHOUT_FLOOR + others:
        assert preset(**fields).min_decoder_variance == 0.0, fields


def test_there_is_no_floor_for_several_codes_where_latent_values_are_few() -> None:
    # 48 pixel values of a position of the finest grid and 64 latent ones.
    for preset in (rsq_vae, sq_vae_2, hybrid_vae):
        assert preset("cifar10").min_decoder_variance == 0.0


def test_with_the_floor_codes_pull_as_much_with_a_tenth_of_the_noise() -> None:
    firm, others = sq_vae(), rsq_vae()
    for name in ("kl_weight", "variance_share", "variance_factor"):
        assert getattr(firm, name) == pytest.approx(getattr(others, name) / 10)
    assert sq_vae(variance_share=0.1, kl_weight=0.05).variance_share == 0.1
    assert sq_vae(quantizer="vmf").variance_share == sq_vae(modality="sound").variance_share == 0.1


def test_codes_are_charged_less_where_pixel_values_are_few() -> None:
    # 48 pixel values of a position and 64 latent ones; 16 and 64; 4 and 64.
    assert sq_vae("cifar10").kl_weight == sq_vae("mnist").kl_weight == sq_vae("imagenet256").kl_weight == 0.005
    assert sq_vae("digits").kl_weight == 0.005 / 4
    assert sq_vae("mnist", codebook_dim=128).kl_weight == 0.005 / 2
    assert sq_vae("digits", kl_weight=0.2).kl_weight == 0.2
    assert sq_vae("digits", recipe="paper", variance_update="residual").kl_weight == 1
    assert rsq_vae("digits").kl_weight == sq_vae("digits", variance_type="IV").kl_weight == 0.05


def test_predicted_variances_start_below_those_of_normalised_latents() -> None:
    config = sq_vae(variance_type="IV")
    assert (config.variance_parametrization, config.normalize_latents) == ("plain", True)
    assert math.exp(config.initial_log_variance) < 0.2
    assert sq_vae(variance_type="IV", recipe="paper").variance_parametrization == "released"

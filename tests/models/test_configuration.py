"""Configurations: the hierarchy's grammar, JSON round trips, and errors that name the way out."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import yaml

from hq_tokenizers.checks import check_image_size
from hq_tokenizers.models.configuration_hq_vae import GroupSpec, HQVAEConfig, parse_code_group
from hq_tokenizers.models.configuration_sq_vae import SQVAEConfig
from hq_tokenizers.models.presets import sq_vae


class TestGrammar:
    @pytest.mark.parametrize(
        ("text", "stride", "sizes"),
        [
            ("stride 4: 512", 4, (512,)),
            ("stride 4: 512 x 4", 4, (512,) * 4),
            ("stride 4: 512×2", 4, (512, 512)),
            ("  stride  8 :  512 , 256 ", 8, (512, 256)),
            ("stride 2: 8 x 2, 4, 2x3", 2, (8, 8, 4, 2, 2, 2)),
            ("Stride 2: 8 X 2", 2, (8, 8)),
        ],
    )
    def test_lines(self, text: str, stride: int, sizes: tuple[int, ...]) -> None:
        assert parse_code_group(text) == GroupSpec(stride, sizes)

    @pytest.mark.parametrize(
        "text", ["", "512", "stride 4", "stride 4:", "stride 4: 512 x", "stride x: 4", "stride 4: 8; 9", "stride -4: 8"]
    )
    def test_what_is_not_a_line(self, text: str) -> None:
        with pytest.raises(ValueError, match="A line of code_groups is written 'stride S: K'") as caught:
            parse_code_group(text)
        assert repr(text) in str(caught.value)

    @pytest.mark.parametrize("stride", [0, 1, 3, 12])
    def test_strides_are_powers_of_two(self, stride: int) -> None:
        with pytest.raises(ValueError, match=rf"power of two of at least 2 and at most 65,536, got {stride} in"):
            parse_code_group(f"stride {stride}: 8")

    def test_lines_without_quotes_in_yaml(self) -> None:
        lines = yaml.safe_load("- stride 8: 16\n- stride 4: 12, 10\n- stride 2: 8 x 2")
        assert all(isinstance(line, dict) for line in lines)
        config = HQVAEConfig(code_groups=lines)
        assert config.code_groups == ["stride 8: 16", "stride 4: 12, 10", "stride 2: 8 x 2"]
        config.code_groups = [{"stride 4": "8, 8"}]
        assert config.groups == (GroupSpec(4, (8, 8)),)
        with pytest.raises(
            ValueError, match=r"code_groups is a list with one line per resolution, got \{'stride 4': 16\}"
        ):
            HQVAEConfig(code_groups={"stride 4": 16})
        with pytest.raises(ValueError, match="in quotes if it has commas, got 10"):
            HQVAEConfig(code_groups=yaml.safe_load("[stride 8: 16, stride 4: 12, 10]"))

    @pytest.mark.parametrize(
        ("levels", "message"),
        [
            ("0", "codebook size of code_groups, in 'stride 4: 0', must be an integer from 1 to 16,777,216, got 0"),
            ("8, 0", "from 1 to 16,777,216, got 0"),
            ("8, 17000000", "from 1 to 16,777,216, got 17000000"),
            ("8 x 2, 1" + "0" * 5000, "from 1 to 16,777,216, got 10"),
            ("8 x 0", "at least one level and at most 256"),
            (f"8 x {10**9}", "at least one level and at most 256"),
        ],
    )
    def test_impossible_levels(self, levels: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            parse_code_group(f"stride 4: {levels}")


class TestErrors:
    @pytest.mark.parametrize("config", [SQVAEConfig, HQVAEConfig])
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"decoder_variance": "fixed"}, "decoder_variance must be one of 'batch', 'learned', got 'fixed'"),
            ({"codebook_update": "sgd"}, "codebook_update must be one of 'gradient', 'ema', 'linear', got 'sgd'"),
            ({"quantizer": "lfq"}, "quantizer must be one of 'gaussian', .*'vq'.*, got 'lfq'"),
            ({"hidden_size": 1}, "hidden_size must be an integer from 2 to 65,536, got 1"),
            ({"codebook_dim": 0}, "codebook_dim must be an integer from 1 to 65,536, got 0"),
            ({"num_residual_blocks": 0}, "num_residual_blocks must be an integer from 1 to 1,000, got 0"),
            ({"gumbel_temperature": 0}, "gumbel_temperature must be a number above 0 and at most 1e\\+09, got 0"),
            ({"data_variance": 0.0}, "data_variance must be a number above 0 .*, got 0.0"),
            ({"kl_weight": 0}, "kl_weight must be a number above 0 .*, got 0"),
            ({"kl_weight": math.inf}, "kl_weight must be a number above 0 .*, got inf"),
            ({"initial_log_variance": -math.inf}, "initial_log_variance must "),
            ({"ema_decay": 1.0}, "ema_decay must be a number of at least 0 and below 1, got 1.0"),
            ({"codebook_update": "linear"}, "codebook_update='linear' is for quantizer='vq'"),
            (
                {"quantizer": "vq", "codebook_update": "linear", "warmup_epochs": 1, "reestimation_epochs": 1},
                "reestimation_epochs replaces code vectors one by one",
            ),
            ({"restart_threshold": 1.0}, "restart_threshold needs the counts of codebook_update='ema'"),
            ({"warmup_epochs": 2}, "reestimation_epochs, which is 0"),
            ({"image_size": 33}, "instead of 33, use 32 or"),
            ({"image_size": [32, 30]}, "Images of 32×30 do not fit"),
            (
                {"image_size": [32, 32, 3]},
                r"image_size must be an integer .* or a list of them of length 2, got \[32, 32, 3\]",
            ),
            ({"hidden_size": "64"}, "hidden_size must be an integer from 2 to 65,536, got '64'"),
            (
                {"image_size": "32"},
                "image_size must be an integer from 1 to 65,536 or a list of them of length 2, got '32'",
            ),
        ],
    )
    def test_common_fields(self, config: type[SQVAEConfig], fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            config(**fields)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"variance_type": "V"}, "variance_type must be one of 'I', 'II', 'III', 'IV', got 'V'"),
            ({"variance_parametrization": "sum"}, "variance_parametrization must be one of 'released', 'plain'"),
            ({"likelihood": "laplace"}, "likelihood must be one of 'gaussian', 'categorical', 'vmf', got 'laplace'"),
            ({"likelihood": "vmf"}, "num_classes"),
            ({"num_classes": 3}, "num_classes is for label maps"),
            ({"num_downsampling": 0}, "num_downsampling must be an integer from 1 to 16, got 0"),
            ({"codebook_size": 0}, "codebook_size must be an integer from 1 to 16,777,216, got 0"),
            ({"quantizer": "fsq", "fsq_levels": [1, 8]}, "fsq_levels must be a list \\(an integer from 2 to"),
            ({"quantizer": "fsq", "fsq_levels": [4096] * 3}, "The product of fsq_levels, .* got 68719476736"),
            ({"quantizer": "fsq", "codebook_size": 64}, "codebook_size is for codebooks .* by fsq_levels, .* at 1000"),
            ({"quantizer": "fsq", "codebook_dim": 8}, "codebook_dim is for codebooks .* by fsq_levels, .* at 4"),
            ({"quantizer": "fsq", "codebook_update": "ema"}, "models with codes that are learned"),
            ({"quantizer": "fsq", "commitment_weight": 1.0}, "commitment_weight is for quantizer='vq'"),
            ({"quantizer": "fsq", "kl_weight": 0.5}, "kl_weight is for stochastic or continuous models"),
            ({"fsq_levels": [8, 8]}, "fsq_levels is for quantizer='fsq'"),
            (
                {"quantizer": "fsq", "likelihood": "categorical", "num_classes": 3},
                "quantizer='fsq' has no objective for label maps",
            ),
            ({"variance_floor": -1.0}, "variance_floor must be a number from 0 to .*, got -1.0"),
        ],
    )
    def test_single_layer_fields(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            SQVAEConfig(**fields)

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"code_groups": []}, "code_groups must be a list \\(a text each\\) of length 1 to 16, got"),
            ({"code_groups": ["stride 4: 8", "stride 8: 8"]}, "strides of code_groups must fall"),
            ({"code_groups": ["stride 4: 8", "stride 4: 8"]}, "strides of code_groups must fall"),
            ({"code_groups": "stride 4: 8"}, r"code_groups is a list with one line per resolution, got 'stride 4: 8'"),
            (
                {"code_groups": ["stride 4: 8, 9"], "shared_codebook": True},
                "shared_codebook needs equal codebook sizes",
            ),
            (
                {"quantizer": "fsq"},
                "quantizer='fsq' has one code per position, and a hierarchy several: use SQVAEConfig",
            ),
            ({"fsq_levels": [8, 8]}, "fsq_levels: of SQVAEConfig only"),
            ({"quantizer": "vq", "learned_prior": True}, "learned_prior needs quantizer='gaussian'"),
            ({"log_variance_range": [3.0, 3.0]}, r"log_variance_range must be \[smallest, largest\]"),
            ({"initial_log_variance": 9.0}, r"initial_log_variance must lie in log_variance_range"),
        ],
    )
    def test_hierarchical_fields(self, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            HQVAEConfig(**fields)

    def test_nearest_sizes_fit(self) -> None:
        assert check_image_size((32, 48), 16) == (32, 48)
        with pytest.raises(ValueError, match="multiples of 16; instead of 40, use 32 or 48"):
            check_image_size((32, 40), 16)
        with pytest.raises(ValueError, match="instead of 8, use 16"):
            check_image_size(8, 16)


@pytest.mark.parametrize(
    "config",
    [
        SQVAEConfig(image_size=[32, 48], variance_type="III", codebook_size=77, initial_log_variance=-1.5),
        SQVAEConfig(quantizer="fsq", fsq_levels=[3, 7]),
        HQVAEConfig(code_groups=["stride 8: 5 x 2", "stride 2: 7"], progressive=True, log_variance_range=[-3.0, 5.0]),
    ],
)
def test_round_trip_through_a_file(config: SQVAEConfig | HQVAEConfig, tmp_path: Any) -> None:
    config.save_pretrained(tmp_path)
    again = type(config).from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict()
    assert again.stride == config.stride == (4 if config.model_type == "sq_vae" else 8)


def test_fsq_levels_decide_the_codebook() -> None:
    config = SQVAEConfig(quantizer="fsq", fsq_levels=[7, 5, 2])
    assert (config.codebook_size, config.codebook_dim) == (70, 3)
    assert SQVAEConfig(quantizer="fsq", codebook_size=1000, codebook_dim=4).fsq_levels == (8, 5, 5, 5)


def test_stride_is_that_of_the_coarsest_grid() -> None:
    assert SQVAEConfig(num_downsampling=3).stride == 8
    assert HQVAEConfig(code_groups=["stride 16: 4", "stride 2: 4"]).stride == 16


@pytest.mark.parametrize(
    ("config", "name", "hint"),
    [
        (SQVAEConfig, "codebok_size", "Did you mean codebook_size"),
        (HQVAEConfig, "code_group", "Did you mean code_groups"),
        (HQVAEConfig, "codebook_size", "write the sizes into code_groups"),
    ],
)
def test_misspelt_fields_are_refused(config: type, name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        config(**{name: 3})


def test_fields_of_transformers_itself_pass() -> None:
    assert SQVAEConfig(architectures=["SQVAEModel"], custom_pipelines={}, some_new_field=1).codebook_size == 512


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (
            SQVAEConfig,
            {"quantizer": "vmf", "warmup_epochs": 2, "reestimation_epochs": 2},
            "warmup_epochs is for quantizer=.vq. or .gaussian.",
        ),
        (
            SQVAEConfig,
            {"quantizer": "none", "codebook_update": "ema"},
            "codebook_update is for models with codes that are learned, else",
        ),
        (SQVAEConfig, {"quantizer": "vq", "bottleneck_gradient": "straight_through"}, "is for stochastic quantizers"),
        (HQVAEConfig, {"quantizer": "vq", "variance_update": "residual"}, "is for stochastic quantizers"),
        (HQVAEConfig, {"variance_factor": 2.0}, "variance_factor is for variance_update='residual'"),
        (HQVAEConfig, {"variance_update": "residual", "train_variance": False}, "with variance_update='trained'"),
        (SQVAEConfig, {"variance_update": "residual", "variance_type": "II"}, "variance_type 'II' has a network"),
        (SQVAEConfig, {"data_variance": 2.0}, "data_variance is for quantizer='vq'"),
        (SQVAEConfig, {"quantizer": "vq", "kl_weight": 0.5}, "kl_weight is for stochastic or continuous models"),
        (SQVAEConfig, {"initial_log_concentration": 1.0}, "initial_log_concentration is for quantizer='vmf'"),
        (SQVAEConfig, {"initial_decoder_log_variance": 1.0}, "is for decoder_variance='learned'"),
        (SQVAEConfig, {"decoder_variance": "learned", "min_decoder_variance": 0.1}, "with decoder_variance='batch'"),
        (
            SQVAEConfig,
            {"quantizer": "vq", "min_decoder_variance": 0.1},
            "is for stochastic or continuous models of images",
        ),
        (SQVAEConfig, {"quantizer": "vq", "variance_floor": 1.0}, "variance_floor is for quantizer='gaussian'"),
        (SQVAEConfig, {"quantizer": "vq", "train_variance": False}, "train_variance is for stochastic quantizers"),
        (
            HQVAEConfig,
            {"quantizer": "vq", "ema_decay": 0.5},
            "ema_decay is for codebook_update='ema'",
        ),
        (
            SQVAEConfig,
            {"quantizer": "vq", "reservoir_size": 5},
            "reservoir_size is for quantizer=.vq. or .gaussian. with reestimation_epochs",
        ),
        (
            SQVAEConfig,
            {"warmup_epochs": 1, "reestimation_epochs": 1, "codebook_size": 64, "reservoir_size": 63},
            "at least the 64 codes of the largest codebook",
        ),
        (
            HQVAEConfig,
            {"warmup_epochs": 1, "reestimation_epochs": 1, "code_groups": ["stride 4: 8, 32"], "reservoir_size": 9},
            "at least the 32 codes of the largest codebook",
        ),
        (SQVAEConfig, {"quantizer": "none", "gumbel_decay": 0.1}, "gumbel_decay is for stochastic quantizers"),
        (SQVAEConfig, {"quantizer": "none", "codebook_learning_rate_factor": 3.0}, "learned by gradient"),
        (SQVAEConfig, {"quantizer": "none", "commitment_weight": 1.0}, "leave it at 0.25"),
        (SQVAEConfig, {"quantizer": "vq", "variance_type": "IV"}, "variance_type is for quantizer='gaussian'"),
        (SQVAEConfig, {"quantizer": "vmf", "dequantization_noise": True}, "is for quantizer='gaussian'"),
        (
            SQVAEConfig,
            {"quantizer": "vq", "decoder_variance": "learned"},
            "decoder_variance is for stochastic or continuous models of images",
        ),
        (SQVAEConfig, {"likelihood": "vmf", "num_classes": 3, "decoder_variance": "learned"}, "models of images"),
        (
            SQVAEConfig,
            {"quantizer": "vq", "codebook_update": "ema", "codebook_learning_rate_factor": 10},
            "codebooks learned by gradient, not by moving averages",
        ),
        (
            HQVAEConfig,
            {"variance_type": "IV", "dequantization_noise": True},
            "variance_type, dequantization_noise: of SQV",
        ),
        (SQVAEConfig, {"gumbel_min_temperature": 2.0}, "at most gumbel_temperature 1.0, got 2.0"),
        (SQVAEConfig, {"gumbel_decay": math.nan}, "gumbel_decay must be a number from 0 to .*, got nan"),
        (SQVAEConfig, {"codebook_init_std": -1.0}, "codebook_init_std must be a number from 0 to .*, got -1.0"),
    ],
)
def test_fields_that_would_do_nothing_or_harm_are_refused(config: type, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**fields)


@pytest.mark.parametrize(("config", "other"), [(SQVAEConfig, HQVAEConfig), (HQVAEConfig, SQVAEConfig)])
def test_a_kind_of_tokenizer_refuses_the_fields_of_the_other(config: Any, other: Any) -> None:
    """All of them: as unknown names they would be kept, saved, and have no effect."""
    own, others = ({field.name for field in dataclasses.fields(each)} for each in (config, other))
    assert others - own
    for name in others - own:
        with pytest.raises(ValueError, match=f"{name}: of {other.__name__} only|no single codebook_size"):
            config(**{name: getattr(other(), name)})


def test_a_preset_of_a_single_layer_has_no_beam() -> None:
    with pytest.raises(ValueError, match=r"beam_width: of HQVAEConfig only \(presets rsq_vae"):
        sq_vae("mnist", beam_width=4)

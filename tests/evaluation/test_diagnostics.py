from __future__ import annotations

import math
import shlex
from pathlib import Path

import pytest

from hq_tokenizers.evaluation.diagnostics import SYMPTOMS, Finding, diagnose
from hq_tokenizers.models.configuration_hq_vae import HQVAEConfig
from hq_tokenizers.models.configuration_sq_vae import SQVAEConfig
from hq_tokenizers.models.presets import TUNED, hybrid_vae, rsq_vae, sq_vae_2
from hq_tokenizers.options.reading import load_options
from hq_tokenizers.options.training import TokenizerTrainingConfig

PAPER = {
    "bottleneck_gradient": "pathwise",
    "codebook_update": "gradient",
    "codebook_learning_rate_factor": 1.0,
    "variance_update": "trained",
    "initial_log_variance": math.log(60),
    "kl_weight": 1.0,
}


def figures(perplexity, active, entropy, variance, sizes=(512,) * 4, **others):
    """Figures of a split with these codebook sizes; levels halve the energy, codes are where they are needed."""
    levels = list(zip(perplexity, active, sizes, strict=False))
    given = [2.0**-level for level in range(len(levels))]
    return {
        "perplexity": perplexity,
        "usage": [exp_entropy / size for exp_entropy, _, size in levels],
        "active_codes": active,
        "dead_rate": [1 - used / size for _, used, size in levels],
        "entropy": entropy,
        "variance": variance,
        "latent_energy": [1.0] * len(levels),
        "residual_energy": [energy / 2 for energy in given],
        "codebook_energy": [energy / 2 for energy in given],
        "mse": 0.01,
        "mse_argmax": 0.01,
        "mse_relaxed": 0.009,
        "mse_sampled": 0.011,
        "temperature": 0.9,
        **others,
    }


def symptoms(found):
    return [(finding.levels, finding.symptom) for finding in found]


def applied(config, finding):
    """The configuration after what the finding says, read as the command line reads it."""
    options = load_options(TokenizerTrainingConfig, None, shlex.split(finding.remedy)).model
    return type(config)(**{**config.to_dict(), **options})


def test_a_healthy_tokenizer_has_no_findings():
    healthy = figures([400.0, 300.0], [510, 500], [2.0, 3.0], [0.5, 0.6])
    for config in (PAPER, TUNED, {"quantizer": "vq"}):
        assert diagnose(HQVAEConfig(code_groups=["stride 4: 512 x 2"], **config), [512, 512], healthy) == []


def test_a_split_of_few_vectors_does_not_make_codes_dead():
    """Twenty images of 64 positions for 1,024 codes: uniform use of all would show 731 of them."""
    config = SQVAEConfig(**TUNED, codebook_size=1024)
    seen = figures([254.5], [410], [0.1], [0.01], sizes=(1024,))
    assert symptoms(diagnose(config, [1024], {**seen, "num_images": 200})) == [((0,), "dead codes")]
    assert diagnose(config, [1024], {**seen, "num_images": 20}) == []
    gone = figures([6.0], [9], [0.1], [0.01], sizes=(1024,))
    assert symptoms(diagnose(config, [1024], {**gone, "num_images": 20})) == [((0,), "collapsed")]
    fine = HQVAEConfig(**TUNED, code_groups=["stride 8: 1024", "stride 4: 1024"])
    both = figures([254.5, 254.5], [410, 410], [0.1, 0.1], [0.01, 0.01], sizes=(1024, 1024))
    assert [f.levels for f in diagnose(fine, [1024] * 2, {**both, "num_images": 160})] == [(1,)]


def test_figures_of_other_levels_are_refused():
    with pytest.raises(ValueError, match=r"figures are of 4 levels, codebook_sizes are \[512\]"):
        diagnose(
            HQVAEConfig(code_groups=["stride 4: 512"]), [512], figures([400.0] * 4, [510] * 4, [2.0] * 4, [0.5] * 4)
        )


def test_a_whole_report_is_no_figures():
    report = {"test": figures([400.0], [510], [2.0], [0.5]), "steps": 300}
    with pytest.raises(ValueError, match="no 'perplexity': give those of one split"):
        diagnose(SQVAEConfig(), [512], report)


def test_figures_without_relaxed_samples_are_refused_where_they_are_drawn():
    measured = figures([400.0, 300.0], [510, 500], [2.0, 3.0], [0.5, 0.6])
    without = {name: value for name, value in measured.items() if name not in ("mse_relaxed", "temperature")}
    groups = ["stride 4: 512 x 2"]
    assert diagnose(HQVAEConfig(code_groups=groups, **TUNED), [512, 512], without) == []
    with pytest.raises(ValueError, match="trained without relaxed samples"):
        diagnose(HQVAEConfig(code_groups=groups, **PAPER), [512, 512], without)


def test_a_vae_has_nothing_to_diagnose():
    assert diagnose(SQVAEConfig(quantizer="none"), [], {"loss": 1.0}) == []


NEWCOMER = {
    "perplexity": [14.64, 26.23],
    "active": [54, 90],
    "entropy": [4.398, 4.501],
    "variance": [44.78, 44.33],
    "sizes": (128, 128),
    "latent_energy": [8.036, 8.036],
    "residual_energy": [5.849, 4.498],
    "codebook_energy": [1.095, 1.089],
    "mse_argmax": 0.03979,
    "mse_relaxed": 0.006567,
    "mse_sampled": 0.01655,
    "temperature": 0.997,
}
"""Measured: two levels of 128 codes with the paper's settings after 300 steps on photographs of 64×64 pixels."""


def test_the_newcomer_is_told_of_variance_and_codebook_and_of_nothing_else():
    config = HQVAEConfig(code_groups=["stride 4: 128 x 2"], **PAPER)
    wide, behind = diagnose(config, [128, 128], figures(**NEWCOMER))
    assert symptoms([wide, behind]) == [((0, 1), "variance too large"), ((0, 1), "codebook left behind")]
    assert wide.remedy == "--model.initial_log_variance 1.61"
    assert behind.remedy == "--model.codebook_learning_rate_factor 30"
    assert "variance 44.8 where 5.85 is left over" in str(wide)
    assert "perplexity 14.6 of 128, 5.85 of 8.04 per value left over, code vectors at 1.09" in str(behind)
    assert str(behind).count("\n") == 1


def test_what_is_set_already_is_not_advised():
    config = HQVAEConfig(code_groups=["stride 4: 128 x 2"], **{**PAPER, **TUNED})
    (finding,) = diagnose(config, [128, 128], figures(**NEWCOMER))
    assert (finding.symptom, finding.settings) == ("dead codes", {})
    (finding,) = diagnose(HQVAEConfig(**{**config.to_dict(), "kl_weight": 1.0}), [128, 128], figures(**NEWCOMER))
    assert finding.settings == {"kl_weight": TUNED["kl_weight"]}


DRIFTED = figures(
    [46.34, 43.81, 47.56, 52.04],
    *([128] * 4, [0.046, 0.307, 0.435, 0.579], [0.127, 0.082, 0.061, 0.047], (128,) * 4),
    latent_energy=[0.979] * 4,
    residual_energy=[0.407, 0.260, 0.189, 0.146],
    codebook_energy=[1.247, 0.444, 0.198, 0.115],
    mse=0.000723,
)
"""Measured: rsq_vae without a floor on MNIST after five epochs."""


def test_latents_that_drift_away_are_held():
    presets = rsq_vae("mnist"), rsq_vae("mnist", min_decoder_variance=0.0)
    assert diagnose(presets[0], [128] * 4, DRIFTED) == []
    (finding,) = diagnose(presets[1], [128] * 4, DRIFTED)
    assert symptoms([finding]) == [((0, 1, 2, 3), "latents drift away")]
    assert finding.remedy == "--model.min_decoder_variance 0.005"
    assert finding.measured == "15% of their energy left over by all levels, mean squared error 0.000723"
    assert diagnose(applied(presets[1], finding), [128] * 4, DRIFTED) == []


def test_latents_of_the_grids_that_drift_away_are_held():
    """Measured: sq_vae_2 without a floor on MNIST after five epochs; then the finer grid as it is with the floor."""
    drifted = figures(
        *([59.58, 27.41], [128, 128], [0.559, 0.634], [0.2588, 0.189], (128, 128)),
        latent_energy=[0.971, 0.911],
        residual_energy=[0.249, 0.1685],
        codebook_energy=[1.764, 5.54],
        mse=0.000163,
    )
    config = sq_vae_2("mnist", min_decoder_variance=0.0)
    (finding,) = diagnose(config, [128] * 2, drifted)
    assert symptoms([finding]) == [((0, 1), "latents drift away")]
    assert finding.remedy == "--model.min_decoder_variance 0.001"
    left_over = "left over 26% of its grid's energy by level 1, 18% of its grid's energy by level 2"
    assert finding.measured == f"{left_over}, mean squared error 0.000163"
    assert diagnose(sq_vae_2("mnist"), [128] * 2, drifted) == []
    (finding,) = diagnose(config, [128] * 2, {**drifted, "residual_energy": [0.249, 0.0165]})
    assert symptoms([finding]) == [((0,), "latents drift away")]
    hybrid = hybrid_vae("mnist", min_decoder_variance=0.0)
    (finding,) = diagnose(hybrid, [128] * 4, {**DRIFTED, "mse": 0.0005})
    assert symptoms([finding]) == [((0, 1, 2, 3), "latents drift away")]
    assert finding.measured.startswith(
        "left over 27% of its grid's energy by level 2, 15% of its grid's energy by level 4"
    )


@pytest.mark.parametrize(
    ("fields", "measured"),
    [
        ({"decoder_variance": "learned"}, {}),
        ({"variance_update": "trained"}, {}),
        ({"modality": "sound"}, {}),
        ({}, {"mse": 0.006}),
        # Several grids, whose floor is lower.
        ({"code_groups": ["stride 4: 128 x 2", "stride 2: 128 x 2"]}, {"mse": 0.0011}),
        # CIFAR-10 after five epochs: a fifth left over.
        ({}, {"residual_energy": [0.21, 0.1, 0.06, 0.04], "mse": 0.0012}),
    ],
)
def test_what_is_held_otherwise_or_not_far_away_is_left_alone(fields, measured):
    config = rsq_vae("mnist", **{"min_decoder_variance": 0.0, **fields})
    assert "latents drift away" not in dict(
        map(reversed, symptoms(diagnose(config, [128] * 4, {**DRIFTED, **measured})))
    )


def test_a_quick_codebook_is_not_called_left_behind():
    """Measured: only the variance and the codebook rate are other than the newcomer's."""
    measured = figures(
        *([100.7, 95.15], [128, 128], [3.392, 4.2], [5.895, 4.501], (128, 128)),
        latent_energy=[1.023] * 2,
        residual_energy=[0.4641, 0.7377],
        codebook_energy=[1.087, 0.79],
        mse_argmax=0.004261,
        mse_relaxed=0.003856,
    )
    knobs = {**PAPER, "initial_log_variance": 1.6, "codebook_learning_rate_factor": 30.0}
    (finding,) = diagnose(HQVAEConfig(code_groups=["stride 4: 128 x 2"], **knobs), [128, 128], measured)
    assert symptoms([finding]) == [((1,), "variance too large")]


def test_a_codebook_at_its_initial_scale_with_a_fitting_variance_is_left_behind():
    """Measured: the newcomer's run from a variance of exp 1.6."""
    measured = figures(
        *([45.21, 84.6], [107, 123], [3.56, 3.517], [5.292, 4.626], (128, 128)),
        latent_energy=[0.7881] * 2,
        residual_energy=[0.9854, 1.253],
        codebook_energy=[0.9606, 0.9554],
        mse_argmax=0.006667,
        mse_relaxed=0.005163,
    )
    config = HQVAEConfig(code_groups=["stride 4: 128 x 2"], **{**PAPER, "initial_log_variance": 1.6})
    assert symptoms(diagnose(config, [128, 128], measured)) == [((0, 1), "codebook left behind")]
    moved = {**measured, "codebook_energy": [0.5, 0.5]}
    assert [symptom for _, symptom in symptoms(diagnose(config, [128, 128], moved))] == ["starved"]


def together(variance_update):
    """The settings of the presets, in full."""
    return (
        "--model.normalize_latents true --model.bottleneck_gradient straight_through --model.codebook_update ema "
        f"--model.ema_warmup true --model.restart_threshold 0.5{variance_update} --model.kl_weight 0.05"
    )


TIED = together(" --model.variance_update residual")
NETWORK = f"{together('')} --model.variance_parametrization plain --model.initial_log_variance -2"


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        (SQVAEConfig(), "--model.initial_log_variance 1.61"),
        (SQVAEConfig(variance_type="III", codebook_init_std=0.1), "--model.initial_log_variance -3"),
        (SQVAEConfig(initial_log_variance=1.0), TIED),
        (SQVAEConfig(initial_log_variance=1.0, variance_type="III"), NETWORK),
        (
            SQVAEConfig(initial_log_variance=1.0, train_variance=False, codebook_learning_rate_factor=30.0),
            f"{TIED} --model.codebook_learning_rate_factor 1 --model.train_variance true",
        ),
        (SQVAEConfig(quantizer="vmf", codebook_dim=65), TIED),
        (SQVAEConfig(variance_update="residual", variance_factor=7.0), "--model.variance_factor 1"),
    ],
)
def test_a_variance_that_is_too_large(config, remedy):
    (finding,) = diagnose(config, [512], figures([20.0], [30], [6.0], [9.0]))
    assert (finding.symptom, finding.remedy) == ("variance too large", remedy)
    assert diagnose(applied(config, finding), [512], figures([400.0], [500], [4.0], [1.5])) == []


def test_kl_too_strong_is_an_entropy_that_the_variance_does_not_explain():
    config, measured = SQVAEConfig(**{**TUNED, "kl_weight": 1.0}), figures([300.0], [400], [5.6], [1.5])
    (finding,) = diagnose(config, [512], measured)
    assert (finding.symptom, finding.remedy) == ("kl too strong", "--model.kl_weight 0.05")
    assert diagnose(SQVAEConfig(**TUNED), [512], measured) == []


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        ({"variance_update": "trained"}, "--model.variance_update residual"),
        ({}, "--model.progressive true"),
        ({"kl_weight": 1.0}, "--model.kl_weight 0.05"),
        ({"progressive": True, "restart_threshold": 0.0}, "--model.restart_threshold 0.5"),
        ({"progressive": True}, "longer training (--epochs), or fewer codes (--model.codebook_size)"),
    ],
)
def test_deep_levels_that_take_nothing_away_are_starved(config, remedy):
    measured = figures([300.0] * 4, [400] * 4, [4.0] * 4, [0.6] * 4)
    measured |= {"latent_energy": [1.67] * 4, "residual_energy": [0.51, 0.5, 0.51, 0.45]}
    (finding,) = diagnose(HQVAEConfig(code_groups=["stride 4: 512 x 4"], **{**TUNED, **config}), [512] * 4, measured)
    assert symptoms([finding]) == [((1, 2), "starved")]
    assert finding.remedy == remedy
    # Whose figure is which, counting from 1.
    assert finding.measured == "level 2: 0.5 of 0.51 per value left over; level 3: 0.51 of 0.5 per value left over"
    measured["residual_energy"] = [0.51, 0.5, 0.51, 0.5]
    (finding,) = diagnose(HQVAEConfig(code_groups=["stride 4: 512 x 4"], **{**TUNED, **config}), [512] * 4, measured)
    assert finding.measured.endswith("; level 4: 0.5 of 0.51 per value left over")
    assert finding.measured.count("level") == 3


def test_the_first_level_of_every_group_is_given_the_groups_own_latents():
    config = HQVAEConfig(code_groups=["stride 8: 512", "stride 4: 512"], **TUNED)
    measured = figures([300.0] * 2, [400] * 2, [4.0] * 2, [0.6] * 2)
    measured |= {"latent_energy": [1.0, 9.0], "residual_energy": [0.4, 3.0]}
    assert diagnose(config, [512] * 2, measured) == []


@pytest.mark.parametrize(
    ("fields", "temperature", "expected"),
    [
        ({"gumbel_decay": 1e-5}, math.exp(-0.003), {"gumbel_decay": 0.0023}),  # after 300 steps: exp(−300 · 0.0023) = ½
        ({"gumbel_decay": 1e-5}, 1.0, {"gumbel_decay": 1e-3}),
        ({"gumbel_decay": 0.0}, 1.0, {"gumbel_decay": 1e-3}),
        ({"gumbel_min_temperature": 0.8}, 0.8, {"gumbel_min_temperature": 0.0}),
        ({}, 0.4, {"bottleneck_gradient": "straight_through"}),
    ],
)
def test_temperature_gap(fields, temperature, expected):
    config = SQVAEConfig(**{**TUNED, "bottleneck_gradient": "pathwise", **fields})
    measured = figures([300.0], [400], [3.0], [0.6], mse_relaxed=0.005, temperature=temperature)
    (finding,) = diagnose(config, [512], measured)
    assert (finding.symptom, finding.settings) == ("temperature gap", expected)
    assert "0.005 from relaxed samples, 0.01 from codes" in finding.measured


def test_where_training_decodes_codes_there_is_no_gap():
    measured = figures([300.0], [400], [3.0], [0.6])
    without = {name: value for name, value in measured.items() if name not in ("mse_relaxed", "temperature")}
    assert diagnose(SQVAEConfig(**TUNED), [512], without) == []


def test_a_fixed_grid_that_is_not_filled():
    (finding,) = diagnose(SQVAEConfig(quantizer="fsq"), [1000], figures([9.0], [9], [0.0], [0.0], (1000,)))
    assert (finding.symptom, finding.settings) == ("collapsed", {})
    assert "the latents do not fill" in finding.cause


def test_the_gap_of_label_maps_is_one_of_wrong_pixels():
    config = SQVAEConfig(likelihood="categorical", num_classes=5, **{**TUNED, "bottleneck_gradient": "pathwise"})
    measured = figures([300.0], [400], [3.0], [0.6])
    del measured["mse_argmax"]
    accuracies = {"pixel_accuracy_argmax": 0.9, "pixel_accuracy_sampled": 0.9}
    assert diagnose(config, [512], measured | accuracies | {"pixel_accuracy_relaxed": 0.92}) == []
    (finding,) = diagnose(config, [512], measured | accuracies | {"pixel_accuracy_relaxed": 0.95})
    assert finding.symptom == "temperature gap"


@pytest.mark.parametrize(
    ("perplexity", "active", "symptom"), [(20.0, 30, "collapsed"), (200.0, 210, "dead codes"), (400.0, 480, None)]
)
def test_a_vq_vae_is_told_one_remedy_after_the_other(perplexity, active, symptom):
    config = SQVAEConfig(quantizer="vq", codebook_learning_rate_factor=10.0)
    remedies = []
    for _ in range(4 if symptom else 0):
        (finding,) = diagnose(config, [512], figures([perplexity], [active], [0.0], [0.0]))
        assert finding.symptom == symptom
        assert f"{active:.0f} active of 512" in str(finding)
        remedies += [finding.settings]
        config = applied(config, finding)
    assert [next(iter(settings)) for settings in remedies] == (
        ["codebook_update", "bottleneck_batch_norm", "warmup_epochs", "quantizer"] if symptom else []
    )
    if symptom:
        assert config.is_stochastic
        assert (config.warmup_epochs, config.reestimation_epochs) == (2, 2)  # stochastic codes can have them, too
    else:
        assert diagnose(config, [512], figures([perplexity], [active], [0.0], [0.0])) == []


def test_only_levels_of_coarser_groups_are_blamed_on_finer_ones():
    config = HQVAEConfig(code_groups=["stride 8: 512 x 2", "stride 4: 512"])
    measured = figures([5.0] * 3, [9] * 3, [0.5] * 3, [0.1] * 3, residual_energy=[0.5, 0.25, 0.5])
    coarse, fine = diagnose(config, [512] * 3, measured)
    assert (coarse.levels, coarse.remedy) == ((0, 1), "--model.progressive true")
    assert "finer groups" in coarse.cause
    assert (fine.levels, fine.remedy) == ((2,), "--model.codebook_learning_rate_factor 30")


@pytest.mark.parametrize(("low", "high"), [(-14.0, 8.0), (-6.0, 6.0), (-13.0, 1.0)])
def test_the_two_ends_of_the_range_have_different_causes(low, high):
    config = HQVAEConfig(code_groups=["stride 4: 512"], log_variance_range=[low, high], initial_log_variance=0.0)
    for end, cause in ((low, "deterministic"), (high, "inflates")):
        (finding,) = diagnose(config, [512], figures([300.0], [512], [2.0], [math.exp(end)]))
        assert finding.symptom == "variance at its bound"
        assert cause in finding.cause
        assert applied(config, finding) is not None
    assert diagnose(config, [512], figures([300.0], [512], [2.0], [math.exp(high - 0.1)])) == []


def test_a_level_that_needs_few_codes_of_a_shared_codebook_is_not_called_untrained():
    levels = figures([40.0, 400.0], [45, 500], [0.0, 0.0], [0.0, 0.0])
    for shared, cause in ((True, "share one codebook"), (False, "never nearest")):
        config = HQVAEConfig(code_groups=["stride 4: 512 x 2"], quantizer="vq", shared_codebook=shared)
        (finding,) = diagnose(config, [512, 512], levels)
        assert symptoms([finding]) == [((0,), "collapsed")]
        assert cause in finding.cause
    # Where no level uses it, it is untrained, shared or not.
    config = HQVAEConfig(code_groups=["stride 4: 512 x 2"], quantizer="vq", shared_codebook=True)
    (finding,) = diagnose(config, [512, 512], figures([4.0, 5.0], [9, 9], [0.0, 0.0], [0.0, 0.0]))
    assert finding.levels == (0, 1)
    assert "never nearest" in finding.cause


def test_a_codebook_is_shared_within_its_group_only():
    config = HQVAEConfig(code_groups=["stride 8: 512 x 2", "stride 4: 512 x 2"], quantizer="vq", shared_codebook=True)
    found = diagnose(config, [512] * 4, figures([5.0, 5.0, 400.0, 400.0], [9, 9, 500, 500], [0.0] * 4, [0.0] * 4))
    assert [finding.levels for finding in found] == [(0, 1)]
    assert "never nearest" in found[0].cause


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (({}, [512], {}), TypeError, "config must be that of a tokenizer, as model.config, got dict"),
        ((SQVAEConfig(), [512], None), TypeError, "figures must be a dictionary, 'test' of report.json, got NoneType"),
        ((SQVAEConfig(), 512, {}), ValueError, "codebook_sizes must be a list .*, got 512"),
        ((SQVAEConfig(), ["512"], {}), ValueError, r"codebook_sizes must be a list .*, got \['512'\]"),
        ((SQVAEConfig(), [-512], {}), ValueError, r"codebook_sizes must be a list .*, got \[-512\]"),
    ],
)
def test_what_cannot_be_diagnosed_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        diagnose(*arguments)


def test_every_symptom_has_its_section_in_the_page_that_messages_name():
    text = (Path(__file__).resolve().parents[2] / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    # GitHub and the site make the same anchors of headings of words.
    anchors = {line.removeprefix("## ").lower().replace(" ", "-") for line in text.splitlines() if line[:3] == "## "}
    for symptom in SYMPTOMS:
        finding = Finding((0,), symptom, "measured", "cause", {"progressive": True})
        page, _, anchor = finding.page.partition("#")
        assert page == "docs/troubleshooting.md"
        assert anchor in anchors
        assert str(finding).endswith(f"Try: --model.progressive true ({finding.page}).")
        assert finding.to_dict()["page"] == finding.page

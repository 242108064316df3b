"""Tokenizers of sound: padding changes nothing, networks are the paper's, speakers reach the decoder only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hq_tokenizers.codes import CodeGroup
from hq_tokenizers.evaluation_mode import evaluation_mode
from hq_tokenizers.feature_extraction_hq import HQFeatureExtractor
from hq_tokenizers.models.checkpointed_layers import enable_gradient_checkpointing
from hq_tokenizers.models.configuration_hq_vae import HQVAEConfig
from hq_tokenizers.models.configuration_sq_vae import SQVAEConfig
from hq_tokenizers.models.modeling_hq_vae import HQVAEModel
from hq_tokenizers.models.modeling_sq_vae import SQVAEModel
from hq_tokenizers.models.networks import Projection

BANDS = 8
LENGTHS = (16, 8, 13)
SMALL: dict[str, Any] = {"modality": "sound", "hidden_size": 6, "codebook_dim": 4, "codebook_init_std": 0.1}
IMAGES: dict[str, Any] = {**SMALL, "image_size": [BANDS, 16], "num_channels": 1}
SEQUENCES: dict[str, Any] = {
    **SMALL,
    "grid_dims": 1,
    "image_size": [1, 16],
    "num_channels": BANDS,
    "num_downsampling": 1,
    "recurrent_size": 5,
}
EMA = {"codebook_update": "ema", "restart_threshold": 0.1}
ROBUST = {"bottleneck_batch_norm": True, "warmup_epochs": 1, "reestimation_epochs": 1, "reservoir_size": 64}
HIERARCHY = {**IMAGES, "code_groups": ["stride 4: 9 x 2", "stride 2: 7"]}
LINE = {key: value for key, value in SEQUENCES.items() if key != "num_downsampling"} | {
    "code_groups": ["stride 2: 9 x 3"]
}

SYSTEMS = {
    **{
        f"sq_vae {kind}": SQVAEConfig(**IMAGES, codebook_size=9, variance_type=kind)
        for kind in ("I", "II", "III", "IV")
    },
    "sequence IV": SQVAEConfig(**SEQUENCES, codebook_size=9, variance_type="IV"),
    "speakers": SQVAEConfig(**SEQUENCES, codebook_size=9, num_speakers=3, speaker_dim=2),
    "ema": SQVAEConfig(**IMAGES, codebook_size=9, **EMA),
    "residual variance": SQVAEConfig(**SEQUENCES, codebook_size=9, variance_update="residual"),
    "learned sigma": SQVAEConfig(**IMAGES, codebook_size=9, decoder_variance="learned"),
    "vmf": SQVAEConfig(**IMAGES, codebook_size=9, quantizer="vmf"),
    "vq": SQVAEConfig(**SEQUENCES, codebook_size=9, quantizer="vq"),
    "vq ema": SQVAEConfig(**IMAGES, codebook_size=9, quantizer="vq", codebook_update="ema"),
    "robust": SQVAEConfig(**IMAGES, codebook_size=9, quantizer="vq", **ROBUST),
    "fsq": SQVAEConfig(**{k: v for k, v in IMAGES.items() if "codebook" not in k}, quantizer="fsq", fsq_levels=[5, 3]),
    "vae": SQVAEConfig(**IMAGES, quantizer="none"),
    "hybrid": HQVAEConfig(**HIERARCHY),
    "progressive": HQVAEConfig(**HIERARCHY, progressive=True, learned_prior=True),
    "rsq sequence": HQVAEConfig(**LINE),
    "rq": HQVAEConfig(**IMAGES, code_groups=["stride 4: 9 x 2"], quantizer="vq", codebook_update="ema"),
}


def build(config: SQVAEConfig | HQVAEConfig) -> SQVAEModel | HQVAEModel:
    torch.manual_seed(0)
    model = SQVAEModel(config) if isinstance(config, SQVAEConfig) else HQVAEModel(config)
    with torch.no_grad():
        for module in model.modules():
            # Latents of the released initialisation are all but 0: one code would be nearest to all.
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and not isinstance(module, Projection):
                module.weight.mul_(15)
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.bias.normal_(0, 0.3)
    return model


def inputs(config: SQVAEConfig | HQVAEConfig, width: int, filler: float = 0.0) -> dict[str, torch.Tensor]:
    """Three sounds, padded to a width with any value."""
    generator = torch.Generator().manual_seed(1)
    shape = (config.num_channels, config.image_size[0])
    values = torch.full((len(LENGTHS), *shape, width), filler)
    mask = torch.zeros(len(LENGTHS), width, dtype=torch.long)
    for item, length in enumerate(LENGTHS):
        values[item, ..., :length] = torch.randn(*shape, max(LENGTHS), generator=generator)[..., :length]
        mask[item, :length] = 1
    batch = {"pixel_values": values, "attention_mask": mask}
    if config.num_speakers:
        batch["speaker_ids"] = torch.tensor([2, 0, 1])
    return batch


def alone(batch: dict[str, torch.Tensor], item: int) -> dict[str, torch.Tensor]:
    """One sound, padded to whole positions only."""
    width = -(-LENGTHS[item] // 4) * 4
    return {
        "pixel_values": batch["pixel_values"][item : item + 1, ..., :width],
        "attention_mask": batch["attention_mask"][item : item + 1, :width],
        **{name: value[item : item + 1] for name, value in batch.items() if name == "speaker_ids"},
    }


@pytest.mark.parametrize("name", SYSTEMS)
def test_an_item_of_a_padded_batch_is_what_it_is_alone(name: str) -> None:
    config = SYSTEMS[name]
    model = build(config).eval()
    batch = inputs(config, 28, filler=7.0)
    together = model(**batch)
    losses = []
    for item, length in enumerate(LENGTHS):
        single = model(**alone(batch, item))
        width = single.reconstruction.shape[-1]
        difference = together.reconstruction[item, ..., :length] - single.reconstruction[0, ..., :length]
        assert difference.abs().max() < 1e-5
        assert not together.reconstruction[item, ..., length:].any()
        losses.append(single.terms)
        if config.has_codes:
            encoded = model.encode(batch["pixel_values"], attention_mask=batch["attention_mask"])
            assert encoded == together.codes
            for all_items, own in zip(together.codes.groups, single.codes.groups, strict=True):
                assert torch.equal(all_items[item, :, : own.shape[2]], own[0])
                assert not all_items[item, :, own.shape[2] :].any()
            speakers = {key: value for key, value in batch.items() if key == "speaker_ids"}
            decoded = model.decode(together.codes, attention_mask=batch["attention_mask"], **speakers)
            torch.testing.assert_close(decoded, together.reconstruction, rtol=0, atol=1e-5)
        assert width % 4 == 0
    # What sums over positions and averages over items is the mean over the items by themselves.
    for term in ("continuous", "discrete", "kl"):
        if term in together.terms:
            torch.testing.assert_close(together.terms[term], torch.stack([loss[term] for loss in losses]).mean())


@pytest.mark.parametrize("name", SYSTEMS)
def test_training_does_not_depend_on_the_amount_of_padding(name: str) -> None:
    config = SYSTEMS[name]
    states, losses, gradients = [], [], []
    for width, filler in ((16, 0.0), (36, -3.0)):
        model = build(config).train()
        model.start_epoch(0)
        torch.manual_seed(5)
        output = model(**inputs(config, width, filler))
        output.loss.backward()
        losses.append(output.loss.detach())
        states.append({key: value.clone() for key, value in model.state_dict().items()})
        gradients.append({key: value.grad for key, value in model.named_parameters() if value.grad is not None})
        for value in output.diagnostics.values():
            assert value.isfinite().all()
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-4)
    assert gradients[0].keys() == gradients[1].keys()
    for key, value in gradients[0].items():
        torch.testing.assert_close(value, gradients[1][key], rtol=1e-3, atol=1e-3)
    # Moving averages, variances, reservoirs and batch statistics.
    for key, value in states[0].items():
        torch.testing.assert_close(value, states[1][key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["sequence IV", "rsq sequence", "sq_vae I"])
def test_one_second_and_eight_have_the_same_codes_up_to_the_receptive_field(name: str) -> None:
    config = SYSTEMS[name]
    model = build(config).eval()
    front_end = HQFeatureExtractor(
        BANDS, 8000, 80, 200, n_fft=256, mean_db=-30.0, std_db=5.0, grid_dims=config.grid_dims, pad_to_multiple_of=4
    )
    loudness = 0.5 * np.sin(np.arange(64000) / 500) ** 8
    waveform = (loudness * np.random.default_rng(0).normal(size=64000)).astype(np.float32)
    short, long = (
        model.encode(**front_end(samples)).groups[0][0].transpose(0, 1) for samples in (waveform[:8000], waveform)
    )
    # How far a code looks ahead, by its convolutions; and the last frame whose window lies within the second.
    ahead, jump = 0, 1
    encoder = model.encoder if isinstance(model, SQVAEModel) else model.bottom_up
    for layer in encoder.modules():
        if isinstance(layer, nn.Conv2d):
            ahead += (layer.kernel_size[1] - 1 - layer.padding[1]) * jump
            jump *= layer.stride[1]
    assert jump == config.stride
    last = (8000 - 128) // 80
    same = (last - ahead) // jump + 1
    assert 100 / jump * 0.6 < same < 100 / jump
    assert torch.equal(short[:same], long[:same])
    assert len(long[:same].unique()) > 2
    assert not torch.equal(short, long[: len(short)])


def test_without_padding_a_mask_of_ones_changes_nothing() -> None:
    config = SYSTEMS["hybrid"]
    model = build(config).eval()
    values = torch.randn(2, 1, BANDS, 16)
    assert torch.equal(model(values).loss, model(values, attention_mask=torch.ones(2, 16)).loss)


@pytest.mark.parametrize("name", ["sq_vae III", "sequence IV", "hybrid"])
def test_sampled_codes_do_not_depend_on_padding(name: str) -> None:
    config = SYSTEMS[name]
    model = build(config).eval()
    batch = inputs(config, 24)
    mask = batch["attention_mask"]
    together = model.encode(batch["pixel_values"], sample=True, generator=3, attention_mask=mask)
    wider = inputs(config, 40, filler=2.0)
    again = model.encode(wider["pixel_values"], sample=True, generator=3, attention_mask=wider["attention_mask"])
    for first, second in zip(together.groups, again.groups, strict=True):
        assert torch.equal(first, second[:, :, : first.shape[2]])


def test_searched_codes_do_not_depend_on_padding() -> None:
    config = SYSTEMS["hybrid"]
    model = build(config).eval()
    batch, wider = inputs(config, 24), inputs(config, 40, filler=2.0)
    together = model.encode(batch["pixel_values"], attention_mask=batch["attention_mask"], beam_width=3)
    again = model.encode(wider["pixel_values"], attention_mask=wider["attention_mask"], beam_width=3)
    for first, second in zip(together.groups, again.groups, strict=True):
        assert torch.equal(first, second[:, :, : first.shape[2]])
        assert not second[:, :, first.shape[2] :].any()


def test_usage_counts_no_padding() -> None:
    config = SYSTEMS["sequence IV"]
    model = build(config).eval()
    batch = inputs(config, 36)
    output = model(**batch)
    (codes,) = model.code_levels(output.codes, batch["attention_mask"])
    assert codes.shape == (8 + 4 + 7,)
    assert output.diagnostics["active_codes"].item() == len(codes.unique())
    probabilities = torch.bincount(codes) / len(codes)
    entropy = -(probabilities * probabilities.clamp_min(1e-30).log()).sum()
    torch.testing.assert_close(output.diagnostics["perplexity"][0], entropy.exp())


def test_checkpointing_knows_of_the_padding() -> None:
    config = SYSTEMS["hybrid"]
    gradients = []
    for checkpointed in (False, True):
        model = build(config).train()
        if checkpointed:
            enable_gradient_checkpointing(model)
        torch.manual_seed(5)
        model(**inputs(config, 24)).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
        state = model.state_dict()
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second)
    reference = build(config).train()
    torch.manual_seed(5)
    reference(**inputs(config, 24))
    for key, value in reference.state_dict().items():
        torch.testing.assert_close(value, state[key])


def test_the_speech_network_is_a_stack_of_conv1d() -> None:
    """Against `nn.Conv1d` and friends with the same weights: 768 channels, 100 Hz to 50 Hz, as in the paper."""
    config = SYSTEMS["sequence IV"]
    model = build(config).eval()
    layers: list[nn.Module] = []
    for layer in model.encoder.trunk:
        if isinstance(layer, nn.Conv2d):
            own = nn.Conv1d(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size[1],
                layer.stride[1],
                layer.padding[1],
                bias=False,
            )
            own.weight.data.copy_(layer.weight[:, :, 0])
        elif isinstance(layer, nn.BatchNorm2d):
            own = nn.BatchNorm1d(layer.num_features)
            own.load_state_dict(layer.state_dict())
        else:
            own = nn.ReLU()
        layers.append(own.eval())
    kinds = [type(layer).__name__ for layer in layers]
    assert kinds == ["Conv1d", "BatchNorm1d", "ReLU"] * 5
    assert [layer.kernel_size[0] for layer in layers[::3]] == [3, 3, 4, 3, 3]
    sound = torch.randn(2, BANDS, 1, 16)
    features = nn.Sequential(*layers)(sound[:, :, 0])
    expected = features.transpose(1, 2) @ model.encoder.mean_head.weight[:, :, 0, 0].T + model.encoder.mean_head.bias
    latents, log_variance = model.encoder(sound)
    torch.testing.assert_close(latents[:, :, 0].transpose(1, 2), expected)
    assert log_variance.shape == (2, 4, 1, 8)
    assert model.code_layout().groups == (CodeGroup(1, 8, (9,)),)


def test_the_released_speech_encoder_has_as_many_parameters() -> None:
    """sony/sqvae, speech/model.py: Conv1d without bias and BN five times, and a projection to 2 × 64 channels."""
    config = SQVAEConfig(
        modality="sound", grid_dims=1, image_size=[1, 32], num_channels=80, hidden_size=768, num_downsampling=1,
        variance_type="IV",
    )  # fmt: skip
    encoder = SQVAEModel(config).encoder
    convolutions = 768 * (80 * 3 + 768 * (3 + 4 + 3 + 3))
    assert sum(parameter.numel() for parameter in encoder.parameters()) == convolutions + 5 * 2 * 768 + 769 * 128


def test_a_spectrogram_of_four_seconds_has_20_by_86_codes() -> None:
    config = HQVAEConfig(
        modality="sound", image_size=[80, 344], num_channels=1, hidden_size=4, code_groups=["stride 4: 8 x 2"]
    )
    assert str(HQVAEModel(config).code_layout()) == "20×86×2 of 8"


def test_spectrograms_are_not_bounded() -> None:
    config = SYSTEMS["sq_vae I"]
    model = build(config).eval()
    values = torch.randn(4, 1, BANDS, 16) * 5 - 20
    output = model(values)
    error = (output.reconstruction - values).square().mean()
    nll = 0.5 * BANDS * 16 * (error.log() + torch.log(torch.tensor(2 * torch.pi)) + 1)
    torch.testing.assert_close(output.terms["reconstruction"], nll)
    with torch.no_grad():
        model.decoder.head[-1].bias.fill_(-30)
    assert model(values).reconstruction.mean() < -20
    with pytest.raises(ValueError, match="NaN or infinite"):
        model(values.clone().fill_(torch.nan))


def test_codes_overlap_up_to_the_receptive_field() -> None:
    """A long sound and a piece of it have the same codes where neither edge is near."""
    config = SYSTEMS["sequence IV"]
    model = build(config).eval()
    sound = torch.randn(1, BANDS, 1, 160)
    whole = model.encode(sound).groups[0][0, 0, :, 0]
    piece = model.encode(sound[..., 40:80]).groups[0][0, 0, :, 0]
    # Convolutions of 3, 3, 4 (stride 2), 3 and 3 see 8 frames, 4 positions, to either side.
    assert torch.equal(piece[4:-4], whole[20:40][4:-4])
    assert len(whole.unique()) > 2


def test_speakers_reach_the_decoder_and_nothing_else() -> None:
    config = SYSTEMS["speakers"]
    model = build(config).eval()
    sound = torch.randn(2, BANDS, 1, 16)
    first = model(sound, speaker_ids=torch.tensor([0, 1]))
    second = model(sound, speaker_ids=torch.tensor([0, 2]))
    assert first.codes == second.codes
    assert torch.equal(first.reconstruction[0], second.reconstruction[0])
    assert not torch.allclose(first.reconstruction[1], second.reconstruction[1])
    with pytest.raises(ValueError, match="give speaker_ids"):
        model(sound)
    for wrong in (
        [0, 1],
        torch.tensor(1),
        torch.tensor([]),
        torch.tensor([0]),
        torch.tensor([0.0, 1.0]),
        torch.tensor([0, 3]),
    ):
        with pytest.raises(ValueError, match=r"give speaker_ids, LongTensor \(2,\), from 0 to 2"):
            model.decode(first.codes, speaker_ids=wrong)
    with pytest.raises(ValueError, match="num_speakers > 0"):
        build(SYSTEMS["sequence IV"])(sound, speaker_ids=torch.tensor([0, 1]))


def test_saved_and_loaded(tmp_path) -> None:
    for name in ("speakers", "rsq sequence", "hybrid"):
        config = SYSTEMS[name]
        model = build(config).eval()
        model.save_pretrained(tmp_path / name)
        again = type(model).from_pretrained(tmp_path / name)
        with evaluation_mode(again):
            assert torch.equal(again(**inputs(config, 20)).loss, model(**inputs(config, 20)).loss)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (torch.ones(2, 15), r"shape \(batch, 16\)"),
        (torch.zeros(2, 16), "at least one"),
        (torch.arange(16).flip(0).expand(2, 16) < 8, "after them"),
    ],
)
def test_wrong_masks_are_refused(mask: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(SYSTEMS["sq_vae I"])(torch.randn(2, 1, BANDS, 16), attention_mask=mask)


def test_images_have_no_mask() -> None:
    model = SQVAEModel(SQVAEConfig(image_size=8, hidden_size=4))
    with pytest.raises(ValueError, match="models of sound"):
        model(torch.rand(1, 3, 8, 8), attention_mask=torch.ones(1, 8))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grid_dims": 1}, "grid_dims is for modality='sound'"),
        ({"num_speakers": 3}, "num_speakers is for modality='sound'"),
        ({"modality": "sound", "speaker_dim": 3}, "speaker_dim is for num_speakers > 0"),
        ({"modality": "sound", "recurrent_size": 3}, "recurrent_size is for grid_dims=1"),
        ({**SEQUENCES, "image_size": [8, 16]}, r"image_size is \[1, frames\]"),
        ({**SEQUENCES, "image_size": [1, 15]}, "the width must be multiples of 2"),
        ({**SEQUENCES, "num_decoder_residual_blocks": 0}, "at least 1"),
        ({"modality": "sound", "likelihood": "categorical", "num_classes": 3}, "not label maps"),
    ],
)
def test_what_does_not_go_together_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SQVAEConfig(**fields)


def test_sequences_have_one_resolution() -> None:
    with pytest.raises(ValueError, match="has one resolution"):
        HQVAEConfig(**{**LINE, "code_groups": ["stride 4: 8", "stride 2: 8"]})

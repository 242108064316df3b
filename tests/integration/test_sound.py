"""Both stages on sounds: encode, train a prior, generate, and edit through the pipeline, on grids of both kinds."""

from __future__ import annotations

import io
import wave

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from scipy import linalg
from scipy.signal import resample_poly
from sklearn.metrics import normalized_mutual_info_score
from transformers import AutoModel, Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2Model, pipeline

from hq_tokenizers.cli.evaluate import evaluate
from hq_tokenizers.cli.generate import generate_images
from hq_tokenizers.data.encoded import EncodedImages
from hq_tokenizers.feature_extraction_hq import HQFeatureExtractor
from hq_tokenizers.models.presets import rsq_vae, sq_vae
from hq_tokenizers.options.evaluation import EvaluateConfig
from hq_tokenizers.options.generation import GenerateConfig
from hq_tokenizers.options.reading import options_from_dict
from hq_tokenizers.options.training import EncodeConfig, PriorTrainingConfig
from hq_tokenizers.sound_decoding import decode_sound, encode_wav
from hq_tokenizers.training.encoding import encode_images
from hq_tokenizers.training.prior import train_prior_and_save_generator

SMALL = {"hidden_size": 8, "codebook_dim": 4, "codebook_size": 8, "codebook_init_std": 1.0, "num_speakers": 2}
MODELS = {
    "speech": lambda: sq_vae("speech", image_size=[1, 16], num_channels=16, recurrent_size=6, **SMALL),
    "images": lambda: rsq_vae("fsdd", num_levels=2, image_size=[16, 16], num_channels=1, **SMALL),
}
PRIOR = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """16 training and 6 test sounds of 0.1 to 0.3 seconds, of two classes and two speakers."""
    root = tmp_path_factory.mktemp("sounds")
    generator = np.random.default_rng(0)
    for split, number in (("train", 16), ("test", 6)):
        lengths = generator.integers(800, 2400, number)
        waves = [0.3 * np.sin(np.arange(length) * generator.uniform(0.1, 1.5)) for length in lengths]
        table = {
            "audio": [{"bytes": encode_wav(samples, 8000), "path": None} for samples in waves],
            "speaker": ["ann", "bob"] * (number // 2),
            "label": ["no", "yes"] * (number // 2),
        }
        parquet.write_table(pa.table(table), root / f"{split}.parquet")
    return root


@pytest.fixture(scope="module", params=["speech", "images"])
def runs(request, sounds, tmp_path_factory):
    """A folder with tokenizer, codes and generator."""
    root = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = AutoModel.from_config(MODELS[request.param]()).eval()
    model.save_pretrained(root / "tokenizer")
    extractor = HQFeatureExtractor(
        feature_size=16,
        sampling_rate=8000,
        hop_length=80,
        win_length=200,
        mean_db=-40.0,
        std_db=20.0,
        grid_dims=model.config.grid_dims,
        pad_to_multiple_of=model.config.stride,
    )
    extractor.save_pretrained(root / "tokenizer")
    sound = {"speaker_column": "speaker", "segment_frames": 24}
    data = {"name": "parquet", "path": str(sounds), "label_column": "label", "sound": sound}
    encode = {"tokenizer": str(root / "tokenizer"), "output_dir": str(root / "codes"), "batch_size": 4, "data": data}
    encode_images(options_from_dict(EncodeConfig, encode))
    kinds = {"speech": "rq_prior", "images": "masked_prior"}
    train_prior_and_save_generator(
        options_from_dict(
            PriorTrainingConfig,
            {
                "codes": str(root / "codes"),
                "output_dir": str(root / "prior"),
                "model": {"model_type": kinds[request.param], **PRIOR},
                "max_steps": 2,
                "batch_size": 4,
                "warmup_steps": 0,
                "samples": 4,
                "trackers": [],
            },
        )
    )
    return root


@pytest.fixture(scope="module")
def speak(runs):
    return pipeline("hq-audio-generation", model=str(runs / "prior" / "generator"))


def test_codes_are_those_of_each_sound_alone_and_end_where_it_ends(runs, sounds) -> None:
    encoded = EncodedImages.load(runs / "codes")
    model = AutoModel.from_pretrained(runs / "tokenizer").eval()
    extractor = HQFeatureExtractor.from_pretrained(runs / "tokenizer")
    assert encoded.label_names == ["no", "yes"]
    assert encoded.speaker_names == ["ann", "bob"]
    rows, table = encoded.splits["validation"], parquet.read_table(sounds / "test.parquet").to_pylist()
    assert rows.speakers.tolist() == [0, 1] * 3
    codes = encoded.layout.unflatten(rows.codes)
    cut = []
    for index, row in enumerate(table):
        inputs = extractor(row["audio"])
        frames = min(int(inputs["attention_mask"].sum()), 24)
        cut.append(int(inputs["attention_mask"].sum()) > 24)
        alone = model.encode(inputs["pixel_values"][..., :24], attention_mask=inputs["attention_mask"][:, :24])
        columns = -(-frames // model.config.stride)
        assert int(rows.lengths[index]) == columns
        for found, expected in zip(codes[index].groups, alone.groups, strict=True):
            assert torch.equal(found[:, :, :columns], expected[:, :, :columns])
            assert not found[:, :, columns:].any()
    assert any(cut)
    assert not all(cut)


def test_the_prior_knows_classes_and_speakers(runs) -> None:
    prior = AutoModel.from_pretrained(runs / "prior").eval()
    assert (prior.config.num_classes, prior.config.num_speakers) == (2, 2)
    assert prior.config.speaker_names == ["ann", "bob"]
    encoded = EncodedImages.load(runs / "codes")
    codes = encoded.layout.unflatten(encoded.splits["train"].codes[:2].long())
    labels = torch.tensor([0, 0])
    nats = [prior.log_prob(codes, labels, speaker_ids=torch.tensor([who, who])) for who in (0, 1)]
    assert not torch.equal(*nats)
    with pytest.raises(ValueError, match=r"Speaker 2 is out of range; this prior accepts 0 to 1, or -1 for no speaker"):
        prior.generate(0, speaker_ids=2)
    assert (runs / "prior" / "samples.png").is_file()


def test_sounds_of_the_pipeline(speak) -> None:
    one = speak("yes", speakers="bob", seed=3)
    assert set(one) == {"audio", "sampling_rate"}
    assert one["sampling_rate"] == 8000
    assert one["audio"].dtype == np.float32
    assert one["audio"].ndim == 1
    several = speak(["no", "yes"], num_sounds=2, speakers=["ann", 1], seed=0, batch_size=3)
    assert [len(row) for row in several] == [2, 2]
    # Sound 3 of seed 0 is sound 0 of seed 3, whatever the batch.
    np.testing.assert_allclose(several[1][1]["audio"], one["audio"], atol=1e-4)
    assert not np.array_equal(speak("yes", speakers="ann", seed=3)["audio"], one["audio"])
    spectrogram = speak("yes", speakers="bob", seed=3, output_type="spectrogram")
    assert one["audio"].size == max(1, (spectrogram.shape[1] - 1) * 80)
    assert len(speak("yes", speakers=["ann", "bob"], seed=0)) == 2
    for arguments, message in (
        ({}, "say who speaks by speakers, such as 'ann', 'bob'"),
        ({"speakers": "eve"}, "Unknown speaker 'eve'; the speakers are 'ann', 'bob'"),
        ({"speakers": ["ann", "bob", "ann"], "class_labels": [0, 1]}, "Got 3 speakers for 2 sounds"),
        ({"speakers": "ann", "output_type": "pil"}, "output_type must be one of 'audio', 'spectrogram', 'codes'"),
    ):
        with pytest.raises(ValueError, match=message):
            speak(**arguments)


def test_reconstructions_and_voices(speak, sounds) -> None:
    rows = [row["audio"]["bytes"] for row in parquet.read_table(sounds / "test.parquet").to_pylist()][:3]
    extractor, model = speak.feature_extractor, speak.model.image_tokenizer
    ann, bob = (speak.convert_voice(rows, who, output_type="spectrogram") for who in ("ann", "bob"))
    for index, row in enumerate(rows):
        inputs = extractor(row)
        codes = model.encode(**inputs)
        frames = int(inputs["attention_mask"].sum())
        for who, spectrograms in enumerate((ann, bob)):
            expected = model.decode(codes, attention_mask=inputs["attention_mask"], speaker_ids=torch.tensor([who]))
            decibels = extractor.to_decibels(expected)[0, :, :frames].numpy()
            np.testing.assert_allclose(spectrograms[index], decibels, atol=1e-3)
        assert speak.reconstruct(row, speakers=0, output_type="codes") == codes
    assert np.abs(ann[0] - bob[0]).max() > 1e-4
    sound = speak.reconstruct(rows[0], speakers=0)
    again = speak.reconstruct(sound, speakers=0)
    assert again["audio"].shape == sound["audio"].shape
    assert len(list(speak.reconstruct(iter(rows), speakers="ann"))) == 3
    with pytest.raises(TypeError, match=r"audio\[1\] must be a single sound"):
        speak.reconstruct([rows[0], 3], speakers=0)
    with pytest.raises(FileNotFoundError, match=r"audio\[0\]"):
        speak.reconstruct(["nowhere.wav"], speakers=0)


def test_variations_keep_the_first_levels_and_the_length(speak) -> None:
    waveform = (0.3 * np.sin(np.arange(1200) * 0.4)).astype(np.float32)
    given = speak.reconstruct(waveform, speakers="ann", output_type="codes")
    columns = given.groups[0].shape[2]
    found = speak.variations(waveform, 1, num_sounds=2, speakers="ann", class_labels="no", seed=0, output_type="codes")
    assert len(found) == 2
    for codes in found:
        for drawn, expected in zip(codes.groups, given.groups, strict=True):
            assert torch.equal(drawn[:, :, :columns, 0], expected[..., 0])
            assert not drawn[:, :, columns:].any()
    if speak.model.code_layout.num_levels > 1:
        assert any(not torch.equal(codes.groups[0][:, :, :columns], given.groups[0]) for codes in found)
    with pytest.raises(ValueError, match=r"up to 1,919 samples at 8,000 a second, and this one has 4,000: cut it"):
        speak.variations(np.zeros(4000, np.float32), 1, speakers="ann")


def test_infilling_changes_the_span_only(speak) -> None:
    waveform = (0.3 * np.sin(np.arange(1520) * 0.4)).astype(np.float32)
    before = speak.feature_extractor.to_decibels(speak.feature_extractor(waveform)["pixel_values"])[0].numpy()
    after = speak.infill(waveform, (0.05, 0.1), speakers="ann", seed=1, output_type="spectrogram")
    np.testing.assert_allclose(after[:, :5], before[:, :5], atol=1e-3)
    np.testing.assert_allclose(after[:, 10:20], before[:, 10:20], atol=1e-3)
    assert np.abs(after[:, 5:10] - before[:, 5:10]).max() > 1
    assert speak.infill([waveform], [(0, 0.05), (0.15, 9.0)], speakers="ann")[0]["audio"].ndim == 1
    for spans, error in (((0.1, 0.05), ValueError), ((0.5, 0.6), ValueError), ("ab", TypeError), (0.1, TypeError)):
        with pytest.raises(error, match=r"spans? "):
            speak.infill(waveform, spans, speakers="ann")


def test_the_command_writes_wav_files(runs, tmp_path) -> None:
    generate_images(
        GenerateConfig(
            generator=str(runs / "prior" / "generator"),
            output_dir=str(tmp_path),
            class_labels=["yes"],
            num_images=2,
        )
    )
    names = sorted(path.name for path in tmp_path.glob("*.wav"))
    assert names == ["00000-yes-ann.wav", "00001-yes-ann.wav", "00002-yes-bob.wav", "00003-yes-bob.wav"]
    with wave.open(io.BytesIO((tmp_path / names[0]).read_bytes())) as file:
        assert file.getframerate() == 8000
    assert (tmp_path / "samples.png").is_file()
    assert (tmp_path / "samples.html").read_text().count("<audio") == 4


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A tiny network of transformers that hears."""
    folder = tmp_path_factory.mktemp("network")
    torch.manual_seed(0)
    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    convolutions = {"conv_dim": [4], "conv_kernel": [40], "conv_stride": [40], "num_conv_pos_embeddings": 2}
    config = Wav2Vec2Config(**sizes, **convolutions, num_conv_pos_embedding_groups=1, num_feat_extract_layers=1)
    Wav2Vec2Model(config).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=16000).save_pretrained(folder)
    return folder


def data_of(sounds) -> dict:
    sound = {"speaker_column": "speaker"}
    return {"name": "parquet", "path": str(sounds), "label_column": "label", "sound": sound}


def test_a_tokenizer_is_judged_with_labels_and_a_network(runs, sounds, network, tmp_path) -> None:
    options = {
        "tokenizer": str(runs / "tokenizer"),
        "output_dir": str(tmp_path),
        "data": data_of(sounds),
        "batch_size": 4,
        "metrics": {"sound_network": str(network), "allow_few_images": True},
    }
    results = evaluate(options_from_dict(EvaluateConfig, options))["results"]
    # Every sound by itself, position by position.
    model = AutoModel.from_pretrained(runs / "tokenizer").eval()
    extractor = HQFeatureExtractor.from_pretrained(runs / "tokenizer")
    rows = parquet.read_table(sounds / "test.parquet").to_pylist()
    pairs = [([], [], []) for _ in range(model.code_layout().num_levels)]
    for row in rows:
        codes = model.encode(**extractor(row["audio"]))
        for level, (found, labels, speakers) in zip(codes.levels(), pairs, strict=True):
            found += level.flatten().tolist()
            labels += [row["label"]] * level.numel()
            speakers += [row["speaker"]] * level.numel()
    for kind, place in (("nmi_classes", 1), ("nmi_speakers", 2)):
        expected = [normalized_mutual_info_score(level[place], level[0]) for level in pairs]
        assert results["codebook_usage"][kind] == pytest.approx(expected)
    assert results["fad"]["frechet_audio_distance"] > 0
    assert results["fad"]["provenance"]["feature_network"]["name"] == str(network)
    versions = 3 + (model.code_layout().num_levels > 1)
    assert (tmp_path / "reconstructions.html").read_text().count("<audio") == len(rows) * versions


def test_a_generator_is_judged_by_a_network(runs, sounds, network, tmp_path) -> None:
    options = {
        "generator": str(runs / "prior" / "generator"),
        "output_dir": str(tmp_path),
        "data": data_of(sounds),
        "num_images": 5,
        "batch_size": 3,
        "metrics": {"sound_network": str(network), "allow_few_images": True},
    }
    report = evaluate(options_from_dict(EvaluateConfig, options))
    speak = pipeline("hq-audio-generation", model=options["generator"])
    drawn = [speak(number % 2, speakers=number // 2 % 2, seed=number)["audio"] for number in range(5)]
    rows = parquet.read_table(sounds / "test.parquet").to_pylist()
    real = [decode_sound(row["audio"], 8000) for row in rows]
    model = Wav2Vec2Model.from_pretrained(network).eval()

    def gaussian(waveforms):
        features = []
        for waveform in waveforms:
            heard = resample_poly(waveform, 2, 1)
            values = (heard - heard.mean()) / np.sqrt(heard.var() + 1e-7)
            with torch.no_grad():
                states = model(torch.from_numpy(values.astype(np.float32))[None]).last_hidden_state
            features.append(states[0].double().mean(0).numpy())
        return np.mean(features, axis=0), np.cov(np.stack(features).T)

    (mean, covariance), (other, reference) = gaussian(drawn), gaussian(real)
    root = linalg.sqrtm(covariance @ reference).real
    expected = ((mean - other) ** 2).sum() + np.trace(covariance + reference - 2 * root)
    assert report["results"]["fad"]["frechet_audio_distance"] == pytest.approx(expected, rel=1e-2)
    assert (tmp_path / "samples.html").is_file()
    for changes, message in (
        ({"metrics": {}}, r"set metrics\.sound_network"),
        ({"metrics": {"sound_network": "wav2vec"}}, "sound_network 'wav2vec' is neither .* as in owner/name"),
        ({"kid": True}, "kid is for images"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(options_from_dict(EvaluateConfig, {**options, **changes}))


def test_a_pipeline_is_saved_with_its_front_end(speak, tmp_path) -> None:
    speak.save_pretrained(tmp_path)
    again = pipeline("hq-audio-generation", model=str(tmp_path))
    assert again.feature_extractor.to_dict() == speak.feature_extractor.to_dict()
    assert np.array_equal(again("no", speakers=0, seed=0)["audio"], speak("no", speakers=0, seed=0)["audio"])
    with pytest.raises(TypeError, match=r"is for images, this generator makes sounds: .*'hq-audio-generation'"):
        pipeline("hq-generation", model=str(tmp_path))
    with pytest.raises(TypeError, match="needs the front end"):
        pipeline("hq-audio-generation", model=again.model)

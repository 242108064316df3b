"""The Fréchet distance of two sets of sounds, on the features of a network that the user names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from transformers import AutoFeatureExtractor, AutoModel

from hq_tokenizers.hashing import weights_sha256
from hq_tokenizers.metrics.running.running_gaussian import RunningGaussian
from hq_tokenizers.metrics.set_distances import check_covariances, frechet_distance
from hq_tokenizers.options.evaluation import MetricConfig
from hq_tokenizers.pretrained_models import can_name_a_model, not_a_model
from hq_tokenizers.sound_decoding import resample


class SoundNetwork:
    """Features of sounds: the last hidden states of a model of transformers, averaged over time.

    Args:
        path: Folder or Hub id of a model that takes waveforms, such as facebook/wav2vec2-base, with its feature
            extractor. Weights are safetensors.
        device: Where it runs.

    Raises:
        ValueError: If there is no such model.
    """

    def __init__(self, path: str, device: torch.device) -> None:
        if not can_name_a_model(path):
            raise ValueError(f"metrics.sound_network {not_a_model(path, 'a model')}.")
        try:
            self.extractor = AutoFeatureExtractor.from_pretrained(path)
            model = AutoModel.from_pretrained(path, use_safetensors=True)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"metrics.sound_network {path!r} is no model of sound with a feature extractor that can be loaded "
                f"({str(error).splitlines()[0]})."
            ) from error
        self.identity = {"name": path, "sha256": weights_sha256(model)}
        # Of an encoder and a decoder, the encoder hears.
        self.model = (model.get_encoder() if model.config.is_encoder_decoder else model).to(device).eval()

    @torch.no_grad()
    def features(self, waveforms: Iterable[np.ndarray], sampling_rate: int) -> torch.Tensor:
        """(B, D) of B sounds (n,), each by itself, so that none depends on the padding of a batch."""
        rate = self.extractor.sampling_rate
        rows = []
        for waveform in waveforms:
            heard = resample(waveform, sampling_rate, rate)
            inputs = self.extractor(heard, sampling_rate=rate, return_tensors="pt").to(self.model.device)
            rows.append(self.model(**inputs).last_hidden_state.float().mean(dim=1))
        return torch.cat(rows)


def sound_network(config: MetricConfig, accelerator: Accelerator) -> SoundNetwork | None:
    """The network that options name; None where they name none."""
    if config.sound_network is None:
        return None
    with accelerator.local_main_process_first():
        return SoundNetwork(config.sound_network, accelerator.device)


def refuse_sound_network(config: MetricConfig, subject: str) -> None:
    """Raises a ValueError if options name a network that hears, and the subject is one of images."""
    if config.sound_network is not None:
        raise ValueError(f"metrics.sound_network is for sounds, and the {subject} makes images: leave it out.")


class SoundDistance:
    """Sums for the Fréchet distance |μ − μ'|² + tr(Σ + Σ' − 2 (ΣΣ')^½) of two sets of sounds.

    Args:
        network: What makes the features.
        sampling_rate: Of the sounds.
        allow_few: Whether fewer sounds than features will do.
    """

    def __init__(self, network: SoundNetwork, sampling_rate: int, allow_few: bool) -> None:
        self.network = network
        self.sampling_rate = sampling_rate
        self.allow_few = allow_few
        self.predictions = RunningGaussian()
        self.references = RunningGaussian()

    def add(self, predictions: Sequence[np.ndarray] = (), references: Sequence[np.ndarray] = ()) -> None:
        """Adds sounds (n,) to either set."""
        for side, waveforms in ((self.predictions, predictions), (self.references, references)):
            if len(waveforms):
                side.update(self.network.features(waveforms, self.sampling_rate))

    def result(self, provenance: dict[str, Any]) -> dict[str, Any]:
        """{"frechet_audio_distance", "provenance"} of all processes.

        Raises:
            ValueError: If a set is too small.
        """
        sides = {"predictions": _of_all_processes(self.predictions), "references": _of_all_processes(self.references)}
        check_covariances(sides, self.allow_few, "sounds", "set metrics.allow_few_images true")
        distance = frechet_distance(**sides)
        return {
            "frechet_audio_distance": distance,
            "provenance": {**provenance, "feature_network": self.network.identity},
        }


def _of_all_processes(gaussian: RunningGaussian) -> RunningGaussian:
    total, *others = gather_object([gaussian])
    for other in others:
        total.merge(other)
    return total

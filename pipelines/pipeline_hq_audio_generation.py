"""`transformers.pipeline("hq-audio-generation")`: classes and speakers in, sounds out; sounds in, edited sounds out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from hq_tokenizers.feature_extraction_hq import HQFeatureExtractor, Vocoder
from hq_tokenizers.priors.progress import StepCallback

from .call_arguments import check_count, is_stream
from .class_labels import (
    is_single_label,
    resolve_class_labels,
    resolve_single_label,
    resolve_speakers,
    resolve_speakers_of_sounds,
)
from .code_sampling_pipeline import CodeSamplingPipeline, in_batches
from .image_editing import first_levels
from .sampling_inputs import SamplingInputs, inputs_of_known_codes, inputs_of_label, inputs_of_repainting
from .sound_arguments import decode_sounds, is_single_sound, mark_spans


class HQAudioGenerationPipeline(CodeSamplingPipeline):
    """Generates sounds with an `HQGeneratorModel`, and edits given ones.

    Calling it draws sounds of classes and speakers; `variations` and `infill` keep a part of a given sound and draw the
    rest; `reconstruct` lets hear what the tokenizer preserves, `convert_voice` with another speaker.

    `pipeline("hq-audio-generation", model=…)` takes a directory, a Hub id, or a model object with
    `feature_extractor=…`; without a model it is the spoken digits of the package. Settings given there become the
    defaults of every call. `vocoder=…` maps log-mel spectrograms in dB to samples, see
    `HQFeatureExtractor.to_waveforms`; without one it is the Griffin-Lim algorithm.

    Example:
        >>> import hq_tokenizers
        >>> from transformers import pipeline
        >>> speak = pipeline("hq-audio-generation", model=hq_tokenizers.pretrained("spoken-digits"))
        >>> sound = speak("7", speakers="jackson", seed=0)
        >>> sound["audio"].dtype, sound["sampling_rate"]
        (dtype('float32'), 8000)
    """

    _load_image_processor = False
    _load_feature_extractor = None
    task_name = "hq-audio-generation"
    items = "sounds"
    output_types = ("audio", "spectrogram", "codes")
    own_arguments = ("class_labels", "num_sounds", "speakers")

    def __init__(self, model: Any, *args: Any, vocoder: Vocoder | None = None, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self.vocoder = vocoder
        # Not by its class: transformers loads the front end of an export from another copy of its folder.
        suits = getattr(self.feature_extractor, "suits", None)
        if suits is None or not suits(model.config.image_tokenizer_config):
            raise TypeError(
                "The task hq-audio-generation needs the front end that its tokenizer was trained with: give "
                "feature_extractor=HQFeatureExtractor.from_pretrained(folder of the tokenizer or generator)."
            )

    @property
    def processor_of_outputs(self) -> HQFeatureExtractor:
        """The front end."""
        return self.feature_extractor

    def render(self, outputs: dict[str, torch.Tensor], output_type: str) -> Any:
        """One sound: {"audio", "sampling_rate"}, or its spectrogram."""
        mask = outputs["attention_mask"]
        if output_type == "spectrogram":
            return self.feature_extractor.to_decibels(outputs["images"])[0][:, mask[0].bool()].cpu().numpy()
        (waveform,) = self.feature_extractor.to_waveforms(outputs["images"], mask, self.vocoder)
        return {"audio": waveform, "sampling_rate": self.feature_extractor.sampling_rate}

    def __call__(
        self,
        class_labels: Any = None,
        num_sounds: int = 1,
        *,
        speakers: Any = None,
        seed: int | Sequence[int] | None = None,
        output_type: str | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
        callback_on_step_end: StepCallback | None = None,
        generation_config: GenerationConfig | None = None,
        **generation_settings: Any,
    ) -> Any:
        """Generates sounds of classes.

        Args:
            class_labels: What is heard: a name of `model.config.id2label`, a class id, or None for no class; a list,
                array or tensor of these; or a stream of them.
            num_sounds: Sounds per label; more than one makes a list of each label's sounds.
            speakers: Who speaks: a name of `model.config.speaker_names`, an id, or None for no speaker, which a
                tokenizer that decodes for a speaker does not take; or one per label. For a stream one for all.
            seed: As for `HQGenerationPipeline`.
            output_type: "audio" (default) for {"audio": float32 array (n,), "sampling_rate": samples per second} as
                transformers' text-to-audio pipelines give it, "spectrogram" for float32 arrays (bands, frames) in dB,
                "codes" for the `Codes` of a sound, those after its end 0.
            batch_size: As for `HQGenerationPipeline`.
            progress: As for `HQGenerationPipeline`.
            callback_on_step_end: Called after every step of every batch with (steps done, total, `PartialCodes`).
            generation_config: As for `HQGenerationPipeline`.
            **generation_settings: As for `HQGenerationPipeline`.

        Returns:
            In the shape of the question, as for `HQGenerationPipeline`. Sounds last as long as the prior makes them, up
            to the length that it was trained on.

        Raises:
            TypeError: For an argument that is neither one of the above nor a generation setting, or of a wrong type.
            ValueError: For an unknown class or speaker, an id out of range, or a value that is not accepted.
        """
        self._check_names(generation_settings)
        config, streamed = self.model.config, is_stream(class_labels)
        pairs: Iterable[tuple[int, int | None]]
        if streamed:
            voice = self._one_speaker(speakers)
            pairs = ((resolve_single_label(label, config.id2label), voice) for label in class_labels)
        else:
            labels = resolve_class_labels(class_labels, config.id2label)
            if is_single_label(class_labels) and not is_single_label(speakers):
                labels = labels * len(self._speakers(speakers, None))
            pairs = list(zip(labels, self._speakers(speakers, len(labels)), strict=True))
        inputs = itertools.starmap(inputs_of_label, pairs)
        results = self._sample(
            inputs if streamed else list(inputs),
            num_sounds,
            seed,
            batch_size,
            progress,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            generation_config=generation_config,
            **generation_settings,
        )
        single = is_single_label(class_labels) and is_single_label(speakers)
        return results[0] if not streamed and single else results

    def reconstruct(
        self,
        audio: Any,
        *,
        num_levels: int | None = None,
        speakers: Any = None,
        output_type: str | None = None,
        batch_size: int | None = None,
    ) -> Any:
        """What remains of sounds after the tokenizer: sound → codes → sound. The prior has no part in it.

        Args:
            audio: A sound of any length (path, bytes, samples, {"array", "sampling_rate"}, …), a list of sounds, or a
                stream of them.
            num_levels: Decodes the first levels of codes only, coarse to fine; by default all.
            speakers: Who speaks, one for all or one per sound, where the tokenizer decodes for a speaker; for a stream
                one for all.
            output_type: As in a call; "codes" gives the `num_levels` levels.
            batch_size: As in a call.

        Returns:
            One sound for one sound, a list for several, an iterator for a stream.

        Raises:
            TypeError: If `audio` is neither a sound nor a list of sounds.
            FileNotFoundError: If a path leads to no file.
            UnreadableSoundError: If a sound is broken or empty; a ValueError.
            ValueError: If `num_levels` is out of range, a speaker is unknown or missing, or a value is not accepted.
        """
        output_type, size = self._resolve_output_type(output_type), self._resolve_batch_size(batch_size)
        layout = self.model.code_layout
        layout = layout if num_levels is None else layout.truncate(check_count("num_levels", num_levels))
        tokenizer, decodes_for_speaker = self.model.image_tokenizer, self.model.config.decodes_for_speaker

        def results(batch: list[tuple[np.ndarray, int | None]]) -> Iterator[Any]:
            waveforms, voices = zip(*batch, strict=True)
            inputs = self.feature_extractor(list(waveforms)).to(self.device)
            mask = inputs["attention_mask"]
            codes = tokenizer.encode(**inputs).truncate(layout.num_levels)
            if output_type == "codes":
                yield from codes.to("cpu")
                return
            spoken = {"speaker_ids": torch.tensor(voices, device=self.device)} if decodes_for_speaker else {}
            decoded = tokenizer.decode(codes, attention_mask=mask, **spoken)
            for image, frames in zip(decoded.split(1), mask.split(1), strict=True):
                yield self.render({"images": image, "attention_mask": frames}, output_type)

        # Codes of a sound by itself have no padding of a batch.
        size = 1 if output_type == "codes" else size
        waveforms = decode_sounds(audio, self.feature_extractor.sampling_rate)
        if is_stream(audio):
            voice = self._one_speaker(speakers)
            return in_batches(((waveform, voice) for waveform in waveforms), size, results)
        sounds = list(waveforms)
        found = list(in_batches(zip(sounds, self._speakers(speakers, len(sounds)), strict=True), size, results))
        return found[0] if is_single_sound(audio) else found

    def convert_voice(self, audio: Any, speakers: Any, **options: Any) -> Any:
        """Sounds as other speakers would say them: encoded, and decoded with the embedding of the given speakers.

        Args:
            audio: As in `reconstruct`.
            speakers: Who is to be heard, one for all or one per sound.
            **options: `num_levels`, `output_type` and `batch_size`, as in `reconstruct`.

        Returns:
            As `reconstruct`.

        Raises:
            TypeError, ValueError: As `reconstruct` does, or if the tokenizer's decoder is not told who speaks.
        """
        if not self.model.config.decodes_for_speaker:
            raise ValueError(
                "This tokenizer's decoder is not told who speaks: voices are converted by tokenizers that were trained "
                "with data.sound.speaker_column."
            )
        return self.reconstruct(audio, speakers=speakers, **options)

    def variations(
        self,
        audio: Any,
        keep_levels: int,
        *,
        class_labels: Any = None,
        num_sounds: int = 1,
        speakers: Any = None,
        seed: int | Sequence[int] | None = None,
        output_type: str | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
        callback_on_step_end: StepCallback | None = None,
        generation_config: GenerationConfig | None = None,
        **generation_settings: Any,
    ) -> Any:
        """Sounds that share the coarse levels of given ones, and their length; the prior draws the rest.

        Args:
            audio: A sound, or a list or stream of sounds, none longer than the prior's.
            keep_levels: As for `HQGenerationPipeline.variations`.
            class_labels: What the sounds are: one label for all of them or one per sound; for a stream one for all.
            num_sounds: Variations of each sound.
            speakers: Who speaks, likewise.
            seed: As in a call.
            output_type: As in a call.
            batch_size: As in a call.
            progress: As in a call.
            callback_on_step_end: As in a call.
            generation_config: As in a call.
            **generation_settings: As in a call.

        Returns:
            In the shape of a call, with sounds in the place of labels.

        Raises:
            TypeError: As a call and `reconstruct` do.
            ValueError: Likewise, or if `keep_levels` is out of range or a sound too long.
        """
        known = first_levels(keep_levels, self.model.code_layout)

        def inputs_of(condition: SamplingInputs, waveform: np.ndarray) -> SamplingInputs:
            pixel_values, mask = self._padded(waveform)
            return inputs_of_known_codes(condition, pixel_values, known, self.model, mask)

        return self._edit(
            *(audio, inputs_of, num_sounds, seed, batch_size, progress),
            class_labels=class_labels,
            speakers=speakers,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            generation_config=generation_config,
            **generation_settings,
        )

    def infill(
        self,
        audio: Any,
        spans: Any,
        *,
        class_labels: Any = None,
        num_sounds: int = 1,
        speakers: Any = None,
        seed: int | Sequence[int] | None = None,
        output_type: str | None = None,
        batch_size: int | None = None,
        progress: bool | None = None,
        callback_on_step_end: StepCallback | None = None,
        generation_config: GenerationConfig | None = None,
        **generation_settings: Any,
    ) -> Any:
        """Makes spans of time of sounds anew.

        The codes of every position with a frame in a span are drawn anew, at all levels; the others are those of the
        sound. Frames outside of the spans are those of the given spectrogram. An autoregressive prior sees a kept code
        only when it comes earlier in its order: on one-dimensional grids what comes before in time, on two-dimensional
        ones the rows above, of all times, and of its own row what comes before. A masked prior sees all. The encoder
        saw what is replaced, so that kept codes nearby may hint at it.

        Args:
            audio: A sound, or a list or stream of sounds, none longer than the prior's.
            spans: (start, end) in seconds, or a list of such; the same for all sounds.
            class_labels: As in `variations`.
            num_sounds: Results for each sound.
            speakers: As in `variations`.
            seed: As in a call.
            output_type: As in a call; "codes" gives the codes before the given frames are put back.
            batch_size: As in a call.
            progress: As in a call.
            callback_on_step_end: As in a call.
            generation_config: As in a call.
            **generation_settings: As in a call.

        Returns:
            In the shape of a call, with sounds in the place of labels; as long as the given ones, rounded up to whole
            positions.

        Raises:
            TypeError: As `variations` does, or if `spans` are no spans.
            ValueError: Likewise, or if a span lies outside of a sound.
        """

        def inputs_of(condition: SamplingInputs, waveform: np.ndarray) -> SamplingInputs:
            pixel_values, mask = self._padded(waveform)
            marked = torch.zeros(1, 1, *pixel_values.shape[-2:], dtype=torch.bool)
            frames = int(mask.sum())
            marked[..., :frames] = mark_spans(spans, self.feature_extractor.frames_per_second, frames)
            return inputs_of_repainting(condition, pixel_values, marked, self.model, mask)

        return self._edit(
            *(audio, inputs_of, num_sounds, seed, batch_size, progress),
            class_labels=class_labels,
            speakers=speakers,
            output_type=output_type,
            callback_on_step_end=callback_on_step_end,
            generation_config=generation_config,
            **generation_settings,
        )

    def is_single(self, given: Any) -> bool:
        """Whether this is a sound."""
        return is_single_sound(given)

    def decoded_items(self, given: Any) -> tuple[int | None, Iterable[np.ndarray]]:
        """How many sounds there are, None for a stream, and the samples of each."""
        waveforms = decode_sounds(given, self.feature_extractor.sampling_rate)
        if is_stream(given):
            return None, waveforms
        sounds = list(waveforms)
        return len(sounds), sounds

    def voices(self, speakers: Any, number: int | None) -> Iterable[int | None]:
        """Who speaks in each of so many sounds; for a stream one for all."""
        return itertools.repeat(self._one_speaker(speakers)) if number is None else self._speakers(speakers, number)

    def _padded(self, waveform: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """The spectrogram of a sound, padded to the length of the prior's, (1, C, H, W), and its mask (1, W)."""
        width = self.model.code_layout.groups[0].width * self.model.image_tokenizer.config.stride
        inputs = self.feature_extractor(waveform, padding="max_length", max_length=width)
        if inputs["pixel_values"].shape[-1] > width:
            # A sound of n samples has 1 + n // hop frames.
            longest = width * self.feature_extractor.hop_length - 1
            raise ValueError(
                f"The prior makes sounds of up to {longest:,} samples at {self.feature_extractor.sampling_rate:,} a "
                f"second, and this one has {len(waveform):,}: cut it."
            )
        return inputs["pixel_values"], inputs["attention_mask"]

    def _speakers(self, speakers: Any, number: int | None) -> list[Any]:
        """An id per sound, or None for each where the generator knows no speakers."""
        config = self.model.config
        names, needed = config.speaker_names, config.decodes_for_speaker
        if number is None:
            return resolve_speakers(speakers, names, needed)
        found: list[Any] = resolve_speakers_of_sounds(speakers, number, names, needed)
        return found if names else [None] * number

    def _one_speaker(self, speakers: Any) -> int | None:
        if not is_single_label(speakers):
            raise TypeError(f"A stream has one speaker for all of its sounds, got {speakers!r}.")
        return self._speakers(speakers, 1)[0]

"""What the image tokenizers share: epochs and steps, the way from images to codes and back."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Annotated, Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from hq_tokenizers.checked_loading import CheckedLoading, check_config_memory
from hq_tokenizers.checks import Range, check_choice, check_value
from hq_tokenizers.codes import Codes
from hq_tokenizers.evaluation_mode import evaluation_mode
from hq_tokenizers.padding import Padding, quantize_real, real_codes
from hq_tokenizers.quantization.codebook import codebook_tensors
from hq_tokenizers.quantization.finite_scalar import FiniteScalarQuantizer
from hq_tokenizers.quantization.full_precision import without_rounding
from hq_tokenizers.quantization.outputs import QuantizerOutput
from hq_tokenizers.quantization.reestimation import ReestimatedQuantizer, forget_past
from hq_tokenizers.quantization.temperature import GumbelTemperature
from hq_tokenizers.quantization.usage import active_codes, code_counts, code_entropy
from hq_tokenizers.quantization.von_mises_fisher import VonMisesFisherQuantizer
from hq_tokenizers.randomness import GeneratorLike, sample_generators

from .autoencoder_sources import read_autoencoder
from .autoencoders import autoencoder_config, load_networks
from .configuration_image_tokenizer import ImageTokenizerConfig
from .initial_weights import initialize
from .input_checks import check_tensor
from .latent_scale import LatentScale
from .masked_layers import run
from .modeling_outputs import ImageTokenizerOutput
from .networks_speech import SpeakerDecoder
from .presets import Recipe

P = ParamSpec("P")
T = TypeVar("T")


def inference(method: Callable[P, T]) -> Callable[P, T]:
    """Runs a method of a model without gradients and, also while the model trains, in evaluation mode.

    In training mode, batch statistics would make the codes of an image depend on its batch, and would be updated.
    """

    @functools.wraps(method)
    @torch.no_grad()
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        model = args[0]
        assert isinstance(model, nn.Module)
        if not model.training:
            return method(*args, **kwargs)
        with evaluation_mode(model):
            return method(*args, **kwargs)

    return run


def drops_labels(forward: Callable[..., T]) -> Callable[..., T]:
    """Lets `forward` be called with the `labels` that transformers' Trainer passes on from a data set that has some.

    They stay out of the signature: the Trainer computes no `eval_loss` for batches that lack a parameter with "label"
    in its name.
    """

    @functools.wraps(forward)
    def run(*args: Any, labels: Any = None, **kwargs: Any) -> T:
        return forward(*args, **kwargs)

    return run


class ImageTokenizerPreTrainedModel(CheckedLoading):
    """Base class of the image tokenizers.

    While training, relaxed samples follow the Gumbel temperature, which `advance()` moves on after every optimiser
    step.
    """

    base_model_prefix = "image_tokenizer"
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    # Everything but the quantiser's counters: transformers would turn the integers into floats as well.
    _keep_in_fp32_modules_strict = [r"quantizer\.(?!\S+\.(?:epoch|num_seen|step)$)", r"likelihood\."]  # noqa: RUF012
    _keys_to_ignore_on_load_unexpected = [r"^prior\."]  # noqa: RUF012
    # Finished models are saved without, see `CodebookReestimation.spent_buffers`.
    _keys_to_ignore_on_load_missing = [r"\.reestimation\.reservoir\."]  # noqa: RUF012
    # A convolutional model has no attention: every implementation is supported, so that a composite may choose any.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    quantizer: nn.Module
    decoder: nn.Module
    likelihood: Any
    _frozen: Sequence[nn.Module] = ()
    _parts: Callable[[], dict[str, list[nn.Module]]]
    _encoded: Callable[..., Sequence[Any]]
    _decode_latents: Callable[..., torch.Tensor]
    _decoded: Callable[..., ImageTokenizerOutput]

    def __init__(self, config: ImageTokenizerConfig, *inputs: Any, **kwargs: Any) -> None:
        check_config_memory(type(self), config)
        super().__init__(config, *inputs, **kwargs)

    def _finish_init(self) -> None:
        """Adds the state every tokenizer has and initialises the weights; a subclass's `__init__` ends with it."""
        config = self.config
        self.temperature = GumbelTemperature(
            config.gumbel_temperature, config.gumbel_decay, config.gumbel_min_temperature
        )
        # Also where the model is built in another type.
        self.quantizer.float()
        self.likelihood.float()
        self.post_init()

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> ImageTokenizerPreTrainedModel:
        """Moves or converts the model; its quantiser and likelihood are never rounded to 16 bits."""
        return super()._apply(without_rounding(fn, self.quantizer, self.likelihood), recurse)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        initialize(module, self.config)

    def get_input_embeddings(self) -> None:
        """None: there is no table of input embeddings. Quantisers of weights ask for one to leave it as it is."""

    @inference
    def compare_codes(
        self,
        pixel_values: torch.Tensor,
        generators: Sequence[torch.Generator] = (),
        attention_mask: torch.Tensor | None = None,
        speaker_ids: torch.Tensor | None = None,
    ) -> tuple[ImageTokenizerOutput, dict[str, torch.Tensor]]:
        """What evaluation makes of images, and what it would make of them with two other kinds of codes.

        The encoder runs once. Nothing is learned, neither by moving averages nor by variances.

        Args:
            pixel_values: As for `forward`.
            generators: Noise for the first n images, one generator each; their results do not depend on the batch.
            attention_mask: As for `forward`.
            speaker_ids: As for `forward`.

        Returns:
            The output of `forward` in evaluation mode, whose codes are the most probable ones, and reconstructions of
            the first n images: "sampled", from codes drawn from P̂, and for models with the pathwise gradient "relaxed",
            from relaxed samples at the current temperature, which training decodes there after a warm-up. None for
            systems that are not stochastic, or without generators.
        """
        padding = self._padding(pixel_values, attention_mask)
        encoded = self._encoded(pixel_values, padding)
        output = self._decoded(encoded, targets=pixel_values, padding=padding, speaker_ids=speaker_ids)
        number = len(generators)
        if not (self.config.is_stochastic and number):
            return output, {}
        first = [part[:number] if isinstance(part, torch.Tensor) else part for part in encoded]
        own: dict[str, Any] = {
            "padding": None if padding is None else replace(padding, frames=padding.frames[:number]),
            "speaker_ids": None if speaker_ids is None else speaker_ids[:number],
        }
        others: dict[str, torch.Tensor] = {}
        relaxed = {"relaxed": self.temperature()} if self.config.draws_relaxed_samples else {}
        for kind, temperature in {"sampled": None, **relaxed}.items():
            reconstruction = self._decoded(first, temperature, generators, **own).reconstruction
            assert reconstruction is not None
            others[kind] = reconstruction
        return output, others

    @classmethod
    def from_autoencoder(
        cls, autoencoder: Any, *, recipe: Recipe = "tuned", subfolder: str | None = None, **fields: Any
    ) -> Any:
        """A tokenizer with the encoder and the decoder of an autoencoder that exists, and new codes between them.

        Before it is trained, `autoencode` gives that autoencoder's reconstructions. The latents, of an `AutoencoderKL`
        their mean, are normalised by their own mean and variance for the codes (`normalize_latents`), which get both
        back before the decoder (`restore_latent_scale`): codes start where latents of any scale are. Nothing of the old
        quantiser is kept; `hq-tokenizers convert` keeps that.

        Args:
            autoencoder: An `AutoencoderKL` or a `VQModel` of diffusers, or a tokenizer of this package on one grid with
                `backbone="diffusers"`; or the folder or Hub id of one.
            recipe: How the codes are trained: "tuned" for the best settings known, "paper" for those of the paper.
            subfolder: Of the folder or the repository, such as "vae".
            **fields: Fields of the configuration that the networks do not decide. `code_groups` of an `HQVAEModel`,
                ["stride 8: 512 x 4"] for example, start at the stride of the latents; what finer groups add to the
                decoder's state is zero at first.

        Returns:
            The tokenizer in evaluation mode.

        Raises:
            OSError: If there is no such folder or id.
            ValueError: If it holds something else, or for fields that do not fit it.
        """
        source = read_autoencoder(autoencoder, subfolder)
        model = cls(autoencoder_config(cls.config_class, source, fields, recipe))
        load_networks(model, source)
        return model.eval()

    @inference
    def autoencode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """What encoder and decoder alone make of images: as `forward` does, but the latents are not quantised.

        Of a model from `from_autoencoder` that has not been trained, these are the reconstructions of that autoencoder.
        The latents of unit vectors (vMF) and of FSQ are normalised and bounded as they are for their codes.

        Args:
            pixel_values: As for `forward`.

        Returns:
            Reconstructions of the same shape, not clamped.

        Raises:
            ValueError: For a model of sound, and as `forward` does.
        """
        if self.config.modality == "sound":
            raise ValueError("autoencode is for models of images.")
        return self._reconstruction(self._decode_latents(self._encoded(pixel_values)), None)

    def freeze(self, parts: Sequence[str]) -> None:
        """Keeps parts of the networks as they are in training, batch statistics included; the others are trained.

        Args:
            parts: Any of "encoder" and "decoder". In a hierarchy the encoder ends with the latents of the coarsest
                group; the decoder's way up belongs to the decoder, and what joins a finer group to it to neither.

        Raises:
            ValueError: For an unknown part.
        """
        modules = self._parts()
        for part in parts:
            check_choice("freeze", part, tuple(modules))
        self._frozen = [module for part in parts for module in modules[part]]
        for module in self._frozen:
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> ImageTokenizerPreTrainedModel:
        """Training mode for all but the batch norms of frozen parts."""
        super().train(mode)
        for part in self._frozen:
            for module in part.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def advance(self, num_steps: int = 1) -> None:
        """Tells the model that `num_steps` optimiser steps were made; the Gumbel temperature follows them."""
        self.temperature.advance(num_steps)

    @property
    def stride(self) -> int:
        """Both sides of an image must be multiples of this."""
        return self.config.stride

    def start_epoch(self, epoch: int, seed: int = 0, optimizer: torch.optim.Optimizer | None = None) -> bool:
        """Tells the model that a training epoch starts; re-estimates codebooks where the configuration asks for it.

        Args:
            epoch: Number of the epoch, from 0. One that was announced before changes nothing: a model that has been
                trained is trained further without another warm-up.
            seed: Seed of the k-means initialisation.
            optimizer: The optimiser of the training, if it is to forget what it knows of codebooks that are replaced,
                and of what had no gradient in the warm-up.

        Returns:
            Whether codebooks were replaced.

        Raises:
            ValueError: If `epoch` or `seed` is negative or no integer.
        """
        check_value("epoch", epoch, Annotated[int, Range(0, 2**31 - 1)])
        check_value("seed", seed, Annotated[int, Range(0, 2**32 - 1)])
        was_warming_up = self.warming_up
        replaced = [quantizer.start_epoch(epoch, seed) for quantizer in self._reestimated_quantizers()]
        ended = was_warming_up and not self.warming_up
        if ended and not all(replaced) and epoch < self.config.warmup_epochs + self.config.reestimation_epochs:
            warnings.warn(
                "The warm-up has ended, and too few vectors were seen in its last epoch to estimate the codebooks, "
                "which stay as they are: train on more images, or with fewer codes.",
                stacklevel=2,
            )
        if optimizer is not None and (ended or any(replaced)):
            forget_past(optimizer, codebook_tensors(self) if any(replaced) else [])
        return any(replaced)

    @property
    def warming_up(self) -> bool:
        """Whether it is in its epochs without quantisation: until they end, its codebooks have learned nothing."""
        return any(quantizer.warming_up for quantizer in self._reestimated_quantizers())

    def _reestimated_quantizers(self) -> list[ReestimatedQuantizer]:
        return [module for module in self.modules() if isinstance(module, ReestimatedQuantizer)]

    def codebooks(self) -> tuple[torch.Tensor, ...]:
        """Copies of the code vectors of every level, coarse to fine: float32 tensors (K_l, d), without gradient.

        Raises:
            ValueError: For a VAE, which has none.
        """
        if not self.config.has_codes:
            raise ValueError("A VAE (quantizer='none') has continuous latents and no codebook.")
        quantizers: Any = self.quantizer if isinstance(self.quantizer, nn.ModuleList) else [self.quantizer]
        return tuple(
            book.codes.detach().to(self.device, copy=True)
            for quantizer in quantizers
            for book in quantizer.level_codebooks()
        )

    def parameter_groups(self, learning_rate: float) -> list[dict[str, Any]]:
        """Optimizer parameter groups: the codebooks at `codebook_learning_rate_factor` times the rate, the rest at it.

        Args:
            learning_rate: The base rate.
        """
        factor = self.config.codebook_learning_rate_factor
        trainable = {name: p for name, p in self.named_parameters() if p.requires_grad}
        if factor == 1:
            return [{"params": list(trainable.values()), "lr": learning_rate}]
        codebooks = [p for name, p in trainable.items() if "codebook" in name]
        others = [p for name, p in trainable.items() if "codebook" not in name]
        return [{"params": others, "lr": learning_rate}, {"params": codebooks, "lr": learning_rate * factor}]

    def _sampling_generators(
        self, sample: bool, generator: GeneratorLike, pixel_values: torch.Tensor
    ) -> list[torch.Generator] | None:
        """One generator per image for sampled codes; None for the most probable ones."""
        check_tensor(pixel_values)
        if not sample:
            return None
        if self.config.is_deterministic:
            raise ValueError("A deterministic quantiser has one code per latent vector: leave sample at False.")
        return sample_generators(generator, pixel_values.shape[0])

    def _padding(self, pixel_values: torch.Tensor, attention_mask: torch.Tensor | None) -> Padding | None:
        """The padding of a batch of sounds; None where there is none."""
        check_tensor(pixel_values)
        if attention_mask is not None and self.config.modality != "sound":
            raise ValueError("attention_mask is for models of sound (modality='sound'): leave it out for images.")
        return Padding.of(attention_mask, pixel_values.shape[-1], self.config.stride)

    def _decoding_padding(self, codes: Codes, attention_mask: torch.Tensor | None) -> Padding | None:
        """The padding of a batch of codes, whose mask counts frames."""
        width = codes.groups[0].shape[2] * self.config.stride
        return Padding.of(attention_mask, width, self.config.stride)

    def _normalized(
        self, norm: Any, latents: torch.Tensor, padding: Padding | None
    ) -> tuple[torch.Tensor, LatentScale | None]:
        """Latents (B, d, h, w) as (B, h, w, d) for the quantiser, and the scale that code vectors get back, if any."""
        scale = None
        if self.config.restore_latent_scale:
            *before, last = norm
            for layer in before:
                latents = layer(latents)
            latents, scale = last.normalize(latents)
        else:
            latents = run(norm, latents, padding)
        return latents.permute(0, 2, 3, 1).contiguous(), scale

    def _running_scale(self, norm: Any) -> LatentScale | None:
        """The scale that vectors of codes get back that come without latents."""
        return norm[-1].running() if self.config.restore_latent_scale else None

    def _to_decoder(self, vectors: torch.Tensor, scale: LatentScale | None) -> torch.Tensor:
        """Code vectors (B, h, w, d) as the networks take them, (B, d, h, w)."""
        if scale is not None:
            vectors = scale.restore(vectors)
        # One memory layout on every path: convolutions differ in the last bit between layouts.
        return vectors.permute(0, 3, 1, 2).to(self.dtype).contiguous()

    def _run_quantizer(
        self,
        quantizer: Callable[..., QuantizerOutput],
        padding: Padding | None,
        latents: torch.Tensor,
        temperature: Any,
        *others: Any,
    ) -> QuantizerOutput:
        """The quantiser's output, to which padding adds nothing; `others` as the quantiser takes them."""
        if padding is None:
            return quantizer(latents, temperature, *others)
        noise_of_items = any(isinstance(other, list) for other in others)
        one_by_one = noise_of_items or (temperature is None and not self.config.has_codes)
        sums = not self.config.is_deterministic
        return quantize_real(quantizer, padding, latents, temperature, *others, sums=sums, one_by_one=one_by_one)

    def _run_decoder(
        self, hidden_states: torch.Tensor, padding: Padding | None, speaker_ids: torch.Tensor | None, copies: int = 1
    ) -> torch.Tensor:
        """The decoder's last layer; `hidden_states` may be the batch several times, one after the other."""
        decoder = self.decoder
        if padding is not None:
            padding = replace(padding, frames=padding.frames.repeat(copies, 1))
        if isinstance(decoder, SpeakerDecoder):
            # What is no batch of speakers is refused by the decoder.
            if isinstance(speaker_ids, torch.Tensor) and speaker_ids.ndim == 1:
                speaker_ids = speaker_ids.repeat(copies)
            return decoder(hidden_states, padding, speaker_ids)
        if speaker_ids is not None:
            raise ValueError("speaker_ids are for tokenizers with num_speakers > 0, which this one does not have.")
        return run(decoder, hidden_states, padding)

    def _reconstruction(self, decoded: torch.Tensor, padding: Padding | None) -> torch.Tensor:
        """What the decoder's last layer means, 0 where there is padding."""
        reconstruction = self.likelihood.outputs(decoded)
        return reconstruction if padding is None else padding.clear(reconstruction)

    def _nll(
        self, decoded: torch.Tensor, pixel_values: torch.Tensor, padding: Padding | None, *index: int
    ) -> torch.Tensor:
        """The likelihood's term, of what is no padding; `index` of a reconstruction of progressive coding."""
        if padding is None:
            return self.likelihood.nll(decoded, pixel_values, *index)
        # A frame is to the likelihood like an item of one frame.
        nll = self.likelihood.nll(padding.pack(decoded), padding.pack(pixel_values), *index)
        return nll if self.config.is_deterministic else padding.per_item(nll)

    def code_levels(self, codes: Codes, attention_mask: torch.Tensor | None = None) -> list[torch.Tensor]:
        """The codes of every level for figures of their usage: (B, h, w), or (M,) without those of padding.

        Args:
            codes: Of a batch.
            attention_mask: Of the same batch, (B, W).
        """
        return real_codes(codes, self._decoding_padding(codes, attention_mask))

    def _objective(self, terms: dict[str, torch.Tensor]) -> torch.Tensor:
        """The loss: the sum of the terms, those that charge for codes and latents times `kl_weight`."""
        weights = {"reconstruction": 1.0, "progressive": 1.0}
        return torch.stack([weights.get(name, self.config.kl_weight) * term for name, term in terms.items()]).sum()


def unquantized(quantizer: nn.Module, latents: torch.Tensor) -> torch.Tensor:
    """Latents (B, h, w, d) as a quantiser compares them with its codes: on the sphere, or bounded, where codes are."""
    if isinstance(quantizer, VonMisesFisherQuantizer):
        return F.normalize(latents.float(), dim=-1)
    return quantizer.bounded(latents.float()) if isinstance(quantizer, FiniteScalarQuantizer) else latents


def level_diagnostics(
    quantized: Sequence[QuantizerOutput], codes: Codes | None, padding: Padding | None = None
) -> dict[str, torch.Tensor]:
    """The `diagnostics` of `ImageTokenizerOutput` for the quantised groups of a batch."""
    counts = [] if codes is None else list(map(code_counts, real_codes(codes, padding), codes.layout.codebook_sizes))
    empty = quantized[0].partial_sums[0].new_zeros(0)
    diagnostics = {
        "entropy": torch.cat([group.entropy for group in quantized]),
        "perplexity": code_entropy(counts).exp() if counts else empty,
        "active_codes": active_codes(counts) if counts else empty,
        "variance": torch.cat([group.variance for group in quantized]),
        "latent_energy": torch.cat([group.latent_energy.expand_as(group.residual_energy) for group in quantized]),
        "residual_energy": torch.cat([group.residual_energy for group in quantized]),
    }
    return {name: value.detach() for name, value in diagnostics.items()}

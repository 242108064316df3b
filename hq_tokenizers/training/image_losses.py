"""What training adds to the loss of a tokenizer of images: a perceptual distance and a discriminator's judgement."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel

from hq_tokenizers.checks import image_height_width
from hq_tokenizers.evaluation.networks import advice, as_rgb, check_packages
from hq_tokenizers.losses.adversarial import PatchDiscriminator, adaptive_weight, hinge_loss
from hq_tokenizers.losses.likelihoods import GaussianImages
from hq_tokenizers.metrics.pretrained.lpips_network import LPIPSNetwork, load_lpips
from hq_tokenizers.options.training import AdversarialConfig, TokenizerTrainingConfig
from hq_tokenizers.randomness import keep_noise

from .stage import Metrics


class ImageLosses:
    """The sum to add to the negative ELBO, or to the VQ objective, of D pixel values an image:

        (D / 2σ²) · (w_p LPIPS(x, x̂) + w_a λ (−E D(x̂)))

    D / 2σ² is what the model's own loss charges for a mean squared error of 1 per pixel value (1 / variance of the data
    for VQ), so that the weights w_p and w_a mean the same for every image size, likelihood and stage of training. See
    `losses.adversarial` for λ.

    Args:
        config: Options.
        model: The tokenizer.
        accelerator: Whose device and processes it is for.

    Raises:
        OSError: If the weights of LPIPS cannot be had; says what to download.
        ValueError: If the images are too small, or the model is one of label maps.
    """

    def __init__(self, config: TokenizerTrainingConfig, model: PreTrainedModel, accelerator: Accelerator) -> None:
        self._options, self._adversarial = config.perceptual, config.adversarial
        self._likelihood: GaussianImages = model.likelihood
        self._last_weight = last_weight(model.decoder)
        self._lpips = _build_lpips(config, model, accelerator)
        self.discriminator = _build_discriminator(config.adversarial, model, config.seed)
        self._step = 0
        self._pair: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def inputs(self) -> dict[str, str]:
        """Hash of the perceptual network."""
        return {} if self._lpips is None else {"perceptual_weights_sha256": self._lpips.weights_sha256}

    def before_step(self, step: int) -> list[str]:
        """Tells how many optimiser steps were made; returns what there is to say of it."""
        self._step = step
        if self._discriminator_trains:
            assert self.discriminator is not None
            self.discriminator.iterate()
        said = []
        if self._lpips is not None and step == self._options.start_step > 0:
            said.append(f"Step {step}: LPIPS counts from here on.")
        if self.discriminator is not None and step == self._discriminator_start != self._adversarial.start_step:
            said.append(f"Step {step}: the discriminator trains from here on.")
        if self.discriminator is not None and step == self._adversarial.start_step:
            said.append(f"Step {step}: the discriminator counts from here on.")
        return said

    def __call__(self, reconstruction: torch.Tensor, pixel_values: torch.Tensor) -> tuple[torch.Tensor, Metrics]:
        """The sum for reconstructions (B, C, H, W) of images, and its figures.

        The networks are gone through backwards once, on the way to the pixels; both the adaptive weight and the sum,
        which is linear in the reconstruction with the right value and gradient, are made from what arrives there.
        """
        pixels = reconstruction.detach().requires_grad_()
        if self._discriminator_trains:
            self._pair = pixel_values, pixels.detach()
        error = pixels.detach() - pixel_values
        gradient, value, figures = torch.zeros_like(error), error.new_zeros(()), {}
        if self._lpips is not None and self._step >= self._options.start_step:
            distance = self._lpips(as_rgb(pixels), as_rgb(pixel_values)).mean()
            gradient += self._options.weight * torch.autograd.grad(distance, pixels)[0]
            value += self._options.weight * distance.detach()
            figures["lpips"] = distance.detach()
        if self._discriminator_counts:
            assert self.discriminator is not None
            judgement = -self.discriminator(pixels).mean()
            (outwards,) = torch.autograd.grad(judgement, pixels)
            inwards = 2 * error / error.numel() + gradient
            limit = self._adversarial.max_adaptive_weight
            adaptive = adaptive_weight(reconstruction, inwards, outwards, self._last_weight, limit)
            weight = self._adversarial.weight * adaptive
            gradient += weight * outwards
            value += weight * judgement.detach()
            figures |= {"adversarial": judgement.detach(), "adversarial_weight": weight}
        error_weight = self._likelihood.error_weight(error.square().mean(), pixel_values[0].numel())
        linear = (reconstruction * gradient).sum()
        return error_weight * (linear - linear.detach() + value), figures

    def discriminator_loss(self) -> tuple[torch.Tensor, Metrics] | None:
        """The discriminator's loss on what was reconstructed last, and its figures; None while it does not train."""
        if self.discriminator is None or self._pair is None:
            return None
        images, reconstructions = self._pair
        self._pair = None
        real, fake = self.discriminator(images), self.discriminator(reconstructions)
        loss = hinge_loss(real, fake)
        return loss, {"discriminator_loss": loss, "real_logit": real.mean(), "fake_logit": fake.mean()}

    def discriminator_group(self, learning_rate: float) -> list[dict[str, Any]]:
        """The discriminator's group of parameters for the optimiser, whose schedule it shares; none without one."""
        if self.discriminator is None:
            return []
        rate = learning_rate * self._adversarial.learning_rate_factor
        group = {"params": list(self.discriminator.parameters()), "lr": rate, "weight_decay": 0.0}
        return [{**group, "betas": tuple(self._adversarial.adam_betas)}]

    @property
    def _discriminator_start(self) -> int:
        assert self._adversarial.start_step is not None
        return max(0, self._adversarial.start_step - self._adversarial.discriminator_warmup_steps)

    @property
    def _discriminator_trains(self) -> bool:
        return self.discriminator is not None and self._step >= self._discriminator_start

    @property
    def _discriminator_counts(self) -> bool:
        start = self._adversarial.start_step
        return start is not None and self._step >= start


def last_weight(decoder: nn.Module) -> nn.Parameter:
    """The weights of a decoder's last layer: convolutions make the pixels, and layers are listed in their order."""
    return [parameter for parameter in decoder.parameters() if parameter.ndim > 1][-1]


def _build_lpips(
    config: TokenizerTrainingConfig, model: PreTrainedModel, accelerator: Accelerator
) -> LPIPSNetwork | None:
    """With random weights in a dry run, which has no need of those that may have to be downloaded."""
    options = config.perceptual
    if options.network is None:
        return None
    _check_images(model, "perceptual.network")
    check_packages()
    text = "The option for weights is perceptual.weights; perceptual.network null trains without LPIPS."
    # One process downloads weights, the others find them. What random weights it is built with is none of training's.
    with advice(text), accelerator.local_main_process_first(), keep_noise():
        network = (
            LPIPSNetwork(options.network, None) if config.dry_run else load_lpips(options.network, options.weights)
        )
        image = torch.zeros(1, 3, *_image_size(model))
        network(image, image)
    return network.to(accelerator.device)


def _build_discriminator(config: AdversarialConfig, model: PreTrainedModel, seed: int) -> PatchDiscriminator | None:
    if config.start_step is None:
        return None
    _check_images(model, "adversarial.start_step")
    with keep_noise():
        # The same in every process, whatever else was drawn.
        torch.manual_seed(seed)
        channels = model.config.num_channels
        discriminator = PatchDiscriminator(channels, config.hidden_size, config.num_layers, config.norm)
    height, width = _image_size(model)
    if min(height, width) < discriminator.smallest_image:
        raise ValueError(
            f"A discriminator with adversarial.num_layers {config.num_layers} needs images of at least "
            f"{discriminator.smallest_image}×{discriminator.smallest_image}, got {height}×{width}: use fewer layers."
        )
    return discriminator


def _check_images(model: PreTrainedModel, option: str) -> None:
    if model.config.for_label_maps:
        raise ValueError(f"{option} is for images, but this tokenizer's likelihood is one of label maps.")


def _image_size(model: PreTrainedModel) -> tuple[int, int]:
    return image_height_width(model.config.image_size)

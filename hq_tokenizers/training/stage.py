"""What a training stage adds to the loop: its loss, its validation, and what happens besides."""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from hq_tokenizers.data.images import Batch
from hq_tokenizers.reporting.tracking import Record, Tracker

Metrics = dict[str, torch.Tensor]


class Stage(abc.ABC):
    """One stage of training; a subclass holds its options, its data and the model.

    Args:
        model: The bare model that is trained.
    """

    title: str
    """What is trained, for the progress bar."""
    discriminator: nn.Module | None
    """What is trained against the model, with the same optimiser; it is in checkpoints only."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.discriminator = None

    @abc.abstractmethod
    def step(self, wrapped: nn.Module, batch: Batch) -> tuple[torch.Tensor, Metrics]:
        """The loss of a batch, and figures to average over the log window; `wrapped` is the model to call.

        Figures may have a "loss" of their own, that which validations have.
        """

    def discriminator_step(self) -> tuple[torch.Tensor, Metrics] | None:
        """The discriminator's loss on the batch of the last `step`, and figures; None while it does not train."""
        return None

    @abc.abstractmethod
    def validate(self, model: PreTrainedModel) -> Record:
        """Figures of the whole validation split, among them "loss", of the model or of its moving average."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups of the optimiser."""
        return [{"params": list(self.model.parameters())}]

    def inputs(self) -> dict[str, str]:
        """What the run is made from besides its options, by name: hashes, which a continuation must find again."""
        return {}

    def before_epoch(self, tracker: Tracker, epoch: int, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
        """Called before the first step of an epoch, which are numbered from 0.

        Returns:
            The parameters and buffers that were given values which have nothing to do with those before, of which
            `optimizer` has been told: the moving average starts from them.
        """
        return []

    def before_step(self, tracker: Tracker, step: int) -> None:  # noqa: B027 (most have nothing to do)
        """Called before every optimiser step with the number of those that were made."""

    def after_step(self) -> None:  # noqa: B027 (most have nothing to do)
        """Called after every optimiser step."""

    def after_validation(self, model: PreTrainedModel, tracker: Tracker, step: int, figures: Record) -> None:  # noqa: B027
        """Called with the validated model and the figures of `validate`, on the main process."""

    def evaluate(self, model: PreTrainedModel) -> Record:
        """Further figures, every `evaluation_steps`; noise that it draws changes nothing in training."""
        return {}

    def is_judged(self) -> bool:
        """Whether validation losses count already, for the learning rate and the best model."""
        return True

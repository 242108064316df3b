"""What transformers' Trainer has to tell an image tokenizer that it trains."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import has_length

from hq_tokenizers.models.modeling_image_tokenizer import ImageTokenizerPreTrainedModel
from hq_tokenizers.quantization.moving_averages import set_accumulation


class ImageTokenizerCallback(TrainerCallback):
    """Moves the Gumbel temperature of an image tokenizer on, and re-estimates its codebooks where it is configured to.

    Without it a `Trainer` trains at the initial temperature, moving averages move with every part of a batch under
    `gradient_accumulation_steps`, and a model with `warmup_epochs` never quantises. What it counts is saved with the
    weights, so that a run continues from a checkpoint as it would have gone on. Priors need no callback.

    Examples:
        >>> trainer = Trainer(model, arguments, callbacks=[ImageTokenizerCallback()])  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self._epoch = 0
        self._first_step = 0
        """The optimiser step with which the epoch began: a Trainer counts batches from there."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Checks the model, and that its warm-up will end.

        Raises:
            TypeError: If it is no image tokenizer.
            ValueError: If one process has several GPUs; if the run has no more epochs than the model's warm-up, or
                none at all, as with an `IterableDataset`.
        """
        model, loader = kwargs["model"], kwargs["train_dataloader"]
        if not isinstance(model, ImageTokenizerPreTrainedModel):
            raise TypeError(
                f"ImageTokenizerCallback is for image tokenizers, got {type(model).__name__}: leave it out."
            )
        if args.n_gpu > 1:
            raise ValueError(
                f"One process has {args.n_gpu} GPUs, and moving averages would see the part of the first one only: "
                "start a process for each, by torchrun or accelerate launch, or show this one a single GPU "
                "(CUDA_VISIBLE_DEVICES=0)."
            )
        _check_warmup(model, state, loader)
        self._epoch = int(state.epoch or 0)
        self._first_step = state.global_step
        if has_length(loader) and not args.ignore_data_skip:
            steps = math.ceil(len(loader) / args.gradient_accumulation_steps)
            # A Trainer warns of a loader without a batch.
            self._first_step -= state.global_step % max(steps, 1)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tells the model that an epoch starts; again, where a run continues in the middle of one."""
        kwargs["model"].start_epoch(self._epoch, args.seed, kwargs["optimizer"])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tells the moving averages how many forward passes the step has.

        The last one of an epoch may have fewer. Of a dataset without a length that is not known: passes after its last
        whole step are forgotten.
        """
        parts, loader = args.gradient_accumulation_steps, kwargs["train_dataloader"]
        if has_length(loader):
            parts = min(parts, len(loader) - (state.global_step - self._first_step) * parts)
        set_accumulation(kwargs["model"], parts)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Counts an optimiser step."""
        kwargs["model"].advance()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Counts an epoch, also one that was stopped."""
        self._epoch += 1
        self._first_step = state.global_step

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leaves the model as another training loop expects it: a forward pass is a step."""
        set_accumulation(kwargs["model"], 1)


def _check_warmup(model: ImageTokenizerPreTrainedModel, state: TrainerState, loader: Any) -> None:
    """Raises a ValueError if the model's warm-up would not end."""
    warmup_epochs = model.config.warmup_epochs
    if not model.warming_up:
        return
    if not has_length(loader):
        raise ValueError(
            f"The model quantises nothing in its first epochs ({warmup_epochs}), and a Trainer does not count "
            "those of a dataset without a length: give one that has a length, or a model with warmup_epochs and "
            "reestimation_epochs 0."
        )
    if state.num_train_epochs <= warmup_epochs:
        raise ValueError(
            f"The model quantises nothing in its first epochs ({warmup_epochs}), its codebooks are estimated after "
            f"them, and the run has no more ({state.num_train_epochs}): train for longer (num_train_epochs, "
            "max_steps), or set the model's warmup_epochs lower."
        )

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

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Checks the model, and that its warm-up will end.

        Raises:
            TypeError: If it is no image tokenizer.
            ValueError: If the run has no more epochs than the model's warm-up, or none at all, as with an
                `IterableDataset`.
        """
        model = kwargs["model"]
        if not isinstance(model, ImageTokenizerPreTrainedModel):
            raise TypeError(
                f"ImageTokenizerCallback is for image tokenizers, got {type(model).__name__}: leave it out."
            )
        warmup_epochs = model.config.warmup_epochs
        if not model.warming_up:
            return
        if not has_length(kwargs["train_dataloader"]):
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

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tells the model that an epoch starts."""
        epoch = state.epoch or 0.0
        # A run that continues in the middle of an epoch announces it again.
        if epoch == int(epoch):
            kwargs["model"].start_epoch(int(epoch), args.seed, kwargs["optimizer"])

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tells the moving averages how many forward passes the step has: the last one of an epoch may have fewer."""
        parts = args.gradient_accumulation_steps
        if has_length(kwargs["train_dataloader"]):
            batches = len(kwargs["train_dataloader"])
            steps = math.ceil(batches / parts)
            if (state.global_step + 1) % steps == 0:
                parts = batches - (steps - 1) * parts
        set_accumulation(kwargs["model"], parts)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Counts an optimiser step."""
        kwargs["model"].advance()

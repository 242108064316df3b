"""What transformers' Trainer has to tell an image tokenizer that it trains."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hq_tokenizers.models.modeling_image_tokenizer import ImageTokenizerPreTrainedModel
from hq_tokenizers.quantization.codebook import codebook_tensors
from hq_tokenizers.training.optimization import without_gradients


class ImageTokenizerCallback(TrainerCallback):
    """Moves the Gumbel temperature of an image tokenizer on, and re-estimates its codebooks where it is configured to.

    Without it a `Trainer` trains at the initial temperature, and a model with `warmup_epochs` never quantises. What it
    counts is saved with the weights, so that a run continues from a checkpoint as it would have gone on. Priors need
    no callback.

    Examples:
        >>> trainer = Trainer(model, arguments, callbacks=[ImageTokenizerCallback()])  # doctest: +SKIP
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Checks the model.

        Raises:
            TypeError: If it is no image tokenizer.
        """
        if not isinstance(kwargs["model"], ImageTokenizerPreTrainedModel):
            raise TypeError(
                f"ImageTokenizerCallback is for image tokenizers, got {type(kwargs['model']).__name__}: leave it out."
            )

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Tells the model that an epoch starts."""
        epoch = state.epoch or 0.0
        # A run that continues in the middle of an epoch announces it again.
        if epoch == int(epoch) and kwargs["model"].start_epoch(int(epoch), args.seed):
            # What the optimiser knows belongs to codebooks that are gone, and to a time when nothing was quantised.
            optimizer = kwargs["optimizer"]
            for tensor in [*codebook_tensors(kwargs["model"]), *without_gradients(optimizer)]:
                optimizer.state.pop(tensor, None)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Counts an optimiser step."""
        kwargs["model"].advance()

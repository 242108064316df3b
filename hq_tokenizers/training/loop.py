"""The training loop that both stages share: steps, validation, checkpoints, and resuming at any step.

A stage says what one step's loss is, how a model is validated, and what happens besides; the loop does the rest. Its
steps wait for the device only when something is logged.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list, set_seed
from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel

from hq_tokenizers.data.batches import BatchPlan
from hq_tokenizers.data.images import Batch, BatchSource
from hq_tokenizers.models.checkpointed_layers import enable_gradient_checkpointing
from hq_tokenizers.options.reading import options_to_dict
from hq_tokenizers.options.training import LoopConfig
from hq_tokenizers.randomness import keep_noise
from hq_tokenizers.reporting.tracking import Record, Tracker, read_history

from .checkpoints import list_checkpoints, load_checkpoint, read_state, save_checkpoint
from .continuation import check_inputs, check_options, count_steps
from .optimization import MovingAverage, Schedule, build_optimizer
from .stage import Metrics, Stage

BEST_WEIGHTS = "best.safetensors"


class TrainingLoop:
    """Trains a model.

    Args:
        config: Options.
        accelerator: From `create_accelerator`.
        data: Training rows.
        stage: What the stage adds, and the model with its initial weights.

    Raises:
        ValueError: If the data do not fill a batch.
    """

    def __init__(self, config: LoopConfig, accelerator: Accelerator, data: BatchSource, stage: Stage):
        self.config = config
        self.stage = stage
        self.inputs = stage.inputs()
        self.accelerator = accelerator
        self.data = data
        self.output_dir = Path(config.output_dir)
        self.plan = BatchPlan(
            num_rows=len(data),
            batch_size=config.batch_size,
            seed=config.seed,
            num_parts=config.gradient_accumulation,
            num_processes=accelerator.num_processes,
            process_index=accelerator.process_index,
        )
        per_epoch = self.plan.steps_per_epoch
        self.total_steps = count_steps(options_to_dict(config), per_epoch)
        self.validation_steps = config.validation_steps or per_epoch
        self.checkpoint_steps = config.checkpoint_steps or per_epoch
        self.model = stage.model.to(accelerator.device)
        if config.gradient_checkpointing:
            enable_gradient_checkpointing(self.model)
        self.average = None if config.ema_decay is None else MovingAverage(self.model, config.ema_decay)
        self.optimizer = build_optimizer(config, stage.parameter_groups())
        self.schedule = Schedule(config, self.optimizer, self.total_steps)
        self.best_loss = float("inf")
        self.step = 0
        self._sums: Metrics = {}
        self._window = 0
        self._log_time = 0.0

    def run(self) -> PreTrainedModel:
        """Trains from the newest checkpoint, or from the start, to the last step.

        Returns:
            The model to keep, in evaluation mode: the average with `ema_decay`, the best with `keep_best`.

        Raises:
            ValueError: If the output folder holds a run of other options, inputs or processes, or a cosine schedule of
                another length.
            FloatingPointError: If loss or weights stop being finite.
        """
        # Noise differs between processes; the wrapper has given all of them the main one's weights.
        wrapped = self.accelerator.prepare_model(self.model)
        set_seed(self.config.seed, device_specific=True)
        self._resume()
        evaluation_missed = self._evaluation_missed()
        with self._tracker() as tracker:
            if 0 < self.step < self.total_steps:
                tracker.say(f"Continuing {self.output_dir} at step {self.step} of {self.total_steps}.")
            elif self.step > self.total_steps:
                tracker.say(
                    f"{self.output_dir} holds a run of {self.step} steps, longer than the {self.total_steps} asked "
                    f"for: nothing is trained, and the report is of the {self.step} steps. For a shorter run choose "
                    "another output_dir."
                )
            if evaluation_missed:
                self._evaluate(tracker)
            self._train(wrapped, tracker)
        return self._final_model()

    def _train(self, wrapped: torch.nn.Module, tracker: Tracker) -> None:
        self.model.train()
        self._log_time = time.perf_counter()
        while self.step < self.total_steps:
            epoch, steps_done = divmod(self.step, self.plan.steps_per_epoch)
            if steps_done == 0:
                self._forget_past(self.stage.before_epoch(tracker, epoch))
            batches = self.data.batches(self.plan.rest_of_epoch(self.step), self.accelerator.device)
            steps = zip(*[batches] * self.config.gradient_accumulation, strict=True)
            for parts in steps:
                self._optimize(wrapped, parts)
                self.step += 1
                self._after_step(tracker)
                if self.step == self.total_steps:
                    break

    def _forget_past(self, replaced: list[torch.Tensor]) -> None:
        """What optimiser and average know of these tensors belongs to values that are gone."""
        for tensor in replaced:
            self.optimizer.state.pop(tensor, None)
        if self.average is not None:
            self.average.take_over(self.model, replaced)

    def _optimize(self, wrapped: torch.nn.Module, parts: tuple[Batch, ...]) -> None:
        """One optimiser step."""
        for index, batch in enumerate(parts):
            last = index == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(wrapped):
                with torch.autocast(self.accelerator.device.type, torch.bfloat16, enabled=self.config.bf16):
                    loss, metrics = self.stage.step(wrapped, batch)
                self.accelerator.backward(loss / len(parts))
            self._accumulate({"loss": loss, **metrics})
        if self.config.max_grad_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.after_step()

    def _after_step(self, tracker: Tracker) -> None:
        self.stage.after_step()
        if self.average is not None:
            self.average.update(self.model, self.step)
        tracker.advance(self.step)
        last = self.step == self.total_steps
        if last or self.step % self.config.log_steps == 0:
            self._log(tracker)
        if last or self.step % self.validation_steps == 0:
            self._validate(tracker)
        if last or self.step % self.checkpoint_steps == 0:
            self._save()
        # After the checkpoint: an evaluation can take long, or fail.
        if self._evaluation_due():
            self._evaluate(tracker)

    def _accumulate(self, metrics: Metrics) -> None:
        """Adds up on the device, so that no step waits for it."""
        for name, value in metrics.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
        self._window += 1

    def _log(self, tracker: Tracker) -> None:
        count = self._window
        means = {name: self.accelerator.reduce(total, "mean") / count for name, total in self._sums.items()}
        figures = {name: mean.tolist() for name, mean in means.items()}
        self._sums, self._window = {}, 0
        now = time.perf_counter()
        images = count // self.config.gradient_accumulation * self.config.batch_size
        speed, self._log_time = images / (now - self._log_time), now
        self._check_finite(figures["loss"])
        rate = self.optimizer.param_groups[0]["lr"]
        tracker.record({**self._position("train"), **figures, "learning_rate": rate, "images_per_second": speed})

    def _validate(self, tracker: Tracker) -> None:
        started = time.perf_counter()
        model = self._model_to_keep()
        model.eval()
        with torch.no_grad():
            figures = self.stage.validate(model)
            if tracker.active:
                self.stage.after_validation(model, tracker, self.step, figures)
        self._check_finite(figures["loss"])
        tracker.record({**self._position("validation"), **figures})
        if self.stage.is_judged():
            self._judge(model, figures["loss"], tracker)
        self.model.train()
        # Validation does not count as training time.
        self._log_time += time.perf_counter() - started

    def _judge(self, model: PreTrainedModel, loss: float, tracker: Tracker) -> None:
        if self.step % self.validation_steps == 0:
            # An extra validation at the end of a run must not change what a continuation learns.
            self.schedule.after_validation(loss)
        if self.config.keep_best and loss < self.best_loss and tracker.active:
            save_model(model, str(self.output_dir / BEST_WEIGHTS))
        self.best_loss = min(self.best_loss, loss)

    def _evaluation_due(self) -> bool:
        every = self.config.evaluation_steps
        return every is not None and (self.step == self.total_steps or self.step % every == 0)

    def _evaluation_missed(self) -> bool:
        """Whether an earlier attempt ended between a checkpoint and the evaluation of the same step."""
        done = [record["step"] for record in read_history(self.output_dir) if record["split"] == "evaluation"]
        missed = [self.step > 0 and self._evaluation_due() and self.step not in done]
        # The main process decides: others may see its file later.
        return bool(broadcast_object_list(missed)[0])

    def _evaluate(self, tracker: Tracker) -> None:
        started = time.perf_counter()
        with keep_noise(), torch.no_grad():
            figures = self.stage.evaluate(self._model_to_keep().eval())
        if figures:
            tracker.record({**self._position("evaluation"), **figures})
        self.model.train()
        self._log_time += time.perf_counter() - started

    def _save(self) -> None:
        weights = torch.stack([parameter.detach().abs().max() for parameter in self.model.parameters()])
        self._check_finite(weights.sum().item())
        self._model_to_keep()
        save_checkpoint(
            self.output_dir,
            self.step,
            self._modules(),
            self.optimizer,
            {
                "options": options_to_dict(self.config),
                "inputs": self.inputs,
                "schedule": self.schedule.state_dict(),
                "best_loss": self.best_loss,
            },
            keep=self.config.keep_checkpoints,
            process_index=self.accelerator.process_index,
            wait_for_everyone=self.accelerator.wait_for_everyone,
        )

    def _resume(self) -> None:
        checkpoints = list_checkpoints(self.output_dir)
        if not checkpoints:
            return
        earlier = read_state(checkpoints[-1])
        check_options(self.config, earlier["options"], self.plan.steps_per_epoch)
        check_inputs(self.config.output_dir, self.inputs, earlier.get("inputs", {}))
        processes = self.accelerator.process_index, self.accelerator.num_processes
        state = load_checkpoint(checkpoints[-1], self._modules(), self.optimizer, *processes)
        self.schedule.load_state_dict(state["schedule"])
        self.step, self.best_loss = state["step"], state["best_loss"]

    def _model_to_keep(self) -> PreTrainedModel:
        """The model to validate and save, with the same buffers in every process."""
        if self.accelerator.num_processes > 1:
            # Each process has the batch statistics of its own images, and averages of these.
            for module in self._modules().values():
                for buffer in module.buffers():
                    buffer.copy_(broadcast(buffer))
        if self.average is None:
            return self.model
        self.average.copy_rest(self.model)
        return self.average.model

    def _final_model(self) -> PreTrainedModel:
        model = self._model_to_keep()
        self.accelerator.wait_for_everyone()
        if self.config.keep_best:
            load_model(model, str(self.output_dir / BEST_WEIGHTS))
        return model.eval()

    def _modules(self) -> dict[str, torch.nn.Module]:
        return {"model": self.model} | ({} if self.average is None else {"average": self.average.model})

    def _position(self, split: str) -> Record:
        return {"step": self.step, "epoch": self.step / self.plan.steps_per_epoch, "split": split}

    def _tracker(self) -> Tracker:
        active = self.accelerator.is_main_process
        return Tracker(self.output_dir, self.stage.title, self.total_steps, self.step, active)

    def _check_finite(self, value: float) -> None:
        if not abs(value) < float("inf"):
            raise FloatingPointError(
                f"The loss or the weights stopped being finite ({value}) by step {self.step}. Earlier checkpoints are "
                "intact. Try a lower learning_rate, max_grad_norm: 1.0, or bf16: false; and check that the images hold "
                "no NaN."
            )

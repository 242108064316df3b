"""The training loop that both stages share: steps, validation, checkpoints, and resuming at any step.

A stage says what one step's loss is, how a model is validated, and what happens besides; the loop does the rest. Its
steps wait for the device only when something is logged.
"""

from __future__ import annotations

import signal
from contextlib import closing, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel

from hq_tokenizers.data.feeds import build_feed
from hq_tokenizers.data.images import Batch, BatchSource
from hq_tokenizers.data.streams import ImageStream
from hq_tokenizers.files import naming_full_disk, replacing, sync
from hq_tokenizers.models.checkpointed_layers import enable_gradient_checkpointing
from hq_tokenizers.options.reading import options_to_dict
from hq_tokenizers.options.training import LoopConfig
from hq_tokenizers.processes import average_gradients, broadcast, check_processes, main_process_finds
from hq_tokenizers.randomness import keep_noise
from hq_tokenizers.reporting.tracking import HISTORY, Record, Tracker, read_history

from .checkpoints import load_checkpoint, newest_checkpoint, read_state, save_checkpoint, weights_damage
from .continuation import check_checkpoints, check_inputs, check_options, check_settings, count_steps
from .interruption import Interruption
from .log_window import LogWindow
from .model_options import settings_of
from .optimization import MovingAverage, Precision, Schedule, build_optimizer, precision_warning
from .stage import Metrics, Stage

BEST_WEIGHTS = "best.safetensors"
_FEED = "feed."


class TrainingLoop:
    """Trains a model.

    Args:
        config: Options.
        accelerator: From `create_accelerator`.
        data: Training rows, or a stream of images.
        stage: What the stage adds, and the model with its initial weights.

    Raises:
        ValueError: If the data do not fill a batch.
    """

    def __init__(self, config: LoopConfig, accelerator: Accelerator, data: BatchSource | ImageStream, stage: Stage):
        self.config = config
        self.stage = stage
        self.inputs = stage.inputs()
        self.accelerator = accelerator
        self.output_dir = Path(config.output_dir)
        self.feed = build_feed(
            data,
            config.batch_size,
            config.seed,
            config.gradient_accumulation,
            accelerator.num_processes,
            accelerator.process_index,
        )
        per_epoch = self.feed.steps_per_epoch
        self.total_steps = count_steps(options_to_dict(config), per_epoch)
        self.validation_steps = config.validation_steps or per_epoch
        self.checkpoint_steps = config.checkpoint_steps or per_epoch
        check_processes(accelerator)
        self.model = stage.model.to(accelerator.device)
        self.discriminator = None if stage.discriminator is None else stage.discriminator.to(accelerator.device)
        if config.gradient_checkpointing:
            enable_gradient_checkpointing(self.model)
        self.average = None if config.ema_decay is None else MovingAverage(self.model, config.ema_decay)
        self.optimizer = build_optimizer(config, stage.parameter_groups())
        self.schedule = Schedule(config, self.optimizer, self.total_steps)
        self.precision = Precision(config.mixed_precision, accelerator.device)
        self.best_loss = float("inf")
        self.step = 0
        self._saved_step = 0
        self._window = LogWindow()
        self._interruption = Interruption(accelerator.is_main_process)

    def run(self) -> PreTrainedModel:
        """Trains from the newest checkpoint that is not damaged, or from the start, to the last step.

        Returns:
            The model to keep, in evaluation mode: the average with `ema_decay`, the best with `keep_best`.

        Raises:
            ValueError: If the output folder holds a run of other options, inputs or processes, or a cosine schedule of
                another length; or if all of its checkpoints are damaged.
            FloatingPointError: If loss or weights stop being finite.
            DiskFullError: If there is no space to write something; earlier checkpoints are intact.
            KeyboardInterrupt, SystemExit: After a Ctrl-C or a SIGTERM, with a checkpoint of the step that was made.
        """
        # Noise differs between processes; the wrapper has given all of them the main one's weights.
        wrapped = self.accelerator.prepare_model(self.model)
        if self.config.compile:
            wrapped = torch.compile(wrapped)
        set_seed(self.config.seed, device_specific=True)
        warnings = self._resume()
        if slow := precision_warning(self.config.mixed_precision, self.accelerator.device):
            warnings.append(slow)
        evaluation_missed = self._evaluation_missed()
        with self._tracker() as tracker, self._interruption:
            for warning in warnings:
                tracker.say(f"warning: {warning}")
            if 0 < self.step < self.total_steps:
                tracker.say(f"Continuing {self.output_dir} at step {self.step} of {self.total_steps}.")
            elif self.step == self.total_steps:
                tracker.say(
                    f"{self.output_dir} holds a finished run of {self.step} steps: nothing is trained. For a longer "
                    "one ask for more steps."
                )
            elif self.step > self.total_steps:
                tracker.say(
                    f"{self.output_dir} holds a run of {self.step} steps, longer than the {self.total_steps} asked "
                    f"for: nothing is trained, and the report is of the {self.step} steps. For a shorter run choose "
                    "another output_dir."
                )
            if evaluation_missed:
                self._evaluate(tracker)
            if self.config.compile and self.step < self.total_steps:
                tracker.say("Compiling the model with the first step, which may take minutes.")
            self._train(wrapped, tracker)
        return self._final_model()

    def _train(self, wrapped: torch.nn.Module, tracker: Tracker) -> None:
        self.model.train()
        self._window.start()
        while self.step < self.total_steps:
            epoch, steps_done = divmod(self.step, self.feed.steps_per_epoch)
            if steps_done == 0:
                self._start_epoch(tracker, epoch)
            # Closed at once, for the threads that read a stream would outlive the command.
            with closing(self.feed.rest_of_epoch(self.step, self.accelerator.device)) as batches:
                for parts in zip(*[batches] * self.config.gradient_accumulation, strict=True):
                    self.stage.before_step(tracker, self.step)
                    self._optimize(wrapped, parts)
                    self.step += 1
                    self._after_step(tracker)
                    if self.step == self.total_steps:
                        break

    def _start_epoch(self, tracker: Tracker, epoch: int) -> None:
        replaced = self.stage.before_epoch(tracker, epoch, self.optimizer)
        if self.average is not None:
            self.average.take_over(self.model, replaced)

    def _optimize(self, wrapped: torch.nn.Module, parts: tuple[Batch, ...]) -> None:
        """One optimiser step, of the model and of its discriminator."""
        for index, batch in enumerate(parts):
            last = index == len(parts) - 1
            with nullcontext() if last else self.accelerator.no_sync(wrapped):
                with self.precision.autocast():
                    loss, metrics = self.stage.step(wrapped, batch)
                # Codes that follow averages, between networks that are frozen, learn without a gradient.
                if loss.requires_grad:
                    self.accelerator.backward(self.precision.scale(loss / len(parts)))
            self._window.add({"loss": loss, **metrics, **self._learn_to_discriminate(len(parts))})
        self._clip_gradients()
        self.precision.step(self.optimizer)
        self.optimizer.zero_grad()
        self.schedule.after_step()

    def _learn_to_discriminate(self, num_parts: int) -> Metrics:
        """Adds to the discriminator's gradient; returns figures."""
        with self.precision.autocast():
            judged = self.stage.discriminator_step()
        if judged is None:
            return {}
        loss, metrics = judged
        self.precision.scale(loss / num_parts).backward()
        return metrics

    def _clip_gradients(self) -> None:
        """Averages what no wrapper has averaged over the processes, and clips the norm of each network's gradient."""
        networks = [self.model] if self.discriminator is None else [self.model, self.discriminator]
        for network in networks[1:]:
            average_gradients(network)
        if self.config.max_grad_norm is not None:
            self.precision.unscale(self.optimizer)
            for network in networks:
                torch.nn.utils.clip_grad_norm_(network.parameters(), self.config.max_grad_norm)

    def _after_step(self, tracker: Tracker) -> None:
        self.stage.after_step()
        if self.average is not None:
            self.average.update(self.model, self.step)
        tracker.advance(self.step)
        log, validate, save = map(self._is_due, (self.config.log_steps, self.validation_steps, self.checkpoint_steps))
        if log:
            self._log(tracker)
        if validate:
            with self._window.leaving_out():
                self._validate(tracker)
        if save:
            self._save()
        # Several processes have to agree, which they do where they wait for each other anyway.
        if log or validate or save or self.accelerator.num_processes == 1:
            self._stop_if_asked(tracker)
        # After the checkpoint: an evaluation can take long, or fail.
        if self._evaluation_due():
            self._evaluate(tracker)
            self._stop_if_asked(tracker)

    def _is_due(self, every: int) -> bool:
        return self.step == self.total_steps or self.step % every == 0

    def _stop_if_asked(self, tracker: Tracker) -> None:
        received = self._interruption.agreed(self.accelerator)
        if not received:
            return
        if self._saved_step != self.step:
            self._save()
        said = f"Stopped at step {self.step} of {self.total_steps}: run the same command to continue."
        tracker.say(said)
        if received == signal.SIGINT:
            raise KeyboardInterrupt(said)
        raise SystemExit(128 + received)

    def _log(self, tracker: Tracker) -> None:
        figures, parts, seconds = self._window.close(self.accelerator)
        images = parts // self.config.gradient_accumulation * self.config.batch_size
        self._check_finite(figures["loss"])
        rate = self.optimizer.param_groups[0]["lr"]
        speed = images / seconds
        tracker.record({**self._position("train"), **figures, "learning_rate": rate, "images_per_second": speed})

    def _validate(self, tracker: Tracker) -> None:
        model = self._model_to_keep()
        model.eval()
        with torch.no_grad():
            figures = self.stage.validate(model)
            self._check_finite(figures["loss"])
            tracker.record({**self._position("validation"), **figures})
            if tracker.active:
                with naming_full_disk(self.output_dir):
                    self.stage.after_validation(model, tracker, self.step, figures)
        if self.stage.is_judged():
            self._judge(model, figures["loss"], tracker)
        self.model.train()

    def _judge(self, model: PreTrainedModel, loss: float, tracker: Tracker) -> None:
        if self.step % self.validation_steps == 0:
            # An extra validation at the end of a run must not change what a continuation learns.
            self.schedule.after_validation(loss)
        if self.config.keep_best and loss < self.best_loss and tracker.active:
            with replacing(self.output_dir / BEST_WEIGHTS) as partial:
                save_model(model, str(partial))
        self.best_loss = min(self.best_loss, loss)

    def _evaluation_due(self) -> bool:
        every = self.config.evaluation_steps
        return every is not None and self._is_due(every)

    def _evaluation_missed(self) -> bool:
        """Whether an earlier attempt ended between a checkpoint and the evaluation of the same step."""
        done = [record["step"] for record in read_history(self.output_dir) if record["split"] == "evaluation"]
        return main_process_finds(self.step > 0 and self._evaluation_due() and self.step not in done)

    def _evaluate(self, tracker: Tracker) -> None:
        with self._window.leaving_out():
            with keep_noise(), torch.no_grad():
                figures = self.stage.evaluate(self._model_to_keep().eval())
            if figures:
                tracker.record({**self._position("evaluation"), **figures})
            self.model.train()

    def _save(self) -> None:
        modules = self._modules()
        parameters = [parameter for module in modules.values() for parameter in module.parameters()]
        weights = torch.stack([parameter.detach().abs().max() for parameter in parameters])
        self._check_finite(weights.sum().item())
        self._model_to_keep()
        if self.accelerator.is_main_process:
            # A checkpoint must not outlive the records of its steps.
            sync(self.output_dir / HISTORY)
        save_checkpoint(
            self.output_dir,
            self.step,
            modules,
            self.optimizer,
            {
                "options": options_to_dict(self.config),
                "inputs": self.inputs,
                "settings": settings_of(self.model.config),
                "schedule": self.schedule.state_dict(),
                "gradient_scaler": self.precision.state_dict(),
                "best_loss": self.best_loss,
                "window": self._window.state_dict(),
            },
            keep=self.config.keep_checkpoints,
            own={**self._window.sums, **{f"{_FEED}{name}": state for name, state in self.feed.state_dict().items()}},
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            wait_for_everyone=self.accelerator.wait_for_everyone,
        )
        self._saved_step = self.step

    def _resume(self) -> list[str]:
        """Goes back to the newest checkpoint that is not damaged; returns what there is to warn of."""
        checkpoint, problems = main_process_finds(newest_checkpoint(self.output_dir))
        check_checkpoints(self.output_dir, checkpoint, problems)
        if checkpoint is None:
            return []
        earlier = read_state(checkpoint)
        check_options(self.config, earlier["options"], self.feed.steps_per_epoch)
        check_settings(self.config.output_dir, self.model.config, earlier.get("settings"))
        check_inputs(self.config.output_dir, self.inputs, earlier.get("inputs", {}))
        processes = self.accelerator.process_index, self.accelerator.num_processes
        state, own = load_checkpoint(checkpoint, self._modules(), self.optimizer, *processes)
        of_feed = {name: tensor for name, tensor in own.items() if name.startswith(_FEED)}
        sums = {name: tensor for name, tensor in own.items() if name not in of_feed}
        self.feed.load_state_dict({name.removeprefix(_FEED): tensor for name, tensor in of_feed.items()})
        self.schedule.load_state_dict(state["schedule"])
        self.precision.load_state_dict(state.get("gradient_scaler", {}))
        self._window.load_state_dict(state["window"], sums, self.accelerator.device)
        self.step, self.best_loss = state["step"], state["best_loss"]
        self._saved_step = self.step
        warnings = [f"{problem}. The run continues from the older {checkpoint.name}." for problem in problems]
        return warnings + self._check_best()

    def _check_best(self) -> list[str]:
        """Forgets a best loss whose weights are lost; returns what there is to warn of."""
        if not self.config.keep_best or self.best_loss == float("inf"):
            return []
        problem = main_process_finds(weights_damage(self.output_dir / BEST_WEIGHTS))
        if problem is None:
            return []
        self.best_loss = float("inf")
        return [f"{problem}. The run ends with the best weights of later validations; without any, with the last ones."]

    def _model_to_keep(self) -> PreTrainedModel:
        """The model to validate and save, with the same buffers in every process."""
        if self.accelerator.num_processes > 1:
            # Each process has the batch statistics of its own images, and averages of these.
            for module in self._modules().values():
                for buffer in module.buffers():
                    broadcast(buffer)
        if self.average is None:
            return self.model
        self.average.copy_rest(self.model)
        return self.average.model

    def _final_model(self) -> PreTrainedModel:
        model = self._model_to_keep()
        self.accelerator.wait_for_everyone()
        if self.config.keep_best and self.best_loss < float("inf"):
            load_model(model, str(self.output_dir / BEST_WEIGHTS))
        return model.eval()

    def _modules(self) -> dict[str, torch.nn.Module]:
        average = None if self.average is None else self.average.model
        modules = {"model": self.model, "average": average, "discriminator": self.discriminator}
        return {name: module for name, module in modules.items() if module is not None}

    def _position(self, split: str) -> Record:
        epochs = self.feed.epochs(self.step)
        epoch = {} if epochs is None else {"epoch": epochs}
        return {"step": self.step, **epoch, "split": split}

    def _tracker(self) -> Tracker:
        active, config = self.accelerator.is_main_process, self.config
        return Tracker(self.output_dir, self.stage.title, self.total_steps, self.step, active, config.trackers)

    def _check_finite(self, value: float) -> None:
        if not abs(value) < float("inf"):
            raise FloatingPointError(
                f"The loss or the weights stopped being finite ({value}) by step {self.step}. Earlier checkpoints are "
                "intact. Try a lower learning_rate, max_grad_norm: 1.0, or mixed_precision: no; and check that the "
                "images hold no NaN."
            )

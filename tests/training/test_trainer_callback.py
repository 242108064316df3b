"""Both kinds of models in transformers' own Trainer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.utils.data import IterableDataset, default_collate
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hq_tokenizers import (
    Codes,
    ContextualPriorConfig,
    ContextualPriorModel,
    HQVAEConfig,
    HQVAEModel,
    ImageTokenizerCallback,
    MaskedPriorConfig,
    MaskedPriorModel,
    RQPriorConfig,
    RQPriorModel,
    SQVAEConfig,
    SQVAEModel,
    robust_vq_vae,
)
from hq_tokenizers.quantization.moving_averages import MovingAverages
from hq_tokenizers.quantization.residual_variance import ResidualVariance

SIZE = {"image_size": 8, "num_channels": 1, "hidden_size": 8, "codebook_dim": 4}
TOKENIZERS = {
    "sq_vae": (SQVAEModel, SQVAEConfig, {"num_downsampling": 1, "codebook_size": 16}),
    "hq_vae": (HQVAEModel, HQVAEConfig, {"code_groups": ["stride 4: 8", "stride 2: 8"]}),
}
PRIORS = {
    "rq": (RQPriorModel, RQPriorConfig),
    "masked": (MaskedPriorModel, MaskedPriorConfig),
    "contextual": (ContextualPriorModel, ContextualPriorConfig),
}


def arguments(folder, **options):
    defaults = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_steps": 4, "logging_steps": 1}
    quiet = {"report_to": [], "use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    return TrainingArguments(output_dir=str(folder), **defaults | quiet | options)


def pixel_rows(number, **columns):
    draw = torch.Generator().manual_seed(0)
    return [{"pixel_values": torch.rand(1, 8, 8, generator=draw)} | columns for _ in range(number)]


def tokenizer(name, **fields):
    model_class, config_class, sizes = TOKENIZERS[name]
    return model_class(config_class(**SIZE | sizes | fields))


def prior(name, num_classes=3):
    model_class, config_class = PRIORS[name]
    layout = tokenizer("hq_vae").code_layout().to_dict()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "dropout": 0.0, "label_dropout": 0.0}
    return model_class(config_class(code_layout=layout, num_classes=num_classes, **sizes))


def code_columns(number, **columns):
    codes = tokenizer("hq_vae").eval().encode(torch.rand(number, 1, 8, 8))
    return codes, Dataset.from_dict({"codes": codes.flatten().tolist(), **columns})


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_tokenizer_is_annealed_evaluated_and_asked_for_predictions(name, tmp_path):
    model = tokenizer(name, gumbel_decay=0.5)
    rows = pixel_rows(8, label=1)
    trainer = Trainer(
        model,
        arguments(tmp_path, gradient_accumulation_steps=2, eval_strategy="epoch"),
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[ImageTokenizerCallback()],
    )
    trainer.train()
    assert math.isclose(model.temperature().item(), math.exp(-0.5 * 4), rel_tol=1e-6)

    pixels = torch.stack([row["pixel_values"] for row in rows])
    model.eval()
    with torch.no_grad():
        losses = [model(batch).loss.item() for batch in pixels.split(4)]
        reconstruction = model(pixels, return_loss=False).reconstruction
    assert math.isclose(trainer.state.log_history[-2]["eval_loss"], sum(losses) / 2, rel_tol=1e-5)
    predicted = trainer.predict(rows).predictions
    np.testing.assert_allclose(predicted, reconstruction.numpy(), atol=1e-6)


def moving(model):
    return [module for module in model.modules() if isinstance(module, MovingAverages)]


def counts_after(model, images):
    """Σ n_k after steps of as many images: the formula, with a decay of 0.9."""
    masses = [float(len(module.count)) for module in moving(model)]
    for number in images:
        vectors = [number * group.num_positions for group in model.code_layout().groups]
        masses = [0.9 * mass + 0.1 * of_step for mass, of_step in zip(masses, vectors, strict=True)]
    return pytest.approx(masses, rel=1e-5)


class StopTheEpoch(TrainerCallback):
    """After the second step of a run."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_epoch_stop = state.global_step == 2


LEARNED = {"codebook_update": "ema", "ema_decay": 0.9, "variance_update": "residual"}


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    ("callbacks", "images"),
    [([], [12, 12, 8] * 2), ([StopTheEpoch()], [12, 12, 12, 12, 8])],
    ids=["whole", "stopped"],
)
def test_averages_move_once_per_step_whose_last_one_of_an_epoch_may_be_short(name, callbacks, images, tmp_path):
    """Eight batches of four in threes: of two epochs, three steps each, the last ones have two."""
    model = tokenizer(name, **LEARNED).train()
    expected = counts_after(model, images)
    options = arguments(tmp_path, gradient_accumulation_steps=3, num_train_epochs=2, max_steps=-1)
    Trainer(model, options, train_dataset=pixel_rows(32), callbacks=[*callbacks, ImageTokenizerCallback()]).train()
    assert [module.count.sum().item() for module in moving(model)] == expected
    assert {int(module.step) for module in model.modules() if isinstance(module, ResidualVariance)} == {len(images)}
    assert {module.parts for module in moving(model)} == {1}


@pytest.mark.parametrize(("skip", "images"), [(True, [8, 12, 12, 8]), (False, [12, 12, 8, 12])])
def test_averages_of_a_run_that_continues_in_an_epoch(skip, images, tmp_path):
    """From the second of three steps an epoch: the data before it are skipped, or the epoch starts again."""
    model = tokenizer("sq_vae", **LEARNED)
    rows, callbacks = pixel_rows(32), [ImageTokenizerCallback()]
    parts = {"gradient_accumulation_steps": 3, "save_steps": 2}
    first = arguments(tmp_path, **parts, max_steps=2, save_strategy="steps")
    Trainer(model, first, train_dataset=rows, callbacks=callbacks).train()
    expected = counts_after(model, [12, 12, *images])
    options = arguments(tmp_path, **parts, num_train_epochs=2, max_steps=-1, ignore_data_skip=not skip)
    model = tokenizer("sq_vae", **LEARNED)
    trainer = Trainer(model, options, train_dataset=rows, callbacks=callbacks)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert [module.count.sum().item() for module in moving(model)] == expected


def test_a_loader_without_a_batch_is_left_to_the_trainer(tmp_path):
    options = arguments(tmp_path, dataloader_drop_last=True)
    trainer = Trainer(tokenizer("sq_vae"), options, train_dataset=pixel_rows(3), callbacks=[ImageTokenizerCallback()])
    trainer.train()
    assert trainer.state.global_step == 0


def test_several_gpus_in_one_process_are_refused(tmp_path):
    options = arguments(tmp_path)
    options._n_gpu = 2
    with pytest.raises(ValueError, match=r"One process has 2 GPUs.*torchrun"):
        ImageTokenizerCallback().on_train_begin(
            options, TrainerState(), TrainerControl(), model=tokenizer("sq_vae"), train_dataloader=[]
        )


def test_a_tokenizer_continues_from_a_checkpoint_of_the_trainer(tmp_path):
    def train(folder, checkpoint=None):
        torch.manual_seed(0)
        model = tokenizer("sq_vae", gumbel_decay=0.5)
        options = arguments(tmp_path / folder, save_strategy="steps", save_steps=3, num_train_epochs=3, max_steps=-1)
        callbacks = [ImageTokenizerCallback()]
        trainer = Trainer(model, options, train_dataset=pixel_rows(8), callbacks=callbacks)
        trainer.train(resume_from_checkpoint=checkpoint)
        return model.state_dict()

    whole = train("whole")
    continued = train("continued", str(tmp_path / "whole" / "checkpoint-3"))
    assert continued["temperature.step"] == 6
    assert all(torch.equal(value, continued[name]) for name, value in whole.items())


def test_codebooks_are_estimated_anew_at_the_starts_of_epochs(tmp_path):
    schedule = {"warmup_epochs": 1, "reestimation_epochs": 1, "reservoir_size": 128}
    config = robust_vq_vae("digits", codebook_size=4, hidden_size=8, codebook_dim=4, **schedule)
    seen = []

    class Watch(ImageTokenizerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            before = kwargs["model"].codebooks()[0]
            super().on_epoch_begin(args, state, control, **kwargs)
            after = kwargs["model"].quantizer.level_codebooks()[0].weight
            remembered = any(after.data_ptr() == tensor.data_ptr() for tensor in kwargs["optimizer"].state)
            seen.append((kwargs["model"].warming_up, torch.equal(before, after), remembered))

    options = arguments(tmp_path, num_train_epochs=3, max_steps=-1)
    Trainer(SQVAEModel(config), options, train_dataset=pixel_rows(16), callbacks=[Watch()]).train()
    assert [warming_up for warming_up, _, _ in seen] == [True, False, False]
    assert [same for _, same, _ in seen] == [True, False, True]
    assert not seen[1][2]
    assert seen[2][2]


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield {"pixel_values": torch.zeros(1, 8, 8)}


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (pixel_rows(16), {"num_train_epochs": 1, "max_steps": -1}, r"the run has no more \(1\): train for longer"),
        (pixel_rows(16), {"num_train_epochs": 9, "max_steps": 4}, r"the run has no more \(1\): train for longer"),
        (Endless(), {"max_steps": 100}, "a Trainer does not count those of a dataset without a length"),
    ],
)
def test_a_warm_up_that_would_not_end_is_refused(rows, options, message, tmp_path):
    schedule = {"warmup_epochs": 1, "reestimation_epochs": 1, "reservoir_size": 128}
    model = SQVAEModel(robust_vq_vae("digits", codebook_size=4, hidden_size=8, codebook_dim=4, **schedule))
    trainer = Trainer(model, arguments(tmp_path, **options), train_dataset=rows, callbacks=[ImageTokenizerCallback()])
    with pytest.raises(ValueError, match=message):
        trainer.train()
    model.start_epoch(5)  # of an earlier training
    trainer.train()


def test_the_callback_is_for_tokenizers(tmp_path):
    _, rows = code_columns(4, class_labels=[0, 1, 2, 0])
    trainer = Trainer(prior("rq"), arguments(tmp_path), train_dataset=rows, callbacks=[ImageTokenizerCallback()])
    with pytest.raises(TypeError, match="for image tokenizers, got RQPriorModel: leave it out"):
        trainer.train()


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("conditional", [True, False])
def test_a_prior_trains_on_a_column_of_flat_codes(name, conditional, tmp_path):
    labels = [index % 3 for index in range(8)]
    codes, rows = code_columns(8, **{"class_labels": labels} if conditional else {})
    model = prior(name, num_classes=3 if conditional else 0)
    options = arguments(tmp_path, eval_strategy="epoch", label_names=None if conditional else [])
    trainer = Trainer(model, options, train_dataset=rows, eval_dataset=rows)
    trainer.train()
    assert trainer.state.global_step == 4
    measured = trainer.state.log_history[-2]["eval_loss"]
    if name == "rq":
        log_prob = model.eval().log_prob(codes, torch.tensor(labels) if conditional else None)
        assert math.isclose(measured, -log_prob.mean().item() / codes.layout.num_codes, rel_tol=1e-5)
    else:
        assert math.isfinite(measured)
    predictions = trainer.predict(rows).predictions
    assert len(predictions[0] if name == "masked" else predictions) == codes.num_levels


@pytest.mark.parametrize("name", PRIORS)
def test_a_prior_trains_on_items_that_are_codes(name, tmp_path):
    codes, _ = code_columns(8)
    rows = [{"codes": codes[index], "class_labels": index % 3} for index in range(8)]
    options = arguments(tmp_path, include_num_input_tokens_seen="all")
    trainer = Trainer(prior(name), options, train_dataset=rows, data_collator=default_collate)
    trainer.train()
    assert trainer.state.num_input_tokens_seen == 4 * 4 * codes.layout.num_codes


@pytest.mark.parametrize("name", PRIORS)
def test_flat_codes_are_codes(name):
    model, (codes, _) = prior(name).eval(), code_columns(3)
    labels = torch.tensor([0, 1, -1])
    for call in (lambda given: model(given, labels).loss, lambda given: model.log_prob(given, labels)):
        torch.manual_seed(0)
        expected = call(codes)
        torch.manual_seed(0)
        assert torch.equal(call(codes.flatten().int()), expected)
    assert model(codes, labels, return_loss=False).loss is None
    assert Codes.cat([codes, codes]).numel() == 6 * codes.layout.num_codes

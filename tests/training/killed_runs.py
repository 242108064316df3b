"""Run as a script: kills commands and calls them again, and compares what they leave with those that were left alone.

    python tests/training/killed_runs.py FOLDER --stops 20 --seed 0 [--systems "sq_vae" "rq_prior" …]

A run is killed (SIGKILL) before a random optimiser step, or before a random operation on files: while a checkpoint is
written, renamed or deleted, and in the middle of a line of the history. Or it is asked to stop (SIGTERM, SIGINT).
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import shutil
import signal
import socket
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.tensorboard  # imported once, for all the processes that are forked
from PIL import Image
from transformers import AutoModel

import hq_tokenizers.training.tokenizer as tokenizer_training
from hq_tokenizers.cli.evaluate import evaluate
from hq_tokenizers.cli.generate import generate_images
from hq_tokenizers.codes import CodeGroup, CodeLayout
from hq_tokenizers.data.digits import load_digits
from hq_tokenizers.data.encoded import CodeRows, EncodedImages
from hq_tokenizers.data.loading import load_image_splits
from hq_tokenizers.evaluation import networks
from hq_tokenizers.metrics.pretrained.feature_networks import FeatureNetwork
from hq_tokenizers.models.presets import sq_vae
from hq_tokenizers.options.data import DataConfig
from hq_tokenizers.options.evaluation import EvaluateConfig
from hq_tokenizers.options.generation import GenerateConfig
from hq_tokenizers.options.training import AdversarialConfig, PriorTrainingConfig, TokenizerTrainingConfig
from hq_tokenizers.priors import RQPriorConfig
from hq_tokenizers.processes import leave_process_group
from hq_tokenizers.registration import register
from hq_tokenizers.reporting.tracking import HISTORY, Tracker
from hq_tokenizers.training.checkpoints import list_checkpoints
from hq_tokenizers.training.loop import TrainingLoop
from hq_tokenizers.training.prior import save_generator, train_prior

SIZE = {"network": "digits", "hidden_size": 8, "codebook_dim": 4}
CODES = {**SIZE, "codebook_size": 8}
PRIOR = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "dropout": 0.1}
EMA = {"codebook_update": "ema", "restart_threshold": 0.5}
ROBUST = {"warmup_epochs": 1, "reestimation_epochs": 1, "reservoir_size": 300}
AGAINST = {"start_step": 9, "discriminator_warmup_steps": 4, "num_layers": 1, "hidden_size": 4}
# Epochs of 5 steps: checkpoints of every 5 steps are aligned with them and with the records, those of every 3 are not.
ALIGNED = {"checkpoint_steps": 5, "log_steps": 5}
UNALIGNED = {"checkpoint_steps": 3, "log_steps": 4, "validation_steps": 7}


def train_tokenizer(folder: Path, model: dict[str, Any], lazy: bool = False, **options: Any) -> None:
    if lazy:
        tokenizer_training.load_image_splits = partial(load_image_splits, memory_limit=0)
    data = DataConfig(train_split="train[:100]", validation_split="test[:30]", num_workers=int(lazy))
    options = {"batch_size": 20, "epochs": 4, **options}
    tokenizer_training.train_tokenizer(
        TokenizerTrainingConfig(output_dir=str(folder), data=data, model=dict(model), **options)
    )


def train_on_stream(folder: Path, **options: Any) -> None:
    """A pass takes 5 steps, a block 2.4."""
    files = folder.parent / "stream"
    data = DataConfig(
        name="webdataset",
        path=str(files),
        files={"train": "train-*.tar", "test": "test.tar"},
        streaming=True,
        shuffle_buffer=24,
        horizontal_flip=True,
        random_resized_crop=[0.5, 1.0],
        image_size=8,
        num_workers=1,
    )
    config = {"output_dir": str(folder), "data": data, "batch_size": 20, "max_steps": 20, **options}
    model = {"preset": "sq_vae", **CODES}
    tokenizer_training.train_tokenizer(TokenizerTrainingConfig(model=model, **config))


def train_against(folder: Path, **options: Any) -> None:
    """Half of it before the discriminator counts, half after."""
    model = {"preset": "rsq_vae", **CODES, "num_levels": 2}
    adversarial = AdversarialConfig(**AGAINST)
    train_tokenizer(folder, model, adversarial=adversarial, schedule="constant", **options)


def train_on_codes(folder: Path, model: dict[str, Any], **options: Any) -> None:
    options = {"batch_size": 20, "epochs": 4, "samples": 0, "warmup_steps": 3, **options}
    codes = str(folder.parent / "codes")
    train_prior(PriorTrainingConfig(output_dir=str(folder), codes=codes, model={**PRIOR, **model}, **options))


def draw_images(folder: Path) -> None:
    config = GenerateConfig(generator=str(folder.parent / "generator"), output_dir=str(folder), num_images=5)
    generate_images(config)


def judge_samples(folder: Path) -> None:
    networks.inception_network = lambda weights=None: FeatureNetwork.from_module(
        Corner(), name="corner", resize_filter="none"
    )
    data, kept = DataConfig(validation_split="test[:40]"), str(folder / "kept")
    generator, options = str(folder.parent / "generator"), {"num_images": 20, "batch_size": 6}
    evaluate(EvaluateConfig(generator=generator, output_dir=str(folder), images_dir=kept, data=data, **options))


class Corner(torch.nn.Module):
    """Four pixels in the place of Inception's features."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = images[:, 0, 3:5, 3:5].flatten(1).float()
        return features, features


SYSTEMS: dict[str, Callable[[Path], None]] = {
    "sq_vae": partial(train_tokenizer, model={"preset": "sq_vae", **CODES}, ema_decay=0.9, **UNALIGNED),
    "sq_vae, lazy data": partial(train_tokenizer, model={"preset": "sq_vae", **CODES}, lazy=True, **UNALIGNED),
    "sq_vae in two processes": partial(train_tokenizer, model={"preset": "sq_vae", **CODES}, **UNALIGNED),
    "rsq_vae": partial(
        train_tokenizer, model={"preset": "rsq_vae", **CODES, "num_levels": 2}, keep_best=True, **UNALIGNED
    ),
    "rq_vae": partial(train_tokenizer, model={"preset": "rq_vae", **CODES, "num_levels": 2}, **ALIGNED),
    "vq_vae with ema": partial(
        train_tokenizer, model={"preset": "vq_vae", **CODES, **EMA}, gradient_accumulation=2, **UNALIGNED
    ),
    "robust_vq_vae": partial(
        train_tokenizer, model={"preset": "robust_vq_vae", **CODES, **ROBUST}, ema_decay=0.9, **UNALIGNED
    ),
    "sq_vae_2": partial(train_tokenizer, model={"preset": "sq_vae_2", **CODES}, plateau_patience=0, **ALIGNED),
    "vae": partial(train_tokenizer, model={"preset": "vae", **SIZE}, keep_checkpoints=1, **UNALIGNED),
    "rsq_vae, adversarial": partial(train_against, ema_decay=0.9, gradient_accumulation=2, **UNALIGNED),
    "rsq_vae, adversarial in two processes": partial(train_against, mixed_precision="bf16", **UNALIGNED),
    "sq_vae, streamed": partial(train_on_stream, **UNALIGNED),
    "sq_vae, streamed in two processes": partial(train_on_stream, gradient_accumulation=2, **UNALIGNED),
    "rq_prior": partial(train_on_codes, model={"model_type": "rq_prior"}, ema_decay=0.9, **UNALIGNED),
    "masked_prior": partial(train_on_codes, model={"model_type": "masked_prior"}, **ALIGNED),
    "contextual_prior": partial(train_on_codes, model={"model_type": "contextual_prior"}, **ALIGNED),
    "generate": draw_images,
    "evaluate": judge_samples,
}


def write_codes(folder: Path) -> None:
    layout = CodeLayout((CodeGroup(4, 4, (8, 8)),))
    noise = torch.Generator().manual_seed(0)

    def rows(number: int) -> CodeRows:
        codes = torch.randint(8, (number, layout.num_codes), generator=noise).int()
        return CodeRows(codes, torch.randint(3, (number,), generator=noise))

    EncodedImages(layout, {"train": rows(100), "validation": rows(30)}, "nowhere", "-").save(folder)


def write_shards(folder: Path) -> None:
    """Tar files of the embedded digits: 100 to train on in three shards, 30 for validation."""
    digits = load_digits()
    folder.mkdir(exist_ok=True)
    shards = {"train-0": range(30), "train-1": range(30, 75), "train-2": range(75, 100)}
    for split, name, rows in (*(("train", *each) for each in shards.items()), ("test", "test", range(30))):
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for index in rows:
                file = io.BytesIO()
                pixels = np.asarray(digits[split][index]["image"], np.uint8) * 15
                Image.fromarray(pixels).save(file, "PNG")
                entry = tarfile.TarInfo(f"{index:03d}.png")
                entry.size = file.tell()
                file.seek(0)
                tar.addfile(entry, file)


def write_generator(folder: Path) -> None:
    torch.manual_seed(0)
    tokenizer = AutoModel.from_config(sq_vae("digits", hidden_size=8, codebook_dim=4, codebook_size=8))
    tokenizer.save_pretrained(folder / "tokenizer")
    layout = tokenizer.code_layout().to_dict()
    prior = RQPriorConfig(code_layout=layout, num_classes=3, **PRIOR, initializer_range=0.5)
    AutoModel.from_config(prior).save_pretrained(folder / "prior")
    save_generator(str(folder / "tokenizer"), str(folder / "prior"), folder)


class Bomb:
    """Sends a signal to this process before event number `fuse`; counts events.

    Args:
        number: The signal; None sends none.
        kind: "step" or "file".
        fuse: The event, from 1.
    """

    def __init__(self, number: int | None, kind: str, fuse: int) -> None:
        self.number, self.kind, self.fuse, self.counts = number, kind, fuse, {"step": 0, "file": 0}
        TrainingLoop._optimize = self._counting("step", TrainingLoop._optimize)
        for name in ("fsync", "replace", "rename", "unlink", "rmdir"):
            setattr(os, name, self._counting("file", getattr(os, name)))
        Image.Image.save = self._counting("file", Image.Image.save)
        Tracker.record = self._counting_records(Tracker.record)

    def _count(self, kind: str) -> bool:
        self.counts[kind] += 1
        return self.number is not None and self.kind == kind and self.counts[kind] == self.fuse

    def _explode(self) -> None:
        os.kill(os.getpid(), self.number)

    def _counting(self, kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            if self._count(kind):
                self._explode()
            return function(*arguments, **named)

        return counted

    def _counting_records(self, function: Callable[..., None]) -> Callable[..., None]:
        def record(tracker: Tracker, content: dict[str, Any]) -> None:
            if self._count("file"):
                with (tracker.output_dir / HISTORY).open("a") as file:
                    file.write(json.dumps(content)[: len(json.dumps(content)) // 2])
                self._explode()
            function(tracker, content)

        return record


def fork(work: Callable[[], None]) -> int:
    """Starts a process that does the work."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setpgid(0, 0)
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        work()
        leave_process_group()
        code = 0
    except SystemExit as stop:
        code = stop.code
    except KeyboardInterrupt:
        code = 130
    finally:
        os._exit(code)


def run(
    name: str, folder: Path, number: int | None = None, kind: str = "step", fuse: int = 0, rank: int = 0
) -> list[int]:
    """Trains a system until it is done, or stopped; returns the exit codes of its processes, by rank."""
    processes = 2 if "two processes" in name else 1
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def work(index: int) -> None:
        if processes > 1:
            os.environ |= {"RANK": str(index), "LOCAL_RANK": str(index), "WORLD_SIZE": str(processes)}
            os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        bomb = Bomb(number if index == rank else None, kind, fuse)
        SYSTEMS[name](folder)
        if index == 0 and number is None:
            (folder / "events.json").write_text(json.dumps(bomb.counts))

    children = {fork(partial(work, index)): index for index in range(processes)}
    groups = list(children)
    codes = {}
    while children:
        child, status = os.wait()
        codes[children.pop(child)] = os.waitstatus_to_exitcode(status)
        if -signal.SIGKILL in codes.values():
            for other in children:
                os.kill(other, signal.SIGKILL)
    wait_for_workers(groups)
    return [codes[index] for index in range(processes)]


def wait_for_workers(groups: list[int]) -> None:
    """Processes that decode images outlive a killed run by some seconds, in which its folder is not free."""
    deadline = time.monotonic() + 20
    for group in groups:
        with suppress(ProcessLookupError):
            while time.monotonic() < deadline:
                os.killpg(group, 0)
                time.sleep(0.1)


def differences(whole: Path, parts: Path) -> list[str]:
    """The files in which two runs differ, apart from folders and times."""
    found = []
    names = {path.relative_to(root) for root in (whole, parts) for path in root.rglob("*") if path.is_file()}
    newest = [path.relative_to(whole) for path in list_checkpoints(whole)[-1:]]
    for name in sorted(names):
        if name.parts[0] == "tensorboard" or name.name == "events.json":
            continue
        # Older checkpoints may differ: which ones are kept depends on the interruptions.
        if name.parts[0] == "checkpoints" and not set(newest) & set(name.parents) and name.suffix != ".partial":
            continue
        files = whole / name, parts / name
        if not all(file.is_file() for file in files):
            found.append(f"{name} is in one only")
        elif content(files[0]) != content(files[1]):
            found.append(str(name))
    return found


def content(path: Path) -> Any:
    if path.suffix == ".jsonl":
        return [without_times(json.loads(line)) for line in path.read_text().splitlines()]
    return without_times(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        varying = ("images_per_second", "seconds", "output_dir", "images_dir")
        return {name: without_times(item) for name, item in value.items() if name not in varying}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def stop_and_continue(name: str, folder: Path, noise: random.Random, signals: list[signal.Signals]) -> list[str]:
    """Stops a run at random, continues it, and returns how it differs from the run that was left alone."""
    whole, parts = folder / "whole", folder / "parts"
    if not whole.exists():
        assert not any(run(name, whole))
    events = json.loads((whole / "events.json").read_text())
    shutil.rmtree(parts, ignore_errors=True)
    number = noise.choice(signals)
    kinds = [kind for kind, total in events.items() if total]
    kind = noise.choice(kinds) if number == signal.SIGKILL else "step"
    fuse = noise.randint(1, events[kind])
    rank = noise.randrange(2) if "two processes" in name and kind == "step" else 0
    codes = run(name, parts, number, kind, fuse, rank)
    stopped = f"{number.name} in process {rank} before {kind} {fuse} of {events[kind]}"
    if number == signal.SIGKILL:
        # The other process is killed too, unless it ended before: with an error, or its work done.
        assert codes[rank] == -number, (name, stopped, codes)
    else:
        assert set(codes) == {128 + number}, (name, stopped, codes)
    assert not any(run(name, parts))
    found = differences(whole, parts)
    print(json.dumps({"system": name, "stopped": stopped, "differences": found}), flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stops", type=int, default=20, help="over all systems")
    parser.add_argument("--signals", nargs="+", default=["SIGKILL"], choices=["SIGKILL", "SIGTERM", "SIGINT"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    options = parser.parse_args()
    register()
    torch.set_num_threads(1)
    # A shell's background jobs ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    noise = random.Random(options.seed)
    options.folder.mkdir(parents=True, exist_ok=True)
    write_codes(options.folder / "codes")
    write_generator(options.folder / "generator")
    write_shards(options.folder / "stream")
    bad: list[str] = []
    for turn in range(options.stops):
        name = options.systems[turn % len(options.systems)]
        folder = options.folder / name.replace(", ", "-").replace(" ", "-")
        # They lie beside the folders of the runs.
        folder.mkdir(exist_ok=True)
        for given in ("codes", "generator", "stream"):
            if not (folder / given).exists():
                (folder / given).symlink_to(options.folder.resolve() / given)
        bad += stop_and_continue(name, folder, noise, [signal.Signals[each] for each in options.signals])
    raise SystemExit(1 if bad else 0)


if __name__ == "__main__":
    main()

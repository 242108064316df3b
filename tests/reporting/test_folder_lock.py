from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hq_tokenizers.cli.demo import run_demo
from hq_tokenizers.cli.evaluate import evaluate
from hq_tokenizers.cli.generate import generate_images
from hq_tokenizers.options.evaluation import EvaluateConfig
from hq_tokenizers.options.generation import DemoConfig, GenerateConfig
from hq_tokenizers.options.training import EncodeConfig, PriorTrainingConfig, TokenizerTrainingConfig
from hq_tokenizers.reporting.folder_lock import lock_folder
from hq_tokenizers.training.encoding import encode_images
from hq_tokenizers.training.prior import train_prior, train_prior_and_save_generator
from hq_tokenizers.training.tokenizer import train_tokenizer

# Holds the folder, with a child such as those that decode images, until it is killed.
HOLDER = """
import os, sys, time
from hq_tokenizers.reporting.folder_lock import lock_folder
with lock_folder("output_dir", sys.argv[1]):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(600)
"""


def test_another_process_is_named_and_a_killed_one_holds_nothing(tmp_path):
    folder = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        child = int(holder.stdout.readline())
        for _ in range(2):
            with pytest.raises(BlockingIOError) as caught, lock_folder("output_dir", folder):
                pass
            for part in (
                f"output_dir '{folder}' is in use",
                f"process {holder.pid} on {os.uname().nodename} (",
                "stop it",
            ):
                assert part in str(caught.value)
        holder.kill()
        holder.wait()
        try:
            with lock_folder("output_dir", folder):
                (folder / "result").write_text("")
        finally:
            os.kill(child, signal.SIGKILL)
    assert [path.name for path in folder.iterdir()] == ["result"]


def test_a_folder_that_stays_empty_leaves_no_trace(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(ValueError, match="mistake"), lock_folder("output_dir", tmp_path / "runs" / "new" / "folder"):
        raise ValueError("mistake")
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]
    with lock_folder("output_dir", tmp_path / "runs"):
        pass
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    message = r"^output_dir '.*file' cannot be made or written to \("
    with pytest.raises(OSError, match=message), lock_folder("output_dir", tmp_path / "file"):
        pass


@pytest.mark.parametrize(
    ("run", "config"),
    [
        (train_tokenizer, TokenizerTrainingConfig),
        (encode_images, EncodeConfig),
        (train_prior, PriorTrainingConfig),
        (train_prior_and_save_generator, PriorTrainingConfig),
        (generate_images, GenerateConfig),
        (evaluate, EvaluateConfig),
        (run_demo, DemoConfig),
    ],
)
def test_every_command_that_writes_a_folder_keeps_to_it(tmp_path, run, config):
    subject = {"tokenizer": "nothing"} if config is EvaluateConfig else {}
    with (
        lock_folder("output_dir", tmp_path / "run"),
        pytest.raises(BlockingIOError, match=r"output_dir '.*' is in use"),
    ):
        run(config(output_dir=str(tmp_path / "run"), **subject))


def test_so_does_the_folder_of_samples(tmp_path):
    folders = {"output_dir": str(tmp_path / "report"), "images_dir": str(tmp_path / "samples")}
    config = EvaluateConfig(generator="nothing", **folders)
    with (
        lock_folder("output_dir", tmp_path / "samples"),
        pytest.raises(BlockingIOError, match=r"images_dir '.*' is in use"),
    ):
        evaluate(config)
    assert not (tmp_path / "report").exists()
    # One folder for both is locked once.
    with pytest.raises(ValueError, match="nothing"):
        evaluate(EvaluateConfig(generator="nothing", **folders | {"images_dir": folders["output_dir"] + "/"}))

from __future__ import annotations

import errno
import os
import re
import runpy
import signal
import subprocess
import sys
import sysconfig
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from accelerate import Accelerator
from PIL import Image
from transformers import AutoModel, pipeline

import hq_tokenizers
from hq_tokenizers import __version__
from hq_tokenizers.cli import main
from hq_tokenizers.cli.commands import COMMANDS
from hq_tokenizers.models.presets import sq_vae
from hq_tokenizers.options.reading import describe_options, load_options
from hq_tokenizers.priors import RQPriorConfig
from hq_tokenizers.reporting.tracking import read_history
from hq_tokenizers.training.checkpoints import list_checkpoints, read_state
from hq_tokenizers.training.model_options import FROM_DATA, build_tokenizer_config
from hq_tokenizers.training.prior import save_generator

SCRIPTS = sysconfig.get_path("scripts")
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_help_names_every_command_and_every_option(capsys):
    main(["--help"])
    overview = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name} " in overview
        assert command.summary in overview
        main([name, "--help"])
        text = capsys.readouterr().out
        for option, default, meaning in describe_options(command.options):
            assert f"--{option} (default: {default})" in text
            assert meaning.split()[0] in text
        assert all(example in text for example in command.examples)
        assert max(map(len, text.splitlines())) <= 140


def test_the_examples_of_the_help_are_valid_options():
    import shlex

    for name, command in COMMANDS.items():
        for example in command.examples:
            program, command_name, *words = shlex.split(example)
            assert (program, command_name) == ("hq-tokenizers", name)
            source = EXAMPLES.parent / words.pop(0) if words and words[0].endswith(".yaml") else None
            load_options(command.options, source, words)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_valid_given_a_data_path(path):
    name = "train-prior" if path.stem.endswith("_prior") else "train-tokenizer"
    overrides = [] if name == "train-prior" else ["--data.path", "somewhere"]
    options = load_options(COMMANDS[name].options, path, overrides)
    assert options.output_dir == f"runs/{path.stem}"
    if name == "train-tokenizer":
        size, channels = (28, 1) if "mnist" in path.stem else (options.data.image_size or 32, 3)
        from_data = {"image_size": size, "num_channels": channels}
        if options.model.get("network") == "speech":
            from_data = {"image_size": [1, 32], "num_channels": 80}
        if options.data.label_map_classes is not None:
            from_data = {"image_size": options.data.image_size, "num_classes": options.data.label_map_classes}
        config = build_tokenizer_config(options.model, from_data)
        with torch.device("meta"):
            parameters = AutoModel.from_config(config).num_parameters()
        published = {"mnist_sq_vae": 240_386, "cifar10_sq_vae": 341_252}
        assert parameters == published.get(path.stem, parameters)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--version"], 0, __version__),
        (["--help"], 0, "usage: hq-tokenizers"),
        (["train-prior", "--help"], 0, "usage: hq-tokenizers train-prior"),
        (["help", "train-prior"], 0, "usage: hq-tokenizers train-prior"),
        (["--hlep"], 1, "Did you mean --help?"),
        (["trian"], 1, "there is no command 'trian'"),
        (["encode", "--tokeniser", "x"], 1, "Did you mean tokenizer"),
    ],
)
def test_help_and_misspelt_options_are_answered_without_torch(words, code, said):
    command = [sys.executable, "-X", "importtime", "-m", "hq_tokenizers", *words]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=EXAMPLES.parent)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "import time:" in line}
    answer = [line for line in (done.stdout + done.stderr).splitlines() if "import time:" not in line]
    assert done.returncode == code, answer
    assert said in "\n".join(answer)
    assert {"hq_tokenizers", "hq_tokenizers.cli"} <= imported
    assert not {"torch", "transformers", "numpy", "datasets"} & imported


@pytest.mark.parametrize(
    ("folder", "name", "is_the_command"),
    [(SCRIPTS, "hq-tokenizers", True), (".", "hq-tokenizers", False), (SCRIPTS, "python", False)],
)
def test_only_what_an_installer_has_put_there_is_the_command(monkeypatch, tmp_path, folder, name, is_the_command):
    """Somebody's own script of that name needs the models of `import hq_tokenizers`, which the command does without."""
    monkeypatch.setattr(sys, "argv", [str(tmp_path / folder / name)])
    assert hq_tokenizers._is_the_command() == is_the_command


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_fields_of_the_model_of_every_recipe_are_explained(path, capsys):
    name = "train-prior" if path.stem.endswith("_prior") else "train-tokenizer"
    section = yaml.safe_load(path.read_text())["model"]
    main([name, str(path), "--help", "model"])
    text = " ".join(capsys.readouterr().out.split())
    for field in section:
        if field not in ("preset", "network", "model_type", *FROM_DATA):
            assert f"--model.{field} (default: " in text, field
    told = text.split(" --model.")[1:]
    assert len(told) > 8
    for field in told:
        meaning, _, accepted = field.partition("Accepted: ")
        assert len(meaning.partition("(default: ")[2].split()) > 2, field
        assert accepted.strip().endswith("."), field


def test_the_fields_of_a_model_follow_what_is_chosen(capsys):
    main(["train-tokenizer", "--model.preset", "rsq_vae", "--model.num_levels", "3", "--help", "model"])
    residual = capsys.readouterr().out
    assert "--model.num_levels (default: " in residual
    assert "--model.variance_share" in residual
    assert "--model.gumbel_decay" not in residual
    main(["train-tokenizer", "--model.preset", "rsq_vae", "--model.recipe", "paper", "--help", "model"])
    assert "--model.gumbel_decay" in capsys.readouterr().out
    main(["train-tokenizer", "--model.preset", "vq_vae", "--help", "model"])
    deterministic = capsys.readouterr().out
    assert "--model.commitment_weight (default: 0.25)" in deterministic
    assert "--model.variance_share" not in deterministic
    main(["train-prior", "--model.model_type", "masked_prior", "--help", "model"])
    assert "model_type masked_prior (of rq_prior, masked_prior, contextual_prior)" in capsys.readouterr().out
    main(["train-prior", "--model.model_type", "contextual_prior", "--help", "model"])
    described = capsys.readouterr().out
    assert "--model.num_depth_layers (default: 2)" in described
    assert "--model.masking_schedule (default: cosine)" in described
    with pytest.raises(SystemExit, match="train-tokenizer and train-prior have --help model"):
        main(["encode", "--help", "model"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "there is no command 'trian'. The commands are train-tokenizer"),
        (["encode", "--tokeniser", "x"], "Did you mean tokenizer"),
        (["encode", "--hlep"], r"Did you mean --help\?"),
        (["help", "trian"], "there is no command 'trian'"),
        (["train-tokenizer", "none.yaml"], "no configuration file"),
        (["train-tokenizer", "--data.train_split", "training"], "not one of train"),
        (["train-prior", "--codes", "nowhere"], "write them with `encode`"),
    ],
)
def test_mistakes_end_in_one_line(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message) as caught:
        main(words)
    assert str(caught.value).startswith("error: ")
    assert not list(tmp_path.iterdir())


def test_all_commands_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--max_steps", "3", "--batch_size", "20", "--data.train_split", "train[:40]"]
    main(["train-tokenizer", *small, "--model", "{preset: sq_vae, network: digits, hidden_size: 8, codebook_size: 8}"])
    main(["encode", "--data.train_split", "train[:40]"])
    model = "{model_type: rq_prior, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}"
    main(["train-prior", "--max_steps", "3", "--batch_size", "20", "--model", model, "--samples", "10"])
    main(["generate", "--num_images", "2", "--class_labels", "[3, '7']", "--seed", "5"])
    images = sorted(path.name for path in Path("runs/samples").glob("0*.png"))
    assert images == ["00000-3.png", "00001-3.png", "00002-7.png", "00003-7.png"]
    generate = pipeline("hq-generation", model="runs/prior/generator")
    expected = generate([3, 7], num_images=2, seed=5)
    with Image.open("runs/samples/00002-7.png") as written:
        assert written.tobytes() == expected[1][0].tobytes()
    tokenizer = AutoModel.from_pretrained("runs/tokenizer")
    generator = AutoModel.from_pretrained("runs/prior/generator")
    weights = generator.image_tokenizer.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in tokenizer.state_dict().items())


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_python_minus_m(monkeypatch, capsys):
    """What torchrun launches: `torchrun -m hq_tokenizers COMMAND`."""
    monkeypatch.setattr(sys, "argv", ["python", "encode", "--help"])
    runpy.run_module("hq_tokenizers", run_name="__main__")
    assert capsys.readouterr().out.startswith("usage: hq-tokenizers encode")


@pytest.fixture(scope="module")
def generator_folder(tmp_path_factory):
    """An untrained generator of digits, with classes whose names are no file names, and its two parts."""
    root = tmp_path_factory.mktemp("models")
    tokenizer = AutoModel.from_config(sq_vae("digits", hidden_size=8, codebook_size=8))
    tokenizer.save_pretrained(root / "tokenizer")
    prior = RQPriorConfig(
        code_layout=tokenizer.code_layout().to_dict(),
        num_classes=2,
        id2label={0: "cat/dog", 1: "a b"},
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    AutoModel.from_config(prior).save_pretrained(root / "prior")
    save_generator(str(root / "tokenizer"), str(root / "prior"), root / "generator")
    return root


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["generate", "--generator", "nowhere"], "error: generator 'nowhere' is neither .*`train-prior` writes one"),
        (["generate", "--generator", "{}/tokenizer"], "type sq_vae, but a generator is needed"),
        (["generate", "--generator", "{}/prior"], "type rq_prior, but a generator is needed"),
        (["encode", "--tokenizer", "nowhere"], "error: tokenizer 'nowhere' is neither"),
        (["encode", "--tokenizer", "{}/prior"], "type rq_prior, but a tokenizer is needed"),
    ],
)
def test_wrong_models_end_in_one_line(generator_folder, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        main([word.format(generator_folder) for word in words])


def test_a_folder_holds_the_images_of_one_call(generator_folder, tmp_path, capsys):
    words = ["generate", "--generator", str(generator_folder / "generator"), "--num_images", "1"]
    main([*words, "--output_dir", str(tmp_path)])
    names = sorted(path.name for path in tmp_path.glob("0*.png"))
    assert names == ["00000-cat-dog.png", "00001-a-b.png"]
    with Image.open(tmp_path / "samples.png") as overview:
        assert (np.array(overview.crop((0, 0, overview.width, 16))) < 255).any()  # the name of the class
        assert overview.height > 2 * (64 + 16)
    pictures = [(tmp_path / name).read_bytes() for name in names]
    main([*words, "--output_dir", str(tmp_path), "--batch_size", "1"])
    for other in (["--seed", "1"], ["--class_labels", "a b"]):
        with pytest.raises(SystemExit, match=r"holds images of another call .*: choose another output_dir"):
            main([*words, *other, "--output_dir", str(tmp_path)])
    assert [(tmp_path / name).read_bytes() for name in names] == pictures
    assert sorted(path.name for path in tmp_path.glob("0*.png")) == names


def test_no_class_among_classes(generator_folder, tmp_path):
    words = ["generate", "--generator", str(generator_folder / "generator"), "--num_images", "1"]
    main([*words, "--class_labels", "[-1, a b]", "--output_dir", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.glob("0*.png")) == ["00000-no-class.png", "00001-a-b.png"]


def test_only_the_main_process_writes(generator_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(Accelerator, "is_main_process", False)
    main(["generate", "--generator", str(generator_folder / "generator"), "--output_dir", str(tmp_path / "samples")])
    assert not (tmp_path / "samples").exists()


def test_overrides_extend_the_default_model(tmp_path, monkeypatch):
    """Without a file, `--model.codebook_size` is a field of the default model."""
    seen = []
    monkeypatch.setattr("hq_tokenizers.training.tokenizer.train_tokenizer", seen.append)
    main(["train-tokenizer", "--model.codebook_size", "32", "--output_dir", "0010"])
    assert build_tokenizer_config(seen[0].model, {"image_size": 8, "num_channels": 1}).codebook_size == 32
    assert seen[0].output_dir == "0010"


def test_a_reader_that_has_enough_gets_no_traceback():
    command = [sys.executable, "-m", "hq_tokenizers", "train-prior", "--help"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, check=False, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=EXAMPLES.parent)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize(
    ("words", "end"),
    [(["--version"], nullcontext()), (["train-prior", "--codes", "gone"], pytest.raises(SystemExit, match="gone"))],
    ids=["done", "refused"],
)
def test_a_command_leaves_the_process_group_that_it_worked_in(tmp_path, capsys, words, end):
    from torch import distributed

    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        with end:
            main(words)
        assert not distributed.is_initialized()
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def test_ctrl_c_ends_a_command_without_a_traceback(monkeypatch, capsys):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("hq_tokenizers.training.encoding.encode_images", interrupt)
    with pytest.raises(SystemExit) as caught:
        main(["encode"])
    assert caught.value.code == 130
    assert caught.value.__suppress_context__
    assert capsys.readouterr().err == "Interrupted: run the same command again.\n"


@pytest.mark.parametrize(
    ("words", "writer", "named"),
    [
        (["generate", "--generator", "{}/generator", "--output_dir", "drawn"], "PIL.Image.Image.save", "samples.png"),
        # A library of which nobody knows what it is writing: the folder at least.
        (["encode"], "hq_tokenizers.training.encoding.encode_images", "runs/codes"),
    ],
)
def test_a_full_disk_is_said_in_one_line(generator_folder, tmp_path, monkeypatch, words, writer, named):
    def full(*arguments, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(writer, full)
    with pytest.raises(SystemExit, match=rf"error: There was no space to write .*{named} .*run the same command again"):
        main([word.format(generator_folder) for word in words])


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_command_that_is_told_to_stop(tmp_path, number, code):
    """The whole group of processes, as by a terminal and by `timeout`."""
    folder = tmp_path / "run"
    model = "{preset: sq_vae, network: digits, hidden_size: 8, codebook_size: 8}"
    options = ["--batch_size", "20", "--log_steps", "1", "--output_dir", str(folder), "--model", model]
    words = ["train-tokenizer", *options, "--max_steps", "1000000", "--schedule", "constant"]
    process = subprocess.Popen(
        [sys.executable, "-m", "hq_tokenizers", *words],
        env={**os.environ, "PYTHONPATH": str(EXAMPLES.parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs, from which tests may be run, ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while len(read_history(folder)) < 3 and process.poll() is None:
        time.sleep(0.1)
    os.killpg(process.pid, number)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    (step,) = re.findall(r"Stopped at step (\d+) of 1000000: run the same command to continue\.", said)
    assert read_state(list_checkpoints(folder)[-1])["step"] == int(step)


def test_env_says_what_a_report_of_a_bug_needs(capsys):
    main(["env"])
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["hq_tokenizers"] == __version__
    assert lines["torch"] == torch.__version__
    assert {"python", "processors", "accelerator", "transformers", "numpy"} < set(lines)
    with pytest.raises(SystemExit, match="Unknown option 'all'"):
        main(["env", "--all", "true"])

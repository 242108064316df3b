"""What the pages say can be run is run: every Python block, every command line of ours, and the tutorial as a whole."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from diffusers import AutoencoderKL
from huggingface_hub.errors import RemoteEntryNotFoundError
from PIL import Image
from torch import nn

from hq_tokenizers import (
    HQFeatureExtractor,
    HQGeneratorModel,
    HQVAEModel,
    RQPriorConfig,
    RQPriorModel,
    SQVAEModel,
    rsq_vae,
    sq_vae,
)
from hq_tokenizers.cli import main
from hq_tokenizers.cli.commands import COMMANDS
from hq_tokenizers.metrics.pretrained.feature_networks import FeatureNetwork
from hq_tokenizers.options.reading import load_options, options_from_dict
from hq_tokenizers.options.training import TokenizerTrainingConfig
from hq_tokenizers.training.model_options import describe_model

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"))
)
TUTORIAL = "docs/tutorial.md"
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
INLINE = re.compile(r"`([^`]+)`")


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, *languages: str) -> list[str]:
    return [text for language, text in FENCED.findall(read(page)) if language in languages]


def test_every_picture_is_shown_or_linked_by_a_page() -> None:
    named = {Path(link).name for page in PAGES for link in re.findall(r"\]\(([^)\s]+\.png)\)", read(page))}
    pictures = {path.name for path in (ROOT / "docs").rglob("*.png")}
    assert pictures
    assert pictures <= named, sorted(pictures - named)


def shell_lines(page: str) -> Iterator[str]:
    """Lines of blocks without a language, of indented blocks, and inline code; a command on one line each."""
    prose = FENCED.sub("", read(page))
    for block in [*blocks(page, "", "bash", "shell"), *INDENTED.findall(prose)]:
        yield from map(str.strip, block.replace("\\\n", " ").splitlines())
    yield from (" ".join(code.split()) for code in INLINE.findall(prose))


def command_of(line: str) -> list[str] | None:
    """The words after `hq-tokenizers` of a command line; None for other lines and for patterns of command lines."""
    for program in ("hq-tokenizers ", ".venv/bin/hq-tokenizers ", "-m hq_tokenizers "):
        before, found, rest = line.partition(program)
        if found and (not before or before.rstrip().endswith("&&") or before.startswith("torchrun ")):
            words = shlex.split(rest, comments=True)
            return None if "COMMAND" in words or any("…" in word for word in words) else words
    return None


def commands(page: str) -> list[list[str]]:
    return [words for words in map(command_of, shell_lines(page)) if words]


# --- Python blocks


def sound_tokenizer(folder: Path) -> None:
    """What `train-tokenizer examples/fsdd_rsq_vae.yaml` leaves, smaller and untrained; and two sounds."""
    from scipy.io import wavfile

    model = HQVAEModel(rsq_vae("fsdd", hidden_size=16, codebook_size=16)).eval()
    model.save_pretrained(folder / "fsdd_rsq_vae")
    extractor = HQFeatureExtractor(sampling_rate=8000, hop_length=80, win_length=200, pad_to_multiple_of=model.stride)
    extractor.save_pretrained(folder / "fsdd_rsq_vae")
    for name, length in {"one.wav": 4000, "two.wav": 2600}.items():
        noise = np.random.default_rng(0).normal(size=length) * 3000
        wavfile.write(folder.parent / name, 8000, noise.astype(np.int16))


def sounds(folder: Path) -> None:
    sound_tokenizer(folder)
    speech_generator(folder)


def speech_generator(folder: Path) -> None:
    """What `train-prior examples/fsdd_prior.yaml` leaves, smaller and untrained."""
    fields = {"hidden_size": 8, "codebook_dim": 4, "codebook_size": 8, "num_speakers": 2, "recurrent_size": 6}
    tokenizer = SQVAEModel(sq_vae("speech", image_size=[1, 16], num_channels=16, **fields)).eval()
    prior = RQPriorConfig(
        code_layout=tokenizer.code_layout([1, 24]).to_dict(),
        num_classes=10,
        id2label={i: str(i) for i in range(10)},
        num_speakers=2,
        speaker_names=["jackson", "theo"],
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    generator = folder / "fsdd_prior" / "generator"
    HQGeneratorModel.from_sub_models(tokenizer, RQPriorModel(prior).eval()).save_pretrained(generator)
    front_end = HQFeatureExtractor(16, 8000, 80, 200, mean_db=-40.0, std_db=20.0, grid_dims=1, pad_to_multiple_of=2)
    front_end.save_pretrained(generator)


def autoencoder(folder: Path) -> None:
    """An `AutoencoderKL` of stride 8."""
    AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8,) * 4,
        norm_num_groups=4,
    ).save_pretrained(folder / "autoencoder")


PREPARATIONS: dict[str, Callable[[Path], None]] = {
    "docs/sound.md": sounds,
    "docs/converting.md": autoencoder,
}
CHECKS: dict[str, Callable[[dict], bool]] = {
    "docs/ecosystem.md": lambda scope: (
        scope["tokenizer"].temperature.step == 2
        and scope["reconstructions"].shape == (32, 3, 16, 16)
        and Path("runs/half.png").is_file()
    )
}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python") and page != TUTORIAL])
def test_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    if page in PREPARATIONS:
        PREPARATIONS[page](tmp_path / "runs")
    scope: dict = {"__name__": page}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), scope)
    if page in CHECKS:
        assert CHECKS[page](scope)


def test_yaml_of_a_page_is_a_configuration():
    sections = [block for page in PAGES for block in blocks(page, "yaml")]
    assert sections
    for section in sections:
        options_from_dict(TokenizerTrainingConfig, yaml.safe_load(section))


# --- Command lines


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_command_lines_of_a_page_are_accepted(page, capsys):
    for words in commands(page):
        name, *rest = words
        if "--help" in words or name.startswith("--"):
            main(words)
            assert capsys.readouterr().out
            continue
        assert name in COMMANDS, words
        if not rest:  # the name of a command in a sentence
            continue
        source = rest.pop(0) if not rest[0].startswith("--") else None
        source = None if source in (None, "CONFIG.yaml") else ROOT / source
        # Capital letters stand for numbers and folders.
        rest = ["1" if re.fullmatch("[A-Z]", word) else word for word in rest]
        if not rest and source is None:
            continue
        options = load_options(COMMANDS[name].options, source, rest)
        if name.startswith("train-"):
            describe_model(options.model, "tokenizer" if name == "train-tokenizer" else "prior")


def test_the_reader_of_command_lines_finds_what_is_wrong():
    assert command_of("hq-tokenizers encode --tokenizer runs/x  # comment") == ["encode", "--tokenizer", "runs/x"]
    assert command_of(". .venv/bin/activate && hq-tokenizers demo") == ["demo"]
    assert command_of("torchrun --nproc_per_node 2 -m hq_tokenizers evaluate C.yaml") == ["evaluate", "C.yaml"]
    assert command_of("hq-tokenizers COMMAND --help") is None
    assert command_of("the command hq-tokenizers has options") is None
    assert sum(len(commands(page)) for page in PAGES) > 30


def test_scripts_and_targets_of_a_page_are_there():
    """`python path.py`, `make target`, and recipes by name."""
    targets = set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))
    for page in PAGES:
        for line in shell_lines(page):
            for script in re.findall(r"\bpython3? ((?:benchmarks|examples|docs)/\S+\.py)", line):
                assert (ROOT / script).is_file(), f"{page}: {line}"
            for target in re.findall(r"^make ([a-z]+)", line):
                assert target in targets, f"{page}: {line}"
            for path in re.findall(r"\b(?:benchmarks|examples)/\S+\.(?:yaml|py|ipynb)\b", line):
                assert (ROOT / path).is_file() or {"*", "$"} & set(path), f"{page}: {line}"


# --- The tutorial

SMALL = "--data.image_size 16 --model.hidden_size 8 --model.codebook_size 8 --model.codebook_dim 4 --batch_size 4"
TINY = {
    "train-tokenizer": f"{SMALL} --max_steps 4 --validation_steps 2 --trackers []",
    "train-prior": "--model.hidden_size 16 --model.num_hidden_layers 1 --max_steps 2 --warmup_steps 0 --samples 4 "
    "--batch_size 4 --trackers []",
    "encode": "--data.image_size 16",
    "generate": "--num_images 2",
    "evaluate": "--data.image_size 16",
}
NO_NETWORKS = " --metrics.lpips null --metrics.features null"


class Corner(nn.Module):
    """Takes the place of Inception: six pixels as features."""

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = images[:, 0, 2:4, 2:5].flatten(1).float()
        return features, features


class Hub:
    """Takes the place of the Hub: what is uploaded."""

    files: dict[str, set[str]]

    def __init__(self, token: str | bool | None = None) -> None:
        pass

    def create_repo(self, repo_id: str, **_options: object) -> SimpleNamespace:
        return SimpleNamespace(repo_id=repo_id)

    def hf_hub_download(self, repo_id: str, _name: str, **_options: object) -> str:
        raise RemoteEntryNotFoundError("There is no card.", response=SimpleNamespace(headers={}, request=None))

    def upload_folder(self, repo_id: str, folder_path: str, **_options: object) -> str:
        Hub.files = {repo_id: {path.name for path in Path(folder_path).iterdir()}}
        return "commit"


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("hq_tokenizers.hub.upload.HfApi", Hub)
    network = lambda weights=None: FeatureNetwork.from_module(Corner(), name="corner", resize_filter="none")  # noqa: E731
    monkeypatch.setattr("hq_tokenizers.evaluation.networks.inception_network", network)
    pixels = np.random.default_rng(0).integers(0, 256, (60, 20, 18, 3), dtype=np.uint8)
    for index, image in enumerate(pixels):
        path = Path("photos", ("cat", "dog")[index % 2], f"{index:04d}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)

    scope: dict = {"__name__": TUTORIAL}
    for language, block in FENCED.findall(read(TUTORIAL)):
        if language == "python":
            exec(compile(block, TUTORIAL, "exec"), scope)
        for words in filter(None, map(command_of, block.replace("\\\n", " ").splitlines() if not language else [])):
            extra = TINY[words[0]]
            if words[0] == "evaluate":
                extra += NO_NETWORKS if "--tokenizer" in words else " --num_images 12 --metrics.lpips null"
            main([*words, *shlex.split(extra)])

    assert "parameters" in capsys.readouterr().out
    assert Image.open("cat.png").size == (16, 16)
    assert len(list(Path("runs/drawn").glob("*.png"))) == 5  # two of each class, and all of them
    for judged in ("tokenizer", "generator"):
        assert Path(f"runs/judged_{judged}/report.json").is_file()
    assert {"README.md", "config.json", "model.safetensors"} < Hub.files["you/cats-and-dogs"]
    assert "modeling_rq_prior.py" in Hub.files["you/cats-and-dogs"]

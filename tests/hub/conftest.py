from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from hq_tokenizers import HQGeneratorModel, RQPriorConfig, RQPriorModel, SQVAEConfig, SQVAEModel

from .stub_hub import StubHub, serving

WITHOUT_THE_PACKAGE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "hq_tokenizers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
"""
SNIPPETS = """
import contextlib, io, json, sys, time, traceback

time.sleep = lambda seconds: None  # huggingface_hub waits between its attempts.
for line in sys.stdin:
    code, *sys.argv[1:] = json.loads(line)
    shown, failure, report = io.StringIO(), None, ""
    try:
        with contextlib.redirect_stdout(shown):
            exec(compile(code, "snippet", "exec"), {"__name__": "snippet"})
    except BaseException as error:
        failure, report = f"{type(error).__name__}: {error}", traceback.format_exc()
    print(json.dumps([shown.getvalue(), failure, report]), flush=True)
"""


@pytest.fixture(scope="session")
def generator() -> HQGeneratorModel:
    torch.manual_seed(0)
    tokenizer = SQVAEModel(
        SQVAEConfig(image_size=8, num_channels=1, hidden_size=8, num_downsampling=1, codebook_size=16, codebook_dim=4)
    ).eval()
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_depth_layers": 1, "num_attention_heads": 2}
    layout = tokenizer.code_layout().to_dict()
    prior = RQPriorModel(RQPriorConfig(code_layout=layout, num_classes=3, initializer_range=0.5, **sizes)).eval()
    return HQGeneratorModel.from_sub_models(tokenizer, prior, {0: "cat", 1: "dog", 2: "frog"})


@pytest.fixture(scope="session")
def hub() -> Iterator[StubHub]:
    yield from serving(StubHub())


class HubUser:
    """A process that takes the stub for the Hub, whose address is read when the libraries are imported.

    It runs one piece of code after the other, so that the libraries are imported once.
    """

    def __init__(self, url: str, home: Path, prelude: str = "", **environment: str) -> None:
        root = str(Path(__file__).resolve().parents[2])
        settings = {
            "HF_ENDPOINT": url,
            "HF_TOKEN": "dummy",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HOME": str(home / "hf"),
            "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), root])),
            "NO_PROXY": "127.0.0.1,localhost",
        }
        home.mkdir(exist_ok=True)
        self._log = home / f"log-{id(self)}"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", prelude + SNIPPETS],
                cwd=home,
                env=os.environ | settings | environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )

    def run(self, code: str, *arguments: object) -> list[str]:
        """Runs code with arguments in `sys.argv` and returns the lines it printed."""
        shown, failure, report = self._run(code, *arguments)
        assert failure is None, report
        return shown.strip().splitlines()

    def error(self, code: str, *arguments: object) -> str:
        """Runs code that fails, and returns the error as "Type: message"."""
        _, failure, _ = self._run(code, *arguments)
        assert failure is not None, "the code did not fail"
        return failure

    def _run(self, code: str, *arguments: object) -> tuple[str, str | None, str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([code, *map(str, arguments)]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, self._log.read_text()
        shown, failure, report = json.loads(answer)
        return shown, failure, report

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="session")
def start_user(hub: StubHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., HubUser]]:
    """Starts processes with one cache; `start_user(prelude, NAME=value, …)`."""
    home, users = tmp_path_factory.mktemp("user"), []

    def start(prelude: str = "", **environment: str) -> HubUser:
        users.append(HubUser(hub.url, home, prelude, **environment))
        return users[-1]

    yield start
    for user in users:
        user.close()


@pytest.fixture(scope="session")
def user(start_user: Callable[..., HubUser]) -> HubUser:
    """A process with this package."""
    return start_user("import hq_tokenizers\n")

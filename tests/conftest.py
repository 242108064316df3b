"""What every test stands on: offline, one thread, fixed seeds, and the folder of real data where there is one."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Read when the libraries are imported, hence set before they are.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["HF_HUB_OFFLINE"] = "1"
# A shell's background jobs ignore it, and tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Caches and downloaded code go to a folder of this run: no test reads or leaves anything in the user's own. Worker
# processes of pytest-xdist inherit the variable.
_OWNS_HF_HOME = "PYTEST_XDIST_WORKER" not in os.environ
if _OWNS_HF_HOME:
    os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hq_tokenizers-tests-")
    for _name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_ENDPOINT"):
        os.environ.pop(_name, None)

import numpy as np
import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent

torch.set_num_threads(1)
# The same examples in every run; `--hypothesis-profile=default` looks for new ones.
settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")


def pytest_unconfigure() -> None:
    """Removes the run's Hugging Face caches."""
    if _OWNS_HF_HOME:
        shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _no_leaking_threads_setting() -> Iterator[None]:
    yield
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_leaking_compiled_code() -> None:
    # What one test compiled counts towards the compiler's limit of variants of a function in the next.
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture
def memory_full_of_nan(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What was never written is NaN, not what happens to be in memory: a test that reads it fails in every run."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    monkeypatch.setattr("torch.utils.deterministic.fill_uninitialized_memory", True)
    assert torch.empty(3).isnan().all(), "the fixture has no effect"
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data: `HQ_TEST_DATA`, or `../shared/data` beside the checkout. Skips where there is none."""
    folder = Path(os.environ.get("HQ_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"needs the real data: set HQ_TEST_DATA to its folder (looked in {folder})")
    return folder

"""A handful of what `killed_runs.py` does; run that script for more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_runs.py")
ROOT = SCRIPT.parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "signals", "systems"),
    [
        (0, ["SIGKILL"], ["sq_vae, lazy data", "robust_vq_vae", "rq_prior", "generate", "evaluate"]),
        (1, ["SIGTERM", "SIGINT"], ["sq_vae in two processes", "vq_vae with ema"]),
        (3, ["SIGKILL"], ["sq_vae, streamed", "sq_vae, streamed in two processes"]),
        (2, ["SIGKILL"], ["rsq_vae, adversarial", "rsq_vae, adversarial in two processes"]),
        (3, ["SIGKILL"], ["contextual_prior"]),
    ],
)
def test_runs_that_were_stopped_end_like_those_that_were_not(tmp_path, seed, signals, systems):
    options = ["--stops", str(len(systems)), "--seed", str(seed), "--signals", *signals, "--systems", *systems]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [result["system"] for result in results] == systems
    assert [result["differences"] for result in results] == [[]] * len(systems)

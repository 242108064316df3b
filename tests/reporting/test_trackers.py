"""Trackers besides the history; services are stood in for by modules that keep what they are told."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from hq_tokenizers.reporting import trackers
from hq_tokenizers.reporting.trackers import check_trackers
from hq_tokenizers.reporting.tracking import Tracker


class Service(ModuleType):
    """wandb or trackio."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def init(self, **options):
        self.calls.append(("init", options))
        run = SimpleNamespace()
        run.log = lambda values, step=None: self.calls.append(("log", step, values))
        run.finish = lambda: self.calls.append(("finish",))
        return run

    def Image(self, pixels):
        return pixels.shape


@pytest.fixture
def services(monkeypatch):
    made = {name: Service(name) for name in ("wandb", "trackio")}
    for name, service in made.items():
        monkeypatch.setitem(sys.modules, name, service)
    monkeypatch.setattr(trackers, "find_spec", lambda name: name if name != "absent" else None)
    return made


def _record(step, **figures):
    return {"step": step, "epoch": 0.5, "split": "train", **figures}


def test_services_get_the_records_and_a_continued_run_stays_one(tmp_path, services):
    for first_step in (0, 4):
        with Tracker(tmp_path, "t", 10, first_step, trackers=["wandb", "trackio"]) as tracker:
            tracker.record(_record(first_step + 3, loss=0.5, perplexity=[3.0, 5.0]))
            tracker.image("pictures", np.zeros((4, 6, 3), np.uint8), first_step + 3)
    assert not (tmp_path / "tensorboard").exists()
    values = {"train/loss": 0.5, "train/epoch": 0.5, "train/perplexity/level_1": 3.0, "train/perplexity/level_2": 5.0}
    for name, service in services.items():
        starts = [call[1] for call in service.calls if call[0] == "init"]
        assert starts[0] == starts[1]
        assert (starts[0]["project"], starts[0]["resume"]) == ("hq-tokenizers", "allow")
        assert starts[0]["name"].startswith(f"{tmp_path.name}-")
        logged = [call[1:] for call in service.calls if call[0] == "log"]
        pictures = [{"pictures": [(4, 6, 3)]}] if name == "wandb" else []
        assert logged == [(step, each) for step in (3, 7) for each in (values, *pictures)]
        assert service.calls[-1] == ("finish",)


def test_none_is_none(tmp_path):
    with Tracker(tmp_path, "t", 10, trackers=[]) as tracker:
        tracker.record(_record(1, loss=0.5))
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_tracker_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    assert check_trackers(None) == []
    with pytest.raises(ValueError, match="trackers needs wandb and trackio: pip install wandb trackio, or leave"):
        check_trackers(["wandb", "trackio"])
    with pytest.raises(ValueError, match="trackers needs wandb"):
        Tracker(tmp_path / "run", "t", 10, trackers=["wandb"])
    assert not (tmp_path / "run").exists()

from __future__ import annotations

import json
import math

import pytest

from hq_tokenizers.reporting.reports import changes, read_report, write_report
from hq_tokenizers.reporting.tables import check_output_dir


def test_figures_that_are_not_finite_leave_valid_json(tmp_path):
    write_report(tmp_path, {"test": {"psnr": math.inf, "levels": (1.5, math.nan, -math.inf)}, "steps": 3})

    def refuse(name):
        pytest.fail(f"{name} is no JSON")

    strict = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert strict["test"] == {"psnr": "inf", "levels": [1.5, "nan", "-inf"]}
    assert read_report(tmp_path)["steps"] == 3


def test_a_report_that_breaks_off_is_named(tmp_path):
    write_report(tmp_path, {"options": {"tokenizer": "a"}, "subject": {}})
    path = tmp_path / "report.json"
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(ValueError, match=r"report\.json is damaged, .*delete it, or that folder, or choose another"):
        check_output_dir(tmp_path, {"tokenizer": "a"})
    # Whoever writes a report over it needs not know what it said.
    write_report(tmp_path, {"steps": 3})
    assert read_report(tmp_path)["steps"] == 3


def test_an_interruption_leaves_the_report_that_was_there(tmp_path, monkeypatch):
    write_report(tmp_path, {"steps": 3})

    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_report(tmp_path, {"steps": 4})
    assert read_report(tmp_path)["steps"] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_what_a_call_did_not_give_is_called_so():
    assert changes({"a": 1, "b": None}, {"b": 2}) == "a was not set, is 1; b was 2, is None"
    assert changes({"a": 1}, {"a": 1, "c": "x"}) == "c was 'x', is not set"
    # None is what is there by default, too.
    assert changes({"a": None}, {}) == ""

from __future__ import annotations

import json
import math

import pytest

from hq_tokenizers.reporting.reports import read_report, write_report


def test_figures_that_are_not_finite_leave_valid_json(tmp_path):
    write_report(tmp_path, {"test": {"psnr": math.inf, "levels": (1.5, math.nan, -math.inf)}, "steps": 3})

    def refuse(name):
        pytest.fail(f"{name} is no JSON")

    strict = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=refuse)
    assert strict["test"] == {"psnr": "inf", "levels": [1.5, "nan", "-inf"]}
    assert read_report(tmp_path)["steps"] == 3

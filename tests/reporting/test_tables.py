from __future__ import annotations

import math

import pytest

from hq_tokenizers.reporting.tables import metrics_table


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (12.345678, "12.35"),
        (0.000123456, "0.0001235"),
        (1.23456e-7, "1.235e-07"),
        (1234.56, "1235"),
        (123456.7, "123457"),
        (512, "512"),
        (512.0, "512"),
        (16384, "16384"),
        (-0.5, "-0.5"),
        (math.inf, "inf"),
        (math.nan, "nan"),
        ([1.23456, 900.0], "1.235, 900"),
        ("about 3", "about 3"),
    ],
)
def test_figures_of_a_card_are_rounded(value, shown):
    assert metrics_table({"FID": value}).splitlines()[-1] == f"| FID | {shown} |"

"""Descriptions that differ are told apart, whichever side lacks a field."""

from __future__ import annotations

import pytest

from hq_tokenizers.metrics.provenance import check_equal, library_versions


def test_equal_descriptions_pass() -> None:
    check_equal({"network": {"name": "a", "size": [1, 2]}}, {"network": {"size": [1, 2], "name": "a"}}, "The other")


@pytest.mark.parametrize(
    ("ours", "theirs", "message"),
    [
        ({"network": {"name": "a"}}, {"network": {"name": "b"}}, r"network\.name is 'b' there and 'a' here"),
        ({"network": {"name": "a"}}, {"network": {}}, r"network\.name is None there and 'a' here"),
        ({}, {"size": 3}, "size is 3 there and None here"),
    ],
)
def test_difference_is_named(ours: dict[str, object], theirs: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=f"The other cannot be compared with this metric: {message}"):
        check_equal(ours, theirs, "The other")


def test_versions_leave_out_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hq_tokenizers.metrics.provenance._LIBRARIES", ("torch", "no-such-library"))
    assert set(library_versions()) == {"hq_tokenizers", "torch"}

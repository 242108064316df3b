"""Layers alone: no model initialises what they leave uninitialised."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def _memory_full_of_nan(memory_full_of_nan: None) -> None:
    pass

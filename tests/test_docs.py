"""Pages that say they run as they stand do."""

from __future__ import annotations

from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parent.parent / "docs"


@pytest.mark.parametrize("page", ["ecosystem.md"])
def test_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    blocks = (DOCS / page).read_text(encoding="utf-8").split("```python\n")[1:]
    scope: dict = {"__name__": page}
    for block in blocks:
        exec(compile(block.partition("```")[0], page, "exec"), scope)
    assert scope["tokenizer"].temperature.step == 2
    assert scope["reconstructions"].shape == (32, 3, 16, 16)
    assert (tmp_path / "runs" / "half.png").is_file()

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest

from hq_tokenizers.cli.scripts import script_options


@dataclass
class Options:
    threads: Annotated[int, "threads to compute with"] = 2
    name: Annotated[str, "what to call it"] = "run"


def _read(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["script.py", *map(str, words)])
    return script_options(Options, "Does something.\n")


def test_a_file_and_words_after_it(monkeypatch, tmp_path):
    assert _read(monkeypatch) == Options()
    (tmp_path / "options.yaml").write_text("threads: 3\nname: slow\n")
    assert _read(monkeypatch, tmp_path / "options.yaml", "--threads", "4") == Options(threads=4, name="slow")


@pytest.mark.parametrize("word", ["-h", "--help"])
def test_help(monkeypatch, capsys, word):
    with pytest.raises(SystemExit) as exit_:
        _read(monkeypatch, "--threads", "4", word)
    assert exit_.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("Does something.\n\noptions:\n  --threads (default: 2)\n        threads to compute with\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [(["--thread", "4"], "error: Unknown option 'thread'. Did you mean threads?"), (["gone.yaml"], "error: .*gone")],
)
def test_what_is_wrong_is_said_without_a_traceback(monkeypatch, words, message):
    with pytest.raises(SystemExit, match=message):
        _read(monkeypatch, *words)

from __future__ import annotations

import sys

import pytest

from hq_tokenizers.cli import main
from hq_tokenizers.options.app import AppConfig


def test_without_gradio_the_extra_is_named(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("hq_tokenizers.app.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit, match=r"error: .*pip install 'hq_tokenizers\[app\]'"):
        main(["app", "--generator", "somewhere"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--generator", "nowhere"], "error: generator 'nowhere' is neither the folder of a generator"),
        (["--port", "0"], "port must be an integer from 1 to 65,535 or null"),
        (["--share", "perhaps"], "share"),
    ],
)
def test_mistakes_end_in_one_line(words, message):
    pytest.importorskip("gradio", reason="needs the extra: pip install 'hq_tokenizers[app]'")
    with pytest.raises(SystemExit, match=message):
        main(["app", *words])


def test_options_reach_gradio(tmp_path, monkeypatch):
    pytest.importorskip("gradio", reason="needs the extra: pip install 'hq_tokenizers[app]'")
    from hq_tokenizers.app import blocks, generator_pipeline

    launched = []
    monkeypatch.setattr(blocks, "launch_app", lambda app, **settings: launched.append((app, settings)))
    monkeypatch.setattr(blocks, "build_app", lambda pipe: ("the page of", pipe))
    monkeypatch.setattr(generator_pipeline, "load_generator_pipeline", lambda generator: generator)
    main(["app", "--generator", "mine", "--host", "0.0.0.0", "--port", "8000", "--share", "true"])
    settings = {"server_name": "0.0.0.0", "server_port": 8000, "share": True, "inbrowser": False}
    assert launched == [(("the page of", "mine"), settings)]


def test_exports_instead_of_serving(tmp_path, monkeypatch, capsys):
    pytest.importorskip("gradio", reason="needs the extra: pip install 'hq_tokenizers[app]'")
    from hq_tokenizers.app import blocks, generator_pipeline

    monkeypatch.setattr(generator_pipeline, "load_generator_pipeline", lambda generator: generator)
    monkeypatch.setattr(blocks, "launch_app", lambda *arguments, **settings: pytest.fail("it serves"))
    main(["app", "--generator", "someone/cats", "--export_space", str(tmp_path / "space")])
    assert "hf upload USER/NAME" in capsys.readouterr().out
    assert (tmp_path / "space" / "app.py").is_file()


def test_files_are_written_where_they_are_said_to_be():
    assert AppConfig(export_space="runs/space").output_dir == "runs/space"
    assert AppConfig().output_dir

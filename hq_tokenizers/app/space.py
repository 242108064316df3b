"""The page as a folder of its own, which a Space of the Hugging Face Hub runs, or `python app.py`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import gradio as gr
import yaml

from hq_tokenizers._version import __version__
from hq_tokenizers.files import write_text
from hq_tokenizers.pretrained_models import folder_of

_MARK = '"""The page of a generator, written by `hq-tokenizers app --export_space`."""'
_APP = f'''{_MARK}

from pathlib import Path

from hq_tokenizers.app.blocks import build_app, launch_app
from hq_tokenizers.app.generator_pipeline import load_generator_pipeline

GENERATOR = {{generator}}


def build():
    """The page, as Gradio's Blocks."""
    return build_app(load_generator_pipeline(GENERATOR))


if __name__ == "__main__":
    launch_app(build())
'''
_README = """---
{front_matter}
---

# {title}

Draws images, reconstructs, inpaints and varies them, and shows the codes they are made of, with
{what} and hq_tokenizers.

To run it elsewhere: `pip install -r requirements.txt`, then `python app.py`.
"""
_FOLDER = "generator"


def export_space(generator: str, directory: str | Path) -> Path:
    """Writes app.py, requirements.txt, README.md with what the Hub asks of a Space, and a copy of the generator.

    A generator on the Hub is not copied: app.py names it, and the Space loads it from there.

    Args:
        generator: Folder, Hub id or name that `pretrained` knows; one that `load_generator_pipeline` accepts.
        directory: Where to write; created when missing. An earlier export there is replaced.

    Returns:
        The directory.

    Raises:
        ValueError: If the directory holds something else, or the generator itself.
    """
    directory, source = Path(directory), Path(folder_of(generator))
    _check_directory(directory)
    copied = source.is_dir()
    if copied and source.resolve().is_relative_to(directory.resolve()):
        raise ValueError(
            f"export_space {str(directory)!r} holds the generator {generator!r} itself: choose another folder."
        )
    directory.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(directory / _FOLDER, ignore_errors=True)
    if copied:
        shutil.copytree(source, directory / _FOLDER, ignore=shutil.ignore_patterns(".*", "*.partial"))
    place = f'str(Path(__file__).parent / "{_FOLDER}")' if copied else repr(generator)
    text = _APP.format(generator=place)
    write_text(directory / "app.py", text if copied else text.replace("from pathlib import Path\n\n", ""))
    write_text(directory / "requirements.txt", f"hq_tokenizers[app]=={__version__}\n")
    write_text(directory / "README.md", _readme(None if copied else generator))
    return directory


def _check_directory(directory: Path) -> None:
    """Hidden files are left alone: a clone of a Space has some."""
    present = [path.name for path in directory.iterdir() if not path.name.startswith(".")] if directory.is_dir() else []
    app = directory / "app.py"
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"export_space {str(directory)!r} is a file: choose a folder.")
    if present and not (app.is_file() and app.read_text(encoding="utf-8").startswith(_MARK)):
        raise ValueError(
            f"export_space {str(directory)!r} holds {', '.join(sorted(present)[:3])}, which no earlier export has "
            "written: choose an empty folder."
        )


def _readme(hub_id: str | None) -> str:
    title = "hq_tokenizers" if hub_id is None else hub_id.rpartition("/")[2]
    data = {
        "title": title,
        "emoji": "🧩",
        "colorFrom": "indigo",
        "colorTo": "pink",
        "sdk": "gradio",
        "sdk_version": gr.__version__,
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        "pinned": False,
        "tags": ["hq_tokenizers", "hq-generation"],
        **({} if hub_id is None else {"models": [hub_id]}),
    }
    what = f"the generator in `{_FOLDER}/`" if hub_id is None else f"the generator `{hub_id}`"
    return _README.format(
        front_matter=yaml.safe_dump(data, sort_keys=False, allow_unicode=True).strip(), title=title, what=what
    )

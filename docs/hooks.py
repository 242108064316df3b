"""What the site has beyond mkdocs: formulas as MathML, links that leave this folder, notebooks as pages.

Pages are written for GitHub and work there as they are. Formulas become MathML, which browsers show without a script
and without a network. A link to a Python file with the name of something in it, `…/elbo.py#categorical_kl`, leads to
the reference; any other link to a file that is no page leads to the repository, where its address is known
(`REPOSITORY_URL`), and is its path in words where it is not.
"""

from __future__ import annotations

import html
import json
import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

from math_core import LatexToMathML
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"hq_tokenizers": "", "priors": "priors", "pipelines": "pipelines"}
TEXTS = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
LINK = re.compile(r"(?<!!)\[([^\]\n]+)\]\(([^)\s:#]+)(?:#([^)\s]*))?\)")
CODE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


# Before mkdocstrings, which keeps only the paths that are there.
@event_priority(100)
def on_config(config: MkDocsConfig) -> None:
    """Lays the three folders out as they are installed: what reads the docstrings does not import them."""
    package = ROOT / "build" / "docs" / "hq_tokenizers"
    shutil.rmtree(package, ignore_errors=True)
    for folder, target in PACKAGES.items():
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, package / target, ignore=ignored, dirs_exist_ok=True)


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages whose texts lie elsewhere."""
    for page, source in TEXTS.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for notebook in sorted((ROOT / "examples" / "notebooks").glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{notebook.stem}.md", content=notebook_page(notebook)))


def notebook_page(path: Path) -> str:
    """A notebook's texts and code as a page."""
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    parts.insert(1, f"*This page is the notebook `{path.relative_to(ROOT)}`, without its outputs.*")
    return "\n\n".join(parts)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that leave this folder."""
    source = TEXTS.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    if page.file.src_uri.startswith("notebooks/"):
        source = f"examples/{page.file.src_uri}"

    def link(match: re.Match[str]) -> str:
        text, target, name = match.groups()
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if not (ROOT / path).exists():
            return match[0]  # mkdocs will complain
        if name and path.endswith(".py"):
            return f"[{text}][{module_name(path)}.{name}]"
        if (uri := page_of(path, files)) is not None:
            fragment = f"#{name}" if name else ""
            return f"[{text}]({posixpath.relpath(uri, posixpath.dirname(page.file.src_uri) or '.')}{fragment})"
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{path})"
        return text if path in text else f"{text} (`{path}`)"

    pieces = CODE.split(markdown)
    pieces[::2] = [LINK.sub(link, piece) for piece in pieces[::2]]
    return "".join(pieces)


def page_of(path: str, files: Files) -> str | None:
    """Where the site has a file of the repository; None where it has not."""
    uris = {source: uri for uri, source in TEXTS.items()}
    if path.startswith("examples/notebooks/"):
        return f"notebooks/{Path(path).stem}.md"
    uri = uris.get(path, path.removeprefix("docs/"))
    return uri if files.get_file_from_path(uri) is not None else None


def module_name(path: str) -> str:
    """The installed name of a module of the repository."""
    parts = path.removesuffix(".py").split("/")
    return ".".join(parts if parts[0] == "hq_tokenizers" else ["hq_tokenizers", *parts])


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas as MathML; what is no formula raises a `LatexError`."""
    converter = LatexToMathML()

    def formula(match: re.Match[str]) -> str:
        latex = html.unescape(match[2]).strip()
        mathml = converter.convert_with_local_state(latex, displaystyle=match[1] == "div")
        return f'<{match[1]} class="formula">{mathml}</{match[1]}>'

    return FORMULA.sub(formula, content)

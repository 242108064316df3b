"""The documentation site builds without a warning, needs nothing from elsewhere, and names all that is public."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

for package in ("mkdocs", "material", "mkdocstrings", "math_core"):
    pytest.importorskip(package, reason="pip install '.[docs]' for the documentation site")

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("mkdocs.yml", "CHANGELOG.md", "CONTRIBUTING.md", "README.md", "docs", "examples", "hq_tokenizers", "priors")
PARTS += ("pipelines", "benchmarks")
PUBLIC = ("hq_tokenizers", *(f"hq_tokenizers.{name}" for name in ("hub", "metrics", "pipelines", "priors")))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built in a copy, so that it leaves nothing in the checkout."""
    copy = tmp_path_factory.mktemp("site")
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / part, copy)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return copy / "build" / "site"


def test_every_page_and_notebook_is_in_it(site: Path) -> None:
    pages = [path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")]
    pages += [Path("notebooks", path.name) for path in (ROOT / "examples" / "notebooks").glob("*.ipynb")]
    assert len(pages) > 30
    for page in (*pages, Path("changelog.md"), Path("contributing.md")):
        text = (site / page.with_suffix(".html")).read_text(encoding="utf-8")
        # A nav without it would have been a warning.
        assert "md-nav__link--active" in text, page
    assert not list(site.rglob("*.py"))


def test_it_loads_nothing_from_elsewhere(site: Path) -> None:
    loading = re.compile(
        r'<(?:script|img|iframe|source)[^>]*src="(?:https?:)?//|<link[^>]*rel="(?:stylesheet|preconnect)"[^>]*//'
    )
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8").replace('rel="canonical"', "")
        assert not loading.search(text), path


def test_formulas_are_there_without_a_script(site: Path) -> None:
    for paper in ("sq_vae", "hq_vae", "robust_vq"):
        text = (site / "papers" / f"{paper}.html").read_text(encoding="utf-8")
        assert text.count("<math") > 5
        assert "arithmatex" not in text
        # To the functions: links into the reference with the whole name.
        assert len(re.findall(r'href="\.\./reference/\w+\.html#hq_tokenizers\.', text)) > 5


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    anchors = set()
    for path in (site / "reference").glob("*.html"):
        anchors |= set(re.findall(r'id="(hq_tokenizers\.[\w.]+)"', path.read_text(encoding="utf-8")))
    modules = [importlib.import_module(package) for package in PUBLIC]
    for module in modules:
        for name in set(module.__all__) - {"__version__"}:
            value = getattr(module, name)
            if not isinstance(value, ModuleType):
                # By whichever of its names.
                homes = {f"{other.__name__}.{name}" for other in modules if getattr(other, name, None) is value}
                assert homes & anchors, f"{module.__name__}.{name}"


@pytest.mark.parametrize("address", ["", "https://code.example/us/hq_tokenizers"])
def test_links_out_of_the_pages_lead_to_the_repository_where_there_is_one(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    hooks = importlib.import_module("hooks")
    config = SimpleNamespace(repo_url=address)
    page = SimpleNamespace(file=SimpleNamespace(src_uri="papers/x.md"))
    files = SimpleNamespace(get_file_from_path={"data.md": "a page"}.get)
    written = (
        "[a](../data.md#b) [c](../../examples/mnist_prior.yaml) "
        "[d](../../priors/sampling.py#filter_logits) [e](no.md)\n"
        "```\n[c](../../examples/mnist_prior.yaml)\n```\n"
    )
    recipe = f"[c]({address}/blob/main/examples/mnist_prior.yaml)" if address else "c (`examples/mnist_prior.yaml`)"
    assert hooks.on_page_markdown(written, page, config, files) == (
        f"[a](../data.md#b) {recipe} [d][hq_tokenizers.priors.sampling.filter_logits] [e](no.md)\n"
        "```\n[c](../../examples/mnist_prior.yaml)\n```\n"
    )

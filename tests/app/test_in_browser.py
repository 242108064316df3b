"""The page in a browser: every tab is opened, used, and photographed.

`HQ_SCREENSHOTS` names a folder for the pictures, `HQ_APP_GENERATOR` a generator other than a small untrained one:

    HQ_SCREENSHOTS=docs/figures HQ_APP_GENERATOR=runs/demo/generator pytest tests/app/test_in_browser.py
"""

from __future__ import annotations

import io
import os
import re
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra: pip install 'hq_tokenizers[app]'")
pytest.importorskip("playwright", reason="needs Playwright: pip install 'hq_tokenizers[test]'")

from playwright.sync_api import expect, sync_playwright

from hq_tokenizers.app.blocks import build_app, launch_app
from hq_tokenizers.app.generator_pipeline import load_generator_pipeline

pytestmark = pytest.mark.slow

ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
QUIET = ("--disable-component-update", "--disable-sync")
WIDTH, HEIGHT = 1280, 800
PATIENCE = 120_000
LARGEST = 200_000


def chromium() -> str | None:
    """A browser that is installed: the system's, or Playwright's own."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        with sync_playwright() as driver:
            own = driver.chromium.executable_path
        found = own if Path(own).is_file() else None
    return found


@pytest.fixture(scope="module")
def shown_pipe(hierarchical_pipe):
    folder = os.environ.get("HQ_APP_GENERATOR")
    return load_generator_pipeline(folder) if folder else hierarchical_pipe


@pytest.fixture(scope="module")
def address(shown_pipe):
    app = build_app(shown_pipe)
    _, address, _ = launch_app(app, server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    yield address
    app.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    path = chromium()
    if path is None:
        pytest.skip("needs Chromium: apt install chromium, or playwright install chromium")
    with sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=path, headless=True, args=[*ARGUMENTS, *QUIET])


@pytest.fixture
def strangers():
    """Addresses other than this machine's that the page asked for."""
    return []


@pytest.fixture
def page(browser, address, strangers):
    def answer(route):
        if urlsplit(route.request.url).hostname in ("127.0.0.1", "localhost", None):
            route.continue_()
        else:
            strangers.append(route.request.url)
            route.abort()

    page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    page.set_default_timeout(PATIENCE)
    page.route("**/*", answer)
    page.goto(address)
    page.get_by_role("tab", name="Generate").wait_for()
    yield page
    page.close()


@pytest.fixture
def tab(page):
    """Opens a tab and gives what it shows."""

    def opened(name):
        page.get_by_role("tab", name=name).click()
        panel = page.get_by_role("tabpanel").filter(visible=True)
        panel.wait_for()
        return panel

    return opened


@pytest.fixture
def drawn_file(shown_pipe, tmp_path):
    names = shown_pipe.model.config.id2label
    path = tmp_path / "drawn.png"
    shown_pipe(0 if names else None, seed=1).save(path)
    return str(path)


def photograph(page, name):
    """A screenshot of the whole page."""
    page.mouse.move(0, 0)
    page.wait_for_timeout(500)
    taken = page.screenshot(full_page=True)
    folder = os.environ.get("HQ_SCREENSHOTS")
    if folder:
        path = Path(folder) / f"app_{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(taken)).convert("RGB").save(path, optimize=True)
        assert path.stat().st_size < LARGEST


def wait_for_pictures(panel, number):
    """Until that many pictures have arrived in the galleries of a tab."""
    pictures = panel.locator(".grid-container img, .thumbnail-lg img")
    expect(pictures.nth(number - 1)).to_be_visible(timeout=PATIENCE)
    for picture in pictures.all()[:number]:
        expect(picture).to_have_js_property("complete", True)
        assert picture.evaluate("image => image.naturalWidth") > 0
    return pictures


def test_generate(tab, page, strangers, shown_pipe):
    panel = tab("Generate")
    panel.get_by_role("button", name="Generate").click()
    expect(panel.get_by_text(re.compile(r"8 images in"))).to_be_visible(timeout=PATIENCE)
    pictures = wait_for_pictures(panel, 8)
    assert pictures.first.evaluate("image => image.naturalHeight") == shown_pipe.image_processor.size.height
    # Enlarged to be seen.
    assert pictures.first.bounding_box()["width"] > 100
    photograph(page, "generate")
    assert strangers == []


def test_reconstruct(tab, page, drawn_file, shown_pipe):
    panel = tab("Reconstruct")
    panel.locator("input[type=file]").first.set_input_files(drawn_file)
    layout = shown_pipe.model.code_layout
    expect(panel.get_by_text(f"{layout.num_codes} codes,")).to_be_visible(timeout=PATIENCE)
    wait_for_pictures(panel, layout.num_levels)
    photograph(page, "reconstruct")
    if layout.num_levels > 1:
        panel.get_by_role("slider").press("Home")
        coarse = layout.truncate(1)
        expect(panel.get_by_text(f"{coarse.num_codes} codes,")).to_be_visible(timeout=PATIENCE)


def test_a_file_that_is_no_image(tab, page, tmp_path):
    (tmp_path / "fake.jpg").write_text("no image at all")
    panel = tab("Reconstruct")
    panel.locator("input[type=file]").first.set_input_files(str(tmp_path / "fake.jpg"))
    expect(page.get_by_text(re.compile(r"fake\.jpg.* cannot be read")).first).to_be_visible()


def test_inpaint(tab, page, drawn_file):
    panel = tab("Inpaint")
    panel.locator("input[type=file]").first.set_input_files(drawn_file)
    canvas = panel.locator("canvas").first
    canvas.wait_for()
    page.wait_for_timeout(2500)
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.6 * box["height"])
    page.mouse.down()
    for share in (0.4, 0.5, 0.6, 0.7):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 0.6 * box["height"], steps=4)
    page.mouse.up()
    page.wait_for_timeout(500)
    panel.get_by_role("button", name="Paint anew").click()
    expect(panel.get_by_text(re.compile(r"4 images in"))).to_be_visible(timeout=PATIENCE)
    wait_for_pictures(panel, 4)
    photograph(page, "inpaint")


def test_variations(tab, page):
    panel = tab("Variations")
    panel.get_by_role("button", name="Vary").click()
    expect(page.get_by_text("There is no image yet")).to_be_visible(timeout=PATIENCE)
    panel.get_by_role("button", name="Let the generator draw one").click()
    expect(panel.locator(".image-frame img, .image-container img").first).to_be_visible(timeout=PATIENCE)
    page.get_by_test_id("toast-close").click()
    expect(page.get_by_test_id("toast-body")).to_have_count(0)
    panel.get_by_role("button", name="Vary").click()
    expect(panel.get_by_text(re.compile(r"8 images in"))).to_be_visible(timeout=PATIENCE)
    wait_for_pictures(panel, 8)
    photograph(page, "variations")


def test_codebook(tab, page, shown_pipe):
    panel = tab("Codebook")
    panel.get_by_role("button", name="Count the codes").click()
    expect(panel.get_by_text("Codes of 64 images.")).to_be_visible(timeout=PATIENCE)
    wait_for_pictures(panel, min(shown_pipe.model.code_layout.codebook_sizes[0], 36))
    photograph(page, "codebook")

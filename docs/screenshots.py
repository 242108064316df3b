"""Pictures of the built site, docs/figures/site_*.png; needs playwright and a Chromium.

make docs
python docs/screenshots.py              # CHROMIUM=/path/to/chromium, default /usr/bin/chromium
"""

from __future__ import annotations

import os
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from PIL import Image
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"home": "index.html", "paper": "papers/sq_vae.html", "reference": "reference/losses.html"}
ARGUMENTS = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"


def main() -> None:
    """Takes them, in 128 colours, of pages that are served: opened as files they have no search."""
    handler = partial(SimpleHTTPRequestHandler, directory=ROOT / "build" / "site")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as playwright:
        Thread(target=server.serve_forever, daemon=True).start()
        program = os.environ.get("CHROMIUM", "/usr/bin/chromium")
        browser = playwright.chromium.launch(executable_path=program, args=ARGUMENTS.split(), timeout=300_000)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(300_000)
        for name, address in PAGES.items():
            page.goto(f"http://127.0.0.1:{server.server_port}/{address}")
            path = ROOT / "docs" / "figures" / f"site_{name}.png"
            page.screenshot(path=path)
            with Image.open(path) as image:
                image.convert("RGB").quantize(128, dither=Image.Dither.NONE).save(path, optimize=True)
        browser.close()
        server.shutdown()


if __name__ == "__main__":
    main()

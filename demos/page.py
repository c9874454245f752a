"""Pictures of the page of `tttstream live`, for docs/: python demos/page.py --out docs

Needs Chromium and playwright. The sources are generated: `places` with the map, `walk` with the base model.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from tttstream import models
from tttstream.live import Engine
from tttstream.live.web import serve

DESKTOP = {"viewport": {"width": 1440, "height": 900}, "device_scale_factor": 1}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}


def picture(browser: Browser, url: str, path: Path, *, wait_s: float, why: bool = False, **screen: Any) -> None:
    """Open the page on a screen, wait until it shows something, and write what is to be seen. why: of an event."""
    page = browser.new_context(color_scheme="dark", **screen).new_page()
    page.goto(url)
    page.wait_for_selector(".card .picture.main.live")
    page.wait_for_timeout(1000 * wait_s)
    if why:
        page.locator("#events .entry:not(.now)").first.click()
        page.wait_for_timeout(1500)
    image = Image.open(io.BytesIO(page.screenshot()))
    image.save(path, quality=82, method=6)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
    page.context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--seconds", type=float, default=40, help="that the map learns before it is shown")
    parser.add_argument("--browser", default="/usr/bin/chromium")
    args = parser.parse_args()
    with ExitStack() as stack, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.browser, args=["--no-sandbox"])
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "events"
        model = models.load("map")
        with Engine(model, allowed=["places"], name="map", events=folder) as engine, serve(engine, port=0) as server:
            camera = engine.add(0)
            camera.wait(2, 60)
            time.sleep(args.seconds)
            picture(browser, server.url, args.out / "live.webp", wait_s=8, **DESKTOP)
            picture(browser, server.url, args.out / "live-why.webp", wait_s=4, why=True, **DESKTOP)
            picture(browser, server.url, args.out / "live-phone.webp", wait_s=6, **PHONE)
        model = models.load("base", size=128)
        with Engine(model, allowed=["walk", "places"], name="base") as engine, serve(engine, port=0) as server:
            for number in range(2):
                engine.add(number).wait(2, 60)
            time.sleep(args.seconds)
            picture(browser, server.url, args.out / "live-cameras.webp", wait_s=8, **DESKTOP)
        browser.close()


if __name__ == "__main__":
    main()

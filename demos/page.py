"""Pictures of the page of `tttstream live`, for docs/: python demos/page.py --out docs

Needs Chromium and playwright. The sources are generated: `places` with the map, `walk` and `places` with the base
model. `--only` makes one of the scenes: map, cameras, things.
"""

from __future__ import annotations

import argparse
import io
import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright
from skimage import data, transform

from tttstream import models, open_source
from tttstream.frames import Frame
from tttstream.live import Engine
from tttstream.live.web import serve
from tttstream.sources import Source

DESKTOP = {"viewport": {"width": 1440, "height": 900}, "device_scale_factor": 1}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 2, "is_mobile": True, "has_touch": True}


class Table(Source):
    """A cup and a cat's face that move back and forth on gravel, 15 frames a second."""

    live, fps, name = True, 15.0, "table"
    CUP, CAT, SIDE = (80, 250), (330, 90), 190  # pixels: the upper left corners in the middle of their paths

    def __init__(self) -> None:
        ground = transform.resize(data.gravel(), (480, 640))
        self._ground = np.repeat((150 * ground).astype(np.uint8)[..., None], 3, 2)
        cut = (data.coffee()[40:390, 150:500], data.chelsea()[20:280, 90:350])
        self._things = [(255 * transform.resize(thing, (self.SIDE, self.SIDE))).astype(np.uint8) for thing in cut]
        self._began = time.monotonic()

    def __iter__(self) -> Iterator[Frame]:
        for index in itertools.count():
            time.sleep(max(0.0, self._began + index / self.fps - time.monotonic()))
            image, seconds = self._ground.copy(), time.monotonic() - self._began
            for (x, y), thing in zip((self.CUP, self.CAT), self._things, strict=True):
                left, top = x + round(40 * np.sin(seconds / 3)), y + round(20 * np.sin(seconds / 2))
                image[top : top + self.SIDE, left : left + self.SIDE] = thing
            yield Frame(image, index, seconds)

    def position(self) -> dict[str, Any]:
        """See Source."""
        return {}

    def seek(self, position: dict[str, Any]) -> None:
        """See Source."""


@contextmanager
def watched(name: str, sources: list[str], seconds: float, **options: Any) -> Iterator[str]:
    """The address of a page that shows these sources, after this number of seconds."""
    seeds = itertools.count()

    def opener(spec: str) -> Source:
        return Table() if spec == "table" else open_source(spec, seed=next(seeds), size=256 if name == "base" else None)

    model = models.load(name, size=128 if name == "base" else None)
    engine = Engine(model, allowed=sources, name=name, opener=opener, **options)
    with engine, serve(engine, port=0) as server:
        for number in range(len(sources)):
            engine.add(number).wait(2, 60)
        time.sleep(seconds)
        yield server.url


def picture(
    browser: Browser, url: str, path: Path, wait_s: float, screen: Any, act: Callable[[Page], None] | None = None
) -> None:
    """Open the page in a browser, wait, perform the user's actions, and save a screenshot."""
    page = browser.new_context(color_scheme="dark", **screen).new_page()
    page.goto(url)
    page.wait_for_selector(".card .picture.main.live")
    page.wait_for_timeout(1000 * wait_s)
    if act is not None:
        act(page)
    image = Image.open(io.BytesIO(page.screenshot()))
    image.save(path, quality=82, method=6)
    print(f"{path}: {path.stat().st_size / 1e3:.0f} kB")
    page.context.close()


def why(page: Page) -> None:
    """Open the newest event that is over."""
    page.locator("#events .entry:not(.now)").first.click()
    page.wait_for_timeout(1500)


def drag(page: Page, corner: tuple[int, int]) -> None:
    """Draw a box around a thing at its current or last position, with space for its movement."""
    frame = page.locator(".picture.main").bounding_box()
    assert frame is not None
    scale, room = frame["width"] / 640, 20
    x, y = (frame[side] + scale * (start - room) for side, start in zip("xy", corner, strict=True))
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + scale * (Table.SIDE + 2 * room), y + scale * (Table.SIDE + 2 * room), steps=4)
    page.mouse.up()


def things(page: Page) -> None:
    """Follow the cup, and teach the cat by its name."""
    page.get_by_placeholder("its name, if it has one").fill("cup")
    page.get_by_role("button", name="Follow", exact=True).click()
    drag(page, Table.CUP)
    page.locator(".list b", has_text="cup").wait_for(timeout=60_000)
    page.get_by_role("button", name="Teach", exact=True).click()
    drag(page, Table.CAT)
    page.get_by_placeholder("what is it?").fill("cat")
    page.get_by_role("button", name="Hold to teach").hover()
    page.mouse.down()
    page.locator(".bars li").first.wait_for(timeout=60_000)
    page.wait_for_timeout(3000)
    page.mouse.up()
    page.wait_for_timeout(500)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("docs"))
    parser.add_argument("--seconds", type=float, default=40, help="that the memories learn before they are shown")
    parser.add_argument("--only", choices=("map", "cameras", "things"))
    parser.add_argument("--browser", default="/usr/bin/chromium")
    args = parser.parse_args()
    with ExitStack() as stack, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.browser, args=["--no-sandbox"])
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "events"
        out, seconds, only = args.out, args.seconds, args.only
        out.mkdir(parents=True, exist_ok=True)
        if only in (None, "map"):
            with watched("map", ["places"], seconds, events=folder) as url:
                picture(browser, url, out / "live.webp", 8, DESKTOP)
                picture(browser, url, out / "live-why.webp", 4, DESKTOP, why)
                picture(browser, url, out / "live-phone.webp", 6, PHONE)
        if only in (None, "cameras"):
            with watched("base", ["walk", "places", "walk", "places"], seconds) as url:
                picture(browser, url, out / "live-cameras.webp", 8, DESKTOP)
        if only in (None, "things"):
            with watched("base", ["table"], seconds / 4) as url:
                picture(browser, url, out / "live-things.webp", 6, DESKTOP, things)
        browser.close()


if __name__ == "__main__":
    main()

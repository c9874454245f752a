"""Glass to glass: a source draws the time into its frames, and a browser's screen is read back.

    python demos/glass.py --out docs/results/glass.md

Each row is one run with a number of cameras on one engine, and one browser that shows all of them. "screen" is the time
from drawing a frame to its display in the browser, by the time stamps of screenshots; "page" is the value on the page;
"result" is the time from the capture to the result of the model.
"""

from __future__ import annotations

import argparse
import base64
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from playwright.sync_api import sync_playwright

from tttstream import models
from tttstream.frames import Frame
from tttstream.live import Engine
from tttstream.live.web import serve
from tttstream.sources.base import Source

ROWS, COLUMNS, BITS = 4, 8, 24  # of the code: milliseconds in 24 bits, a checksum in 8
ARGS = ["--no-sandbox"]


def checksum(number: int) -> int:
    """A checksum of eight bits, which detects a picture that mixes two times."""
    return zlib.crc32(number.to_bytes(3, "big")) & 0xFF


class Clock(Source):
    """A live source whose frames show the time at which they are drawn."""

    live = True

    def __init__(self, name: str, fps: float) -> None:
        self.name, self.fps, self._index, self._closed = name, fps, 0, threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        begun = time.monotonic()
        while not self._closed.wait(max(0.0, begun + self._index / self.fps - time.monotonic())):
            number = int(time.time() * 1000) % 2**BITS
            code = number << 8 | checksum(number)
            bits = [(code >> place) & 1 for place in reversed(range(ROWS * COLUMNS))]
            small = np.array(bits, np.uint8).reshape(ROWS, COLUMNS) * 255
            picture = cv2.resize(small, (640, 480), interpolation=cv2.INTER_NEAREST)
            self._index += 1
            yield Frame(np.repeat(picture[..., None], 3, 2), self._index - 1, time.monotonic() - begun)

    def position(self) -> dict[str, Any]:
        """See Source."""
        return {"source": self.name, "index": self._index}

    def seek(self, position: dict[str, Any]) -> None:
        """See Source."""
        self._index = position["index"]

    def close(self) -> None:
        """See Source."""
        self._closed.set()


def read(image: np.ndarray, box: dict[str, float]) -> int | None:
    """The number shown in a part of a picture, None if there is none."""
    xs = (box["x"] + (np.arange(COLUMNS) + 0.5) * box["width"] / COLUMNS).astype(int)
    ys = (box["y"] + (np.arange(ROWS) + 0.5) * box["height"] / ROWS).astype(int)
    if ys[-1] >= image.shape[0] or xs[-1] >= image.shape[1]:
        return None
    code = int("".join(str(int(image[y, x].mean() > 127)) for y in ys for x in xs), 2)
    return code >> 8 if checksum(code >> 8) == code & 0xFF else None


def measure(cameras: int, args: argparse.Namespace) -> str:
    """One row of the table."""
    seen: list[float] = []
    known: set[int] = set()
    model = models.load(args.model, size=args.size)
    names = [f"clock {number}" for number in range(cameras)]
    engine = Engine(model, allowed=names, opener=lambda name: Clock(name, args.fps), expect=args.expect)
    with engine, serve(engine, port=0) as server, sync_playwright() as playwright:
        for number in range(cameras):
            engine.add(number)
        browser = playwright.chromium.launch(executable_path=args.browser, args=ARGS)
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(server.url)
        while page.locator(".card .picture.main.live").count() < cameras:
            page.wait_for_timeout(200)
        for button in page.get_by_role("button", name="Surprise map").all():
            button.click()  # the code must be shown without scaling
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_timeout(3000)
        box = page.locator(".picture.main canvas").first.bounding_box()
        session = page.context.new_cdp_session(page)

        def took(event: dict[str, Any]) -> None:
            session.send("Page.screencastFrameAck", {"sessionId": event["sessionId"]})
            image = cv2.imdecode(np.frombuffer(base64.b64decode(event["data"]), np.uint8), cv2.IMREAD_COLOR)
            number = read(image, box)
            if number is not None and number not in known:  # a frame stays on the screen: its first picture counts
                known.add(number)
                seen.append((event["metadata"]["timestamp"] * 1000 - number) % 2**BITS)

        session.on("Page.screencastFrame", took)
        session.send("Page.startScreencast", {"format": "jpeg", "quality": 70, "everyNthFrame": args.every})
        page.wait_for_timeout(1000 * args.seconds)
        session.send("Page.stopScreencast")
        said = page.locator(".numbers .latency dd").first.inner_text()
        status = engine.cameras[0].status()
        browser.close()
    if not seen:
        raise SystemExit("no time could be read from the screen")
    result = status["latency_ms"]
    numbers = [*np.percentile(seen, (50, 95, 99)), float(said.removesuffix(" ms")), result["p50"], result["p95"]]
    figures = [cameras, status["fps"], len(seen), *numbers, status["dropped"]]
    return f"| {' | '.join(f'{figure:.0f}' for figure in figures)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cameras", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--fps", type=float, default=15)
    parser.add_argument("--every", type=int, default=1, help="take every so many pictures of the screen")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--model", default="base")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--expect", action="store_true", help="predict pictures too, three times the work")
    parser.add_argument("--browser", default="/usr/bin/chromium")
    parser.add_argument("--out", type=Path, help="append the table to this file")
    args = parser.parse_args()
    head = "| cameras | fps | read | screen p50 | p95 | p99 | page | result p50 | p95 | dropped |"
    lines = [head, "| ---: " * 10 + "|"]
    print("\n".join(lines))
    for cameras in args.cameras:
        lines.append(measure(cameras, args))
        print(lines[-1], flush=True)
    if args.out is not None:
        with args.out.open("a", encoding="utf-8") as file:
            file.write("\n".join(["", *lines, ""]))


if __name__ == "__main__":
    main()

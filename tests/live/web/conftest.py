"""A small engine on a source that draws its frames, a server before it, and a real browser where there is one."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tttstream.frames import Frame
from tttstream.live import Engine
from tttstream.live.web import Server, serve
from tttstream.models import FrameModel
from tttstream.sources.base import Source

BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Ticker(Source):
    """A live source: a bright square walks over a dark picture; each fourth second begins with half a second of noise.

    noisy: every frame is noise, of which JPEG makes large files.
    """

    live = True
    fps = 15.0

    def __init__(self, name: str, *, noisy: bool = False) -> None:
        self.name, self._noisy = name, noisy
        self._index, self._closed = 0, threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        begun = time.monotonic()
        while not self._closed.wait(max(0.0, begun + self._index / self.fps - time.monotonic())):
            self._index += 1
            yield Frame(self._drawn(self._index), self._index - 1, time.monotonic() - begun)

    def _drawn(self, index: int) -> np.ndarray:
        rng = np.random.default_rng(index)
        if self._noisy:
            return rng.integers(0, 256, (480, 640, 3), dtype=np.uint8)
        if index % 60 >= 53:
            return rng.integers(0, 256, (144, 192, 3), dtype=np.uint8)
        image = np.full((144, 192, 3), 40, np.uint8)
        left = (4 * index) % 152
        image[52:92, left : left + 40] = (250, 210, 90)
        return image

    def position(self) -> dict[str, Any]:
        return {"source": self.name, "index": self._index}

    def seek(self, position: dict[str, Any]) -> None:
        self._check(position)
        self._index = position["index"]

    def close(self) -> None:
        self._closed.set()


@pytest.fixture(scope="session")
def make_engine(model: FrameModel) -> Callable[..., Engine]:
    """Makes an engine of a small model with tickers as sources, or with the sources of another `opener`."""

    def make(allowed: tuple[str, ...] = ("ticker", "spare"), **options: Any) -> Engine:
        opener = options.pop("opener", lambda spec: Ticker(spec, noisy=spec == "noise"))
        return Engine(model, allowed=allowed, opener=opener, **options)

    return make


@pytest.fixture(scope="session")
def until() -> Callable[..., Any]:
    """Waits until a question is answered with something true, and gives that."""
    return wait_until


def wait_until(true: Callable[[], Any], timeout_s: float = 30.0) -> Any:
    """The first value that counts as true; fails where none comes."""
    end = time.monotonic() + timeout_s
    while not (value := true()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)
    return value


@pytest.fixture(scope="module")
def engine(make_engine: Callable[..., Engine]) -> Iterator[Engine]:
    """A running engine that watches one camera and may watch another."""
    with make_engine() as engine:
        camera = engine.add(0)
        wait_until(lambda: camera.version > 2)
        yield engine


@pytest.fixture(scope="module")
def server(engine: Engine) -> Iterator[Server]:
    """A server on loopback, without a token."""
    with serve(engine, port=0) as server:
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A program that uses the API."""
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium with a camera that draws a test picture; a test is skipped where there is none.

    Of one module: while playwright runs, its event loop runs in this thread, and no other can.
    """
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium is installed")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
        browser = playwright.chromium.launch(executable_path=path, args=flags)
        yield browser
        browser.close()


@contextmanager
def opened(chromium: Any) -> Iterator[Any]:
    """A tab. Fails in the end where the page raised an error, wrote one that is not in `tab.forgiven`, or asked another
    host for anything."""
    context = chromium.new_context(viewport={"width": 1280, "height": 860}, permissions=["camera"])
    tab = context.new_page()
    tab.set_default_timeout(30_000)
    errors: list[str] = []
    hosts: set[str | None] = set()
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
    tab.on("request", lambda request: hosts.add(httpx.URL(request.url).host))
    tab.forgiven = []
    yield tab
    context.close()
    assert [error for error in errors if not any(known in error for known in tab.forgiven)] == []
    assert hosts <= {"127.0.0.1", ""}


@pytest.fixture
def tab(chromium: Any) -> Iterator[Any]:
    """A tab of its own; see `opened`."""
    with opened(chromium) as tab:
        yield tab


@pytest.fixture(scope="module")
def home(chromium: Any, server: Server) -> Iterator[Any]:
    """A tab with the page of the server, connected, which all tests of a module share; see `opened`."""
    with opened(chromium) as tab:
        tab.goto(server.url)
        tab.wait_for_selector("#connection[data-state=running]")
        tab.wait_for_selector(".card .picture.main.live")
        yield tab
        tab.goto("about:blank")


@pytest.fixture
def saved_page() -> Path:
    """The folder of the page's files."""
    import tttstream.live.web

    return Path(tttstream.live.web.__file__).with_name("page")

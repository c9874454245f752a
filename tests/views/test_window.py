"""The window: looked for before it is opened; watch, an agent at play and the webcam demo under a virtual display."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageGrab

from tttstream.cli.main import main
from tttstream.errors import OutputError
from tttstream.views.overlay import BACKGROUND, PANEL, STRIP
from tttstream.views.window import reachable_display
from tttstream.views.writer import VideoWriter
from tttstream_agents.cli import main as agents

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="displays of Linux")


def test_an_opencv_without_windows_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GUI:                           NONE\n")
    with pytest.raises(OutputError, match=r"opencv-python-headless.*--out DIR"), reachable_display():
        pytest.fail("there is nothing to open")


@linux
@pytest.mark.parametrize("display", [None, ":4999"])
def test_without_a_display_the_error_names_an_alternative(
    display: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    if display:
        monkeypatch.setenv("DISPLAY", display)
    assert main(["watch", "walk", "--show", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "overlay.mp4" in said
    assert said.count("\n") == 1
    assert os.listdir(tmp_path) == []


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    """A virtual display of 900x900 pixels."""
    missing = [program for program in ("Xvfb", "xdotool") if not shutil.which(program)]
    if missing:
        pytest.skip(f"{' and '.join(missing)} not installed")
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "900x900x24", "-nolisten", "tcp", "-noreset"]
    server = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        number = pipe.readline().strip()
    try:
        yield f":{number}"
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Two seconds of a picture that drifts."""
    rng = np.random.default_rng(0)
    big = np.asarray(cv2.resize(rng.integers(60, 256, (8, 12, 3), dtype=np.uint8), (240, 160)), dtype=np.uint8)
    with VideoWriter(tmp_path / "clip.mp4", 25) as writer:
        for index in range(50):
            writer.write(big[20:140, 2 * index : 2 * index + 128])
    return tmp_path / "clip.mp4"


def comes_true(condition: Callable[[], bool], seconds: float = 120) -> bool:
    """Poll until it is true, for at most this number of seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


class Program:
    """A program in a virtual display: its picture, and keys for it."""

    def __init__(self, display: str, *command: str | Path) -> None:
        self.display, self.environment = display, {**os.environ, "DISPLAY": display, "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, *command], env=self.environment, text=True, **pipes)  # type: ignore[call-overload]

    def screen(self) -> NDArray[np.uint8]:
        return np.asarray(ImageGrab.grab(xdisplay=self.display).convert("RGB"))

    def shows_overlay(self) -> bool:
        """Whether there are both a picture and the dark panel under it."""
        screen = self.screen()
        dark = (screen == BACKGROUND).all(axis=2).sum()
        return bool(dark > 0.3 * 480 * (STRIP + PANEL) and (screen.max(axis=2) > 40).sum() > 480 * 200)

    def press(self, key: str, until: Callable[[], bool] = lambda: True) -> None:
        """Press a key until it has an effect: Qt drops a key that arrives while OpenCV draws."""
        command = ["xdotool", "search", "--name", "tttstream", "windowfocus", "--sync", "key", key]
        for _ in range(8):
            sent = subprocess.run(command, env=self.environment, capture_output=True, timeout=30)
            if comes_true(until, 6) and (sent.returncode == 0 or self.ended()):  # it may end while the key is sent
                return
        pytest.fail(f"the key {key} has no effect")

    def ended(self) -> bool:
        return self.process.poll() is not None

    def still(self) -> bool:
        """Whether the screen does not change over a third of a second."""
        before = self.screen()
        time.sleep(0.3)
        return bool((self.screen() == before).all())

    def end(self) -> tuple[int, str, str]:
        """(exit code, output, errors) once it ended by itself."""
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        for text in self.process.communicate():
            print(text)  # pytest shows it where a test fails


def test_the_webcam_demo_shows_pauses_and_quits(display: str, clip: Path, root: Path, tmp_path: Path) -> None:
    with Program(display, root / "demos" / "webcam.py", "--file", clip) as program:
        assert comes_true(program.shows_overlay)
        assert comes_true(lambda: not program.still())
        program.press("space", until=program.still)
        program.press("space", until=lambda: not program.still())
        program.press("l")
        program.press("f")
        program.press("q", until=program.ended)
        code, out, err = program.end()
    assert code == 0, err
    assert "frames, state" in out


def test_watch_show_takes_the_same_keys(display: str, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["watch", "walk", "--show", "--size", "32", "--out", str(out)]
    with Program(display, "-m", "tttstream", *words) as program:
        assert comes_true(program.shows_overlay)
        program.press("q", until=program.ended)
        code, said, err = program.end()
    assert code == 0, err
    assert sorted(os.listdir(out)) == ["frames.jsonl", "overlay.mp4", "summary.json", "surprise.png"]
    assert "interrupted" in said


def test_live_shows_its_sources_in_a_window(display: str) -> None:
    words = ["live", "walk", "places", "--show", "--no-web", "--model", "base", "--size", "32"]
    with Program(display, "-m", "tttstream", *words) as program:
        assert comes_true(program.shows_overlay)
        program.press("space", until=program.still)
        program.press("n")
        program.press("space", until=lambda: not program.still())
        program.press("q", until=program.ended)
        code, said, err = program.end()
    assert code == 0, err
    assert "walk: " in said
    assert "places: " in said


@linux
def test_live_without_a_display_names_its_page() -> None:
    hidden = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    command = [sys.executable, "-m", "tttstream", "live", "walk", "--show", "--no-web"]
    run = subprocess.run(command, env=hidden, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2
    assert "the page in the browser shows the same" in run.stderr
    assert run.stderr.count("\n") == 1


BLACK_TWICE = """
import time, numpy as np
from PIL import Image
from tttstream.views import window as module

class Grab:
    screens = [Image.new("RGB", (900, 900)), Image.new("RGB", (900, 900)), Image.new("RGB", (900, 900), "white")]

    def grab(self, xdisplay):
        return self.screens.pop(0)

module.ImageGrab = Grab()
with module.Viewer() as window:
    end = time.monotonic() + 60
    while Grab.screens and time.monotonic() < end:
        window.show(np.full((120, 160, 3), 90, np.uint8), 10)
    for _ in range(100):
        window.show(np.full((120, 160, 3), 90, np.uint8), 10)
    print("openings", window._openings, "left", len(Grab.screens))
"""


def test_a_black_window_is_reopened(display: str) -> None:
    with Program(display, "-c", BLACK_TWICE) as program:
        code, said, err = program.end()
    assert code == 0, err
    assert "openings 3 left 0" in said


def test_an_agent_plays_until_the_user_quits(display: str, tmp_path: Path) -> None:
    pytest.importorskip("pygame", reason="CartPole draws itself with pygame: pip install 'gymnasium[classic-control]'")
    run = tmp_path / "run"
    sizes = ["--n-envs=2", "--rollout=16", "--minibatch=16", "--dim=16", "--steps=64", "--no-tensorboard", "--quiet"]
    assert agents(["train", "--env", "CartPole-v1", "--out", str(run), *sizes]) == 0
    with Program(display, "-m", "tttstream_agents", "play", run, "--episodes", "100000") as program:
        assert comes_true(program.shows_overlay)
        assert comes_true(lambda: not program.still())
        program.press("q", until=program.ended)
        code, said, err = program.end()
    assert code == 0, err
    assert "steps" in said


def test_the_screenshot_in_the_documentation_is_one(root: Path) -> None:
    with Image.open(root / "docs" / "webcam.png") as picture:
        assert picture.width >= 480
        assert np.asarray(picture.convert("RGB")).std() > 20

"""What a person shows a camera: a thing to follow."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tttstream.errors import ConfigError
from tttstream.frames import Frame
from tttstream.live import Engine
from tttstream.models import FrameModel


def eventually(what: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    until = time.monotonic() + timeout_s
    while not what() and time.monotonic() < until:
        time.sleep(0.02)
    return what()


@pytest.fixture
def moving(reel: Any) -> type[Any]:
    class Moving(reel):  # type: ignore[misc]
        """A red disc before green noise: it stands still until `go`, then moves to the right."""

        def __init__(self, still: bool = True) -> None:
            super().__init__(0, None)
            self.still = still
            self.x = 30.0

        def __iter__(self) -> Iterator[Frame]:
            rng = np.random.default_rng(0)
            ground = rng.integers(60, 120, (96, 128, 3)).astype(np.uint8)
            ground[..., 0] //= 3
            rows, columns = np.mgrid[:96, :128]
            while True:
                image = ground.copy()
                image[(rows - 48) ** 2 + (columns - self.x) ** 2 < 14**2] = (220, 40, 40)
                self._index += 1
                yield Frame(image, self._index - 1, self._index / 25)
                time.sleep(0.02)
                if not self.still and self.x < 90:
                    self.x += 0.5

    return Moving


def test_a_box_is_followed(moving: Any, model: FrameModel, tmp_path: Path) -> None:
    source = moving()
    with Engine(
        model,
        allowed=["gym:0"],
        opener=lambda spec: source,
        policy="all",
        expect=False,
        snapshots=tmp_path,
        every_s=0.2,
    ) as engine:
        camera = engine.add(0)
        with pytest.raises(ConfigError, match="a box"):
            camera.follow([0.5, 0.5, 0.1, 0.1]).result(10)
        with pytest.raises(ConfigError, match="nothing is followed"):
            camera.unfollow().result(10)
        assert camera.wait(3, 10) > 3
        thing = camera.follow([0.12, 0.34, 0.36, 0.66], "disc").result(20)["follow"][0]
        assert (thing["number"], thing["name"]) == (1, "disc")
        source.still = False
        assert eventually(lambda: source.x >= 90)
        assert eventually(lambda: abs(sum(camera.status()["follow"][0]["box"][::2]) / 2 - 90 / 128) < 0.05)
        thing = camera.status()["follow"][0]
        assert thing["confidence"] > 0.5
        x0, y0, x1, y1 = thing["box"]
        assert (x1 - x0, y1 - y0) == pytest.approx((28 / 128, 28 / 96), abs=0.1)
        assert camera.pane("follow") is not None
    with Engine(
        model,
        allowed=["gym:0"],
        opener=lambda spec: source,
        policy="all",
        expect=False,
        snapshots=tmp_path,
        resume=True,
    ) as engine:
        camera = engine.add(0)
        assert eventually(lambda: bool(camera.status()["follow"]))
        assert camera.status()["follow"][0]["name"] == "disc"
        x0, _, x1, _ = camera.status()["follow"][0]["box"]
        assert (x0 + x1) / 2 == pytest.approx(90 / 128, abs=0.05)
        assert camera.unfollow(1).result(10)["follow"] == []


def test_a_thing_is_taught_and_recognised(moving: Any, model: FrameModel, tmp_path: Path) -> None:
    source = moving()

    def engine(resume: bool) -> Engine:
        return Engine(
            model, allowed=["gym:0"], opener=lambda spec: source, policy="all", expect=False, snapshots=tmp_path,
            resume=resume,
        )  # fmt: skip

    with engine(False) as first:
        camera = first.add(0)
        with pytest.raises(ConfigError, match="nothing was taught"):
            camera.forget_label("disc").result(10)
        assert camera.wait(3, 10) > 3
        for _ in range(3):
            said = camera.teach("red disc", [0.1, 0.3, 0.4, 0.7]).result(60)
        assert said["taught"] == [{"label": "red disc", "examples": 3}]
        with pytest.raises(ConfigError, match="label"):
            camera.teach("").result(10)
        assert eventually(lambda: bool(camera.status()["said"]), 40)
        found = camera.status()["said"][0]
        assert found["label"] == "red disc"
        x0, y0, x1, y1 = found["box"]
        assert x0 < 30 / 128 < x1
        assert y0 < 0.5 < y1
    with engine(True) as second:
        camera = second.add(0)
        assert camera.status()["taught"] == [{"label": "red disc", "examples": 3}]
        assert camera.forget_label("red disc").result(20)["taught"] == []

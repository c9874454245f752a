"""The engine: cameras beside others give what they give alone, and no fault of one reaches another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tttstream.errors import ConfigError
from tttstream.frames import Result
from tttstream.live import Engine, Retry, UnknownCamera
from tttstream.models import FrameModel
from tttstream.sources.base import Source
from tttstream.state import pack
from tttstream.streams import Stream


def curves(model: FrameModel, sources: list[Callable[[], Source]], **more: object) -> list[list[float]]:
    """The surprise of every frame, camera by camera."""
    specs = [str(number) for number in range(len(sources))]
    engine = Engine(
        model, allowed=[f"gym:{spec}" for spec in specs], opener=lambda spec: sources[int(spec[4:])](), paced=False,
        policy="all", expect=False, retry=Retry(0.05, 0.05), **more,  # type: ignore[arg-type]
    )  # fmt: skip
    with engine:
        cameras = [engine.add(number) for number in range(len(sources))]
        assert engine.wait(40)
    return [[point[2] for point in camera.curve()] for camera in cameras]


def test_rows_together_equal_rows_alone(model: FrameModel, reel: Any) -> None:
    alone = [Stream(model, embed=False) for _ in range(4)]
    together = [Stream(model, embed=False) for _ in range(4)]
    reels = [iter(reel(seed)) for seed in range(4)]
    for step in range(50):
        rows = [row for row in range(4) if step >= 3 * row]  # they join one after another
        frames = {row: next(reels[row]) for row in rows}
        said = Stream.push_rows([together[row] for row in rows], [frames[row] for row in rows])
        for row, answer in zip(rows, said, strict=True):
            expected = alone[row].push(frames[row])
            assert isinstance(answer, Result)
            assert answer.loss == pytest.approx(expected.loss, rel=1e-5)
            assert answer.surprise == pytest.approx(expected.surprise, abs=1e-3)
    for a, b in zip(alone, together, strict=True):
        expected = pack(a.state)
        assert (pack(b.state) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_refused_frame_changes_no_other_row(model: FrameModel, reel: Any) -> None:
    sources: list[Callable[[], Source]] = [
        lambda: reel(1, 60), lambda: reel(2, 60, broken=(20, 21, 40)), lambda: reel(3, 60)
    ]  # fmt: skip
    beside = curves(model, sources)
    assert [len(curve) for curve in beside] == [60, 57, 60]
    for number in (0, 2):
        (alone,) = curves(model, [sources[number]])
        assert beside[number] == pytest.approx(alone, abs=1e-3)


def test_a_slow_camera_delays_no_other(model: FrameModel, reel: Any) -> None:
    gate = threading.Event()
    sources: list[Callable[[], Source]] = [lambda: reel(1, 80), lambda: reel(2, 5, gate=gate)]
    engine = Engine(
        model, allowed=["gym:0", "gym:1"], opener=lambda spec: sources[int(spec[4:])](), paced=False, policy="all"
    )
    with engine:
        fast, slow = engine.add(0), engine.add(1)
        assert fast.wait(79, 20) == 80
        assert slow.version == 0
        gate.set()
        assert slow.wait(4, 20) == 5


def test_an_error_inside_one_camera_ends_that_camera_only(
    model: FrameModel, reel: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gates = [threading.Event(), threading.Event()]
    engine = Engine(
        model, allowed=["gym:0", "gym:1"], policy="all", paced=False, expect=False,
        opener=lambda spec: reel(int(spec[4:]), 40, gate=gates[int(spec[4:])]),
    )  # fmt: skip
    with engine:
        broken, fine = engine.add(0), engine.add(1)

        def fails(*_: object) -> None:
            raise RuntimeError("a bug")

        monkeypatch.setattr(broken.gate, "push", fails)
        for gate in gates:
            gate.set()
        assert engine.wait(20)
        assert (broken.status()["state"], broken.status()["reason"]) == ("failed", "RuntimeError: a bug")
        assert (fine.status()["state"], fine.version) == ("ended", 40)


def test_cameras_are_added_and_removed_during_a_run(model: FrameModel, reel: Any) -> None:
    engine = Engine(
        model, allowed=["gym:0", "gym:1"], opener=lambda spec: reel(int(spec[4:])), policy="all", paced=False
    )
    with engine:
        first = engine.add(0)
        first.wait(5, 20)
        with pytest.raises(ConfigError, match="watched already"):
            engine.add(0)
        with pytest.raises(ConfigError, match="no source 2"):
            engine.add(2)
        second = engine.add(1)
        second.wait(5, 20)
        engine.remove(first.id)
        assert [camera.id for camera in engine.cameras] == [second.id]
        with pytest.raises(UnknownCamera):
            engine.camera(first.id)
        version = second.version
        assert second.wait(version + 3, 20) > version
        again = engine.add(0)
        assert again.id == first.id
        assert again.wait(2, 20) > 2
    assert [item["id"] for item in engine.summary["cameras"]].count(first.id) == 2


def test_commands_to_a_camera(model: FrameModel, reel: Any) -> None:
    with Engine(model, allowed=["gym:0"], opener=lambda spec: reel(0), policy="all", paced=False) as engine:
        camera = engine.add(0)
        camera.wait(20, 20)
        said = camera.set(learn=False, preset="high", least_s=0.5, ignore=[[0, 0, 0.5, 0.5]]).result(10)
        assert (said["learn"], said["threshold"], said["least_s"]) == (False, 2.0, 0.5)
        assert said["ignore"] == [[0, 0, 0.5, 0.5]]
        for wrong in ({"preset": "x"}, {"threshold": 99}, {"least_s": -1}, {"ignore": [[0, 0, 2, 1]]}):
            with pytest.raises(ConfigError):
                camera.set(**wrong).result(10)  # type: ignore[arg-type]
        camera.save("one").result(10)
        kept = camera.saves["one"].frames
        version = camera.version
        camera.wait(version + 10, 20)
        assert camera.restore("one").result(10)["frames"] >= kept
        with pytest.raises(ConfigError, match="nothing is saved"):
            camera.restore("two").result(10)
        with pytest.raises(ConfigError, match="the name of"):
            camera.save("../x").result(10)
        camera.forget().result(10)


def test_ignored_pixels_have_no_effect(model: FrameModel, reel: Any, blinking: Any) -> None:
    told: list[list[float]] = []
    for kind in (reel, blinking):
        gate = threading.Event()
        source = kind(0, 60, gate=gate)
        with Engine(model, allowed=["gym:0"], opener=lambda spec, it=source: it, policy="all", paced=False) as engine:
            camera = engine.add(0)
            camera.set(ignore=[[0, 0, 0.5, 0.5]]).result(10)
            gate.set()
            assert engine.wait(20)
            told.append([point[2] for point in camera.curve()])
    assert len(told[0]) == 60
    assert told[0] == told[1]


def test_saved_memories_are_available_in_the_next_run(model: FrameModel, reel: Any, tmp_path: Path) -> None:
    def engine(resume: bool) -> Engine:
        return Engine(
            model, allowed=["gym:0"], opener=lambda spec: reel(0), policy="all", paced=False, expect=False,
            snapshots=tmp_path, resume=resume,
        )  # fmt: skip

    with engine(False) as first:
        camera = first.add(0)
        camera.wait(20, 20)
        camera.save("morning").result(10)
        kept = camera.saves["morning"]
    with engine(True) as second:
        camera = second.add(0)
        camera.wait(5, 20)
        assert camera.status()["saved"] == [{"name": "morning", "frames": kept.frames}]
        assert torch.equal(pack(camera.saves["morning"].state), pack(kept.state))
        camera.restore("morning").result(10)

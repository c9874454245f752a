"""Faults with real processes: servers that end, stall, send nothing and restart, and damaged data."""

from __future__ import annotations

import gc
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tttstream import open_source, state
from tttstream.live import Camera, Engine, Retry, feed
from tttstream.models import FrameModel

Eventually = Callable[..., bool]
SERVERS = Path(__file__).with_name("servers.py")


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    kind: str
    port: int

    @property
    def address(self) -> str:
        return (
            f"http://user:secret@127.0.0.1:{self.port}/" if self.kind == "mjpeg" else f"rtsp://127.0.0.1:{self.port}/x"
        )

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@pytest.fixture
def serve(eventually: Eventually) -> Iterator[Callable[..., Server]]:
    """serve(kind, width, height, mode, port): a server in a process of its own, that listens when this returns."""
    running: list[subprocess.Popen[bytes]] = []

    def start(kind: str, width: int = 64, height: int = 48, mode: str = "good", port: int = 0) -> Server:
        if not port:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
        words = [sys.executable, str(SERVERS), kind, str(port), str(width), str(height), mode]
        running.append(subprocess.Popen(words))

        def listens() -> bool:
            with socket.socket() as probe:
                probe.settimeout(0.2)
                return probe.connect_ex(("127.0.0.1", port)) == 0

        assert eventually(listens)
        return Server(running[-1], kind, port)

    yield start
    for process in running:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()


def watching(model: FrameModel, addresses: list[str]) -> Engine:
    return Engine(
        model,
        allowed=addresses,
        expect=False,
        retry=Retry(0.1, 0.3),
        opener=lambda spec: open_source(spec, timeout_s=1.5),
    )


def more(eventually: Eventually, camera: Camera, frames: int) -> bool:
    """Whether so many more results come."""
    version = camera.version
    return eventually(lambda: camera.version >= version + frames)


@pytest.mark.parametrize("kind", ["mjpeg", "rtsp"])
def test_a_camera_server_restarts_with_another_picture_size(
    kind: str, serve: Callable[..., Server], model: FrameModel, eventually: Eventually
) -> None:
    server = serve(kind)
    with watching(model, [server.address]) as engine:
        camera = engine.add(0)
        assert more(eventually, camera, 15)
        assert "secret" not in json.dumps(engine.status())
        server.process.kill()
        server.process.wait()
        assert eventually(lambda: camera.status()["state"] in ("retrying", "opening"))
        assert eventually(lambda: camera.status()["attempts"] >= 2)
        assert camera.status()["reason"]
        assert "secret" not in camera.status()["reason"]
        before = camera.stream.frames
        assert before >= 15
        memory = state.pack(camera.stream.state)
        assert memory.abs().max() > 0
        serve(kind, 96, 64, port=server.port)
        assert more(eventually, camera, 5)
        status = camera.status()
        assert (status["state"], status["picture"]) == ("running", [96, 64])
        assert status["frames"] >= before + 5  # the memory continues, it did not begin again
        times = [point[1] for point in camera.curve()]
        assert (np.diff(times) > 0).all()


def test_a_stalled_camera_does_not_stall_others(
    serve: Callable[..., Server], model: FrameModel, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(feed, "STALL_S", 0.5)
    stuck, fine = serve("mjpeg"), serve("mjpeg", mode="corrupt")
    with watching(model, [stuck.address, fine.address]) as engine:
        first, second = engine.add(0), engine.add(1)
        assert more(eventually, first, 5)
        stuck.send(signal.SIGSTOP)
        assert eventually(lambda: first.status()["state"] == "stalled")
        assert more(eventually, second, 20)  # with damaged pictures among them
        assert second.status()["skipped"] > 0
        assert second.status()["state"] == "running"
        assert eventually(lambda: first.status()["state"] in ("retrying", "opening"))
        first.forget().result(5)  # commands work in the meantime
        stuck.send(signal.SIGCONT)
        assert more(eventually, first, 5)


@pytest.mark.parametrize("scheme", ["rtsp", "http"])
def test_a_camera_server_that_never_answers_delays_no_other(
    scheme: str, model: FrameModel, reel: Any, eventually: Eventually
) -> None:
    """It accepts the connection and then sends nothing; a reader without a time limit would wait."""
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"{scheme}://127.0.0.1:{mute.getsockname()[1]}/x"
        openers: dict[str, Callable[[], Any]] = {
            address: lambda: open_source(address, timeout_s=0.5), "gym:0": lambda: reel(0, 60)
        }  # fmt: skip
        with Engine(
            model, allowed=list(openers), opener=lambda spec: openers[spec](), retry=Retry(0.1, 0.1), policy="all",
            paced=False, expect=False,
        ) as engine:  # fmt: skip
            silent, fine = engine.add(0), engine.add(1)
            assert eventually(lambda: fine.version == 60)
            assert eventually(lambda: silent.status()["attempts"] >= 2)
            assert address in silent.status()["reason"]
        assert silent.version == 0


def test_a_stream_changes_its_resolution(
    serve: Callable[..., Server], model: FrameModel, eventually: Eventually
) -> None:
    server = serve("mjpeg", mode="resize")
    with watching(model, [server.address]) as engine:
        camera = engine.add(0)
        seen = set()

        def both() -> bool:
            seen.add(tuple(camera.status()["picture"] or ()))
            return {(64, 48), (128, 96)} <= seen

        assert eventually(both)
        assert camera.pane("surprise") is not None
        assert camera.status()["refused"] == 0


def test_a_clock_that_jumps(model: FrameModel, reel: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "PAUSE_S", 0.2)

    class Jumping(reel):  # type: ignore[misc]
        def __iter__(self) -> Iterator[Any]:
            for frame in super().__iter__():
                jump = {20: 1e6, 21: -1e6, 22: 0.0}.get(frame.index, 0.0)
                object.__setattr__(frame, "time_s", frame.time_s + jump)
                object.__setattr__(frame, "captured", time.monotonic() + jump)
                yield frame

    with Engine(model, allowed=["gym:0"], opener=lambda spec: Jumping(0, 40), policy="all") as engine:
        camera = engine.add(0)
        assert engine.wait(20)
        assert camera.version == 40
        assert min(point[3] for point in camera.curve()) >= 0


def test_a_source_that_is_reopened_often_leaks_nothing(
    model: FrameModel, tmp_path: Path, eventually: Eventually, recording: Callable[[Path, int], None]
) -> None:
    video = tmp_path / "clip.mp4"
    recording(video, 12)
    process = psutil.Process()
    with Engine(model, allowed=[str(video)], policy="all", paced=False, looped=True, expect=False) as engine:
        camera = engine.add(0)
        gc.disable()  # in a long run collections are rare
        try:
            assert eventually(lambda: camera.version > 5 * 12)
            threads, files = process.num_threads(), process.num_fds()
            assert eventually(lambda: camera.version > 35 * 12)
            assert process.num_threads() <= threads + 6
            assert process.num_fds() <= files + 2
        finally:
            gc.enable()

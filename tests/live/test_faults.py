"""Faults with real processes: servers that die, stall and come back, damaged data, a full disk, a kill in mid-run."""

from __future__ import annotations

import gc
import json
import os
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
from safetensors.torch import load_file

from tttstream import open_source, state
from tttstream.errors import SourceError
from tttstream.live import Camera, Engine, Retry, feed
from tttstream.models import FrameModel
from tttstream.views.writer import VideoWriter

SERVERS = Path(__file__).with_name("servers.py")


def eventually(what: Callable[[], bool], timeout_s: float = 20.0) -> bool:
    until = time.monotonic() + timeout_s
    while not what() and time.monotonic() < until:
        time.sleep(0.02)
    return what()


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
def serve() -> Iterator[Callable[..., Server]]:
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


def more(camera: Camera, frames: int) -> bool:
    """Whether so many more results come."""
    version = camera.version
    return eventually(lambda: camera.version >= version + frames)


@pytest.mark.parametrize("kind", ["mjpeg", "rtsp"])
def test_a_server_dies_and_comes_back_with_another_size(
    kind: str, serve: Callable[..., Server], model: FrameModel
) -> None:
    server = serve(kind)
    with watching(model, [server.address]) as engine:
        camera = engine.add(0)
        assert more(camera, 15)
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
        assert more(camera, 5)
        status = camera.status()
        assert (status["state"], status["picture"]) == ("running", [96, 64])
        assert status["frames"] >= before + 5  # the memory goes on, it did not begin anew
        times = [point[1] for point in camera.curve()]
        assert (np.diff(times) > 0).all()


def test_a_server_stalls_and_another_camera_does_not(
    serve: Callable[..., Server], model: FrameModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "STALL_S", 0.5)
    stuck, fine = serve("mjpeg"), serve("mjpeg", mode="corrupt")
    with watching(model, [stuck.address, fine.address]) as engine:
        first, second = engine.add(0), engine.add(1)
        assert more(first, 5)
        stuck.send(signal.SIGSTOP)
        assert eventually(lambda: first.status()["state"] == "stalled")
        assert more(second, 20)  # with damaged pictures among them
        assert second.status()["skipped"] > 0
        assert second.status()["state"] == "running"
        assert eventually(lambda: first.status()["state"] in ("retrying", "opening"))
        first.forget().result(5)  # commands work in the meantime
        stuck.send(signal.SIGCONT)
        assert more(first, 5)


def test_a_stream_changes_its_resolution(serve: Callable[..., Server], model: FrameModel) -> None:
    server = serve("mjpeg", mode="resize")
    with watching(model, [server.address]) as engine:
        camera = engine.add(0)
        seen = set()
        assert eventually(lambda: seen.add(tuple(camera.status()["picture"] or ())) or {(64, 48), (128, 96)} <= seen)
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


DISK = """
import resource, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from tttstream import models
from tttstream.live import Engine
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model, folder = models.load(sys.argv[1]), Path(sys.argv[2])
engine = Engine(model, allowed=["walk"], snapshots=folder / "state", events=folder / "events", every_s=0.1)
with engine:
    camera = engine.add(0)
    camera.set(threshold=0.5).result(10)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    def until(what):
        end = time.monotonic() + 20
        while not what() and time.monotonic() < end:
            time.sleep(0.02)
        return what()
    assert until(lambda: engine.status()["trouble"]["snapshots"]), engine.status()
    print(engine.status()["trouble"]["snapshots"])
    version = camera.version
    assert until(lambda: camera.version > version + 5)
    assert not list((folder / "state").glob("*.part"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert until(lambda: engine.status()["trouble"]["snapshots"] is None), engine.status()
assert (folder / "state" / "walk.safetensors").stat().st_size > 1000
"""


@pytest.fixture(scope="session")
def saved_model(model: FrameModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    model.save(folder)
    return folder


def test_a_full_disk_is_told_and_the_run_goes_on(saved_model: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", DISK, saved_model, tmp_path], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert "walk.safetensors" in run.stdout


INTERVAL = """
import sys, threading, types
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
from tttstream import models
from tttstream.frames import Frame
from tttstream.live import Engine, engine as module
from tttstream.sources.base import Source

class Told(Source):
    def __init__(self, name):
        self.name, self.live, self._index, self.next = name, name == "live", 0, threading.Semaphore(0)
    def __iter__(self):
        while self.next.acquire():
            pixels = np.random.default_rng(self._index).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            self._index += 1
            yield Frame(pixels, self._index - 1, (self._index - 1) / 8)
    def position(self):
        return {"source": self.name, "index": self._index}
    def seek(self, position):
        self._index = position["index"]

now = 0.0
module.time = types.SimpleNamespace(monotonic=lambda: now)
sources = {f"gym:{name}": Told(name) for name in ("live", "file")}
options = {"snapshots": Path(sys.argv[2]), "every_s": 1.0, "policy": "all", "paced": False, "expect": False}
engine = Engine(models.load(sys.argv[1]), allowed=list(sources), opener=sources.get, **options)
engine.start()
cameras = [engine.add(number) for number in range(2)]
for line in sys.stdin:
    now += 1 / 8
    for source, camera in zip(sources.values(), cameras):
        seen = camera.version
        source.next.release()
        assert camera.wait(seen, 60) == int(line)
    print(line, end="", flush=True)
"""


def test_kill_9_loses_at_most_one_interval(saved_model: Path, tmp_path: Path) -> None:
    """Eight frames are an interval, of a camera that is live and of one that can seek."""

    def kept() -> list[int]:
        files = [tmp_path / f"gym-{name}.safetensors" for name in ("live", "file")]
        return [int(json.loads(state.metadata(file)["stream"])["frames"]) if file.exists() else 0 for file in files]

    words = [sys.executable, "-c", INTERVAL, str(saved_model), str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for frames in range(1, 33):
                process.stdin.write(f"{frames}\n")
                assert process.stdout.readline() == f"{frames}\n"
                if frames in (10, 18, 26):  # the writing is given its time
                    assert eventually(lambda least=frames - 2: min(kept()) >= least)  # type: ignore[misc]
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert all(32 - 8 <= frames < 32 for frames in kept())


def test_settings_are_kept_while_a_camera_is_away(model: FrameModel, reel: Any, tmp_path: Path) -> None:
    def opener(spec: str) -> Any:
        if engine.cameras and engine.cameras[0].version:
            raise SourceError("the cable is out")
        return reel(0, live=True, fails_at=20)

    options: dict[str, Any] = {"allowed": ["0"], "expect": False, "snapshots": tmp_path, "every_s": 0.1}
    with Engine(model, opener=opener, policy="all", retry=Retry(0.05, 0.05), **options) as engine:
        camera = engine.add(0)
        assert eventually(lambda: camera.version == 20 and camera.status()["attempts"] > 1)
        camera.set(threshold=7.0).result(10)
        file = tmp_path / "camera-0.safetensors"
        assert eventually(lambda: file.exists() and "7.0" in state.metadata(file)["live"])
        note = json.loads(state.metadata(file)["live"])
        assert (note["gate"]["threshold"], note["position"]["index"]) == (7.0, 20)
        assert json.loads(state.metadata(file)["stream"])["frames"] == 20


def recording(path: Path, frames: int) -> None:
    rng = np.random.default_rng(0)
    writer = VideoWriter(path, 100.0)
    with writer:
        for index in range(frames):
            scene = np.random.default_rng(index // 60).integers(0, 255, (8, 8, 3)).repeat(8, 0).repeat(8, 1)
            writer.write((0.8 * scene + rng.integers(0, 40, (64, 64, 3))).astype(np.uint8), index / 100)


def test_a_resume_that_fails_loses_nothing(model: FrameModel, reel: Any, tmp_path: Path) -> None:
    def run(source: Callable[[], Any], folder: str, resume: bool) -> Camera:
        with Engine(
            model, allowed=["gym:0"], opener=lambda spec: source(), policy="all", paced=False, expect=False,
            snapshots=tmp_path / folder, resume=resume,
        ) as engine:  # fmt: skip
            camera = engine.add(0)
            assert engine.wait(20)
        return camera

    def broken() -> Any:
        raise SourceError("it is not there today")

    run(lambda: reel(0, 100), "whole", False)
    assert run(lambda: reel(0, 100, fails_at=30), "parts", False).stream.frames == 30
    assert run(broken, "parts", True).status()["state"] == "failed"
    assert run(lambda: reel(0, 100), "parts", True).version == 70
    a, b = (load_file(tmp_path / folder / "gym-0.safetensors") for folder in ("whole", "parts"))
    assert all(np.array_equal(a[name].numpy(), b[name].numpy()) for name in a)


def test_a_source_that_is_opened_again_and_again_leaves_nothing_behind(model: FrameModel, tmp_path: Path) -> None:
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


def test_kill_9_and_resume_bit_for_bit(model: FrameModel, saved_model: Path, tmp_path: Path) -> None:
    video = tmp_path / "clip.mp4"
    recording(video, 180)

    def through(folder: Path, resume: bool) -> Path:
        with Engine(
            model, allowed=[str(video)], policy="all", paced=False, snapshots=folder, resume=resume, expect=True
        ) as engine:
            engine.add(0)
            assert engine.wait(40)
        return folder / "clip.safetensors"

    command = [sys.executable, "-m", "tttstream", "live", str(video), "--no-web", "--model", str(saved_model)]
    command += ["--policy", "all", "--every", "0.2", "--snapshots", str(tmp_path / "broken")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    file = tmp_path / "broken" / "clip.safetensors"
    assert eventually(file.exists, 40)
    time.sleep(0.3)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 0 < json.loads(state.metadata(file)["stream"])["frames"] < 180
    assert through(tmp_path / "broken", True) == file
    whole = through(tmp_path / "whole", False)
    a, b = load_file(whole), load_file(file)
    assert all(np.array_equal(a[name].numpy(), b[name].numpy()) for name in a)
    notes = [json.loads(state.metadata(path)["stream"]) for path in (whole, file)]
    assert notes[0]["frames"] == notes[1]["frames"] == 180
    assert notes[0]["normaliser"] == notes[1]["normaliser"]
    assert not [path for path in os.listdir(tmp_path / "broken") if path.endswith(".part")]

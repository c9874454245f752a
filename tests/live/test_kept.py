"""What a run keeps: full disks, kills in mid-run, and continuing from snapshots."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from tttstream import state
from tttstream.errors import SourceError
from tttstream.live import Camera, Engine, Retry
from tttstream.models import FrameModel

Eventually = Callable[..., bool]


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


def test_a_full_disk_is_reported_and_the_run_continues(saved_model: Path, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", DISK, saved_model, tmp_path], capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    assert "walk.safetensors" in run.stdout


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_full_disk(model: FrameModel, reel: Any, small_disk: Path, eventually: Eventually) -> None:
    snapshots = small_disk / "state"
    with Engine(
        model, allowed=["gym:0"], opener=lambda spec: reel(0), paced=False, expect=False, snapshots=snapshots,
        every_s=0.1,
    ) as engine:  # fmt: skip
        camera, file = engine.add(0), snapshots / "gym-0.safetensors"
        assert eventually(file.exists)
        good = json.loads(state.metadata(file)["stream"])["frames"]
        filler = small_disk / "filler"
        with pytest.raises(OSError, match="No space left"):
            filler.write_bytes(bytes(1 << 20))
        assert eventually(lambda: "the disk is full" in (engine.status()["trouble"]["snapshots"] or ""))
        version = camera.version
        assert eventually(lambda: camera.version >= version + 20)
        assert json.loads(state.metadata(file)["stream"])["frames"] >= good  # whole, if not the newest
        filler.unlink()
        assert eventually(lambda: engine.status()["trouble"]["snapshots"] is None)
    assert json.loads(state.metadata(file)["stream"])["frames"] == camera.stream.frames
    assert not list(snapshots.glob("*.part*"))


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


def test_kill_9_loses_at_most_one_interval(saved_model: Path, tmp_path: Path, eventually: Eventually) -> None:
    """Eight frames are an interval, of a camera that is live and of one that can seek."""

    def kept() -> list[int]:
        files = [tmp_path / f"gym-{name}.safetensors" for name in ("live", "file")]
        return [int(json.loads(state.metadata(file)["stream"])["frames"]) if file.exists() else 0 for file in files]

    words = [sys.executable, "-c", INTERVAL, str(saved_model), str(tmp_path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            for frames in range(1, 32):  # the next interval ends with frame 32 at the earliest
                process.stdin.write(f"{frames}\n")
                assert process.stdout.readline() == f"{frames}\n"
                if frames in (10, 18, 26):  # the writing is given its time
                    assert eventually(lambda least=frames - 2: min(kept()) >= least)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert all(31 - 8 < frames < 31 for frames in kept())


def test_settings_are_kept_while_a_camera_is_away(
    model: FrameModel, reel: Any, tmp_path: Path, eventually: Eventually
) -> None:
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


def test_kill_9_and_resume_bit_for_bit(
    model: FrameModel, saved_model: Path, tmp_path: Path, eventually: Eventually, recording: Callable[[Path, int], None]
) -> None:
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

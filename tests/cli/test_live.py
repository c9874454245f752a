"""The command `live`: refused options, the run without a camera, and the end of a run."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from tttstream.cli.live import Address, News, address
from tttstream.cli.live_sources import default_source, options_of
from tttstream.cli.main import main
from tttstream.errors import SourceError
from tttstream.live.web.access import is_loopback
from tttstream.models import FrameModel
from tttstream.models.frame import ModelConfig


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small")
    FrameModel(ModelConfig(size=32, patch=8, dim=32, depth=2, heads=2, surprise=1)).save(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("8230", "127.0.0.1", 8230, True),
        ("localhost:1", "localhost", 1, True),
        ("0.0.0.0:80", "0.0.0.0", 80, False),
        ("[::1]:80", "::1", 80, True),
        ("[::]:80", "::", 80, False),
        ("cam.example:80", "cam.example", 80, False),
    ],
)
def test_addresses_of_the_page(text: str, host: str, port: int, loopback: bool) -> None:
    found = address(text)
    assert (found, is_loopback(found.host)) == (Address(host, port), loopback)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--web", "0.0.0.0"], "expected [HOST:]PORT"),
        (["--web", "99999"], "expected [HOST:]PORT"),
        (["--resume"], "--resume needs --snapshots DIR"),
        (["--every", "0"], "--every is 0.0"),
        (["--max-frames", "0"], "--max-frames is 0"),
        (["--policy", "newest"], "a policy is latest"),
        (["--webhook", "file:///x"], "--webhook takes http://"),
        (["--model", "mask"], "tttstream track"),
        (["--topic", "/image"], "--topic is for ROS 2 bags and LeRobot data sets, and no source here is one"),
        (["--clock", "log"], "--clock is for ROS 2 bags"),
        (["--pose", "x,y"], "--pose is for ROS 2 bags, LeRobot data sets and environments"),
        (["--view", "2"], "--view belongs to maps"),
        (["--summary", "/proc/none/s.json"], "cannot write /proc/none"),
        (["--allow", "rtsp://me:pa/ss@127.0.0.1/x"], "In a user name or password write / as %2F"),
    ],
)
def test_refused_options(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["live", "walk", "--no-web", "--max-frames", "1", *words])
    except SystemExit as end:
        code = int(end.code or 0)
    assert code == 2
    error = capsys.readouterr().err
    assert said in error
    assert len(error.strip().splitlines()) == 1


def test_changes_of_sources_are_reported(small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One of two sources does not exist, and a camera fails and returns."""
    words = ["live", "walk", str(tmp_path / "no.mp4"), "--no-web", "--fast", "--model", small, "--max-frames", "5"]
    assert main(words) == 0
    error = capsys.readouterr().err
    assert f"no.mp4: no such file or folder: {str(tmp_path / 'no.mp4')!r}" in error
    assert "no.mp4 gave no frame: no such file" in error
    news, camera = News(), types.SimpleNamespace(id="a", label="front", state="opening", reason="")
    for state, reason in [("running", ""), ("retrying", "it is out"), ("retrying", "it is out"), ("running", "")]:
        camera.state, camera.reason = state, reason
        news.hear(camera)  # type: ignore[arg-type]
    told = ["tttstream: front: it is out (trying again)", "tttstream: front: frames arrive again"]
    assert capsys.readouterr().err.splitlines() == told


def test_a_file_that_is_not_there(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["live", "nothing.mp4", "--no-web", "--model", small]) == 2
    assert "no such file" in capsys.readouterr().err


def test_a_run_ends_with_a_summary(small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["live", "walk", "places", "--no-web", "--fast", "--model", small, "--max-frames", "12"]
    words += ["--snapshots", str(tmp_path / "state"), "--summary", str(tmp_path / "summary.json")]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "walk: 12 frames" in said
    assert "places: 12 frames" in said
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [(camera["id"], camera["frames"]) for camera in summary["cameras"]] == [("walk", 12), ("places", 12)]
    assert set(summary["cameras"][0]["latency_ms"]) == {"p50", "p95", "p99"}
    assert main([*words, "--resume"]) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [(camera["frames"], camera["results"]) for camera in summary["cameras"]] == [(24, 12), (24, 12)]
    other = tmp_path / "other"
    torch.manual_seed(1)
    FrameModel(ModelConfig(size=32, patch=8, dim=32, depth=2, heads=2, surprise=1)).save(other)
    assert main([*words, "--resume", "--model", str(other)]) == 2
    assert "saved by another model" in capsys.readouterr().err


def test_each_source_takes_its_own_options(tmp_path: Path) -> None:
    bag, data = tmp_path / "drive.mcap", tmp_path / "arm"
    bag.touch()
    for folder in ("meta", "data"):
        (data / folder).mkdir(parents=True)
    (data / "meta" / "info.json").write_text("{}")
    given = argparse.Namespace(topic="/front", clock="log", pose="/odom")
    assert options_of(given, ["walk", str(bag), f"{data}#3", "gym:Maze-v0", "rtsp://127.0.0.1/x.mcap"]) == {
        "walk": {},
        str(bag): {"topic": "/front", "clock": "log", "pose": "/odom"},
        f"{data}#3": {"topic": "/front", "pose": "/odom"},
        "gym:Maze-v0": {"pose": "/odom"},
        "rtsp://127.0.0.1/x.mcap": {},
    }


def test_a_bag_beside_another_source(small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = pytest.importorskip("mcap_ros2.writer", reason="needs the extra robots")
    image = "std_msgs/Header header\nuint32 height\nuint32 width\nstring encoding\nuint8 is_bigendian\nuint32 step\n"
    image += f"uint8[] data\n{'=' * 80}\nMSG: std_msgs/Header\nbuiltin_interfaces/Time stamp\nstring frame_id\n"
    image += f"{'=' * 80}\nMSG: builtin_interfaces/Time\nint32 sec\nuint32 nanosec\n"
    with open(tmp_path / "drive.mcap", "wb") as file:
        bag = writer.Writer(file)
        schema = bag.register_msgdef("sensor_msgs/msg/Image", image)
        for number in range(8):
            pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
            head = types.SimpleNamespace(stamp=types.SimpleNamespace(sec=number, nanosec=0), frame_id="")
            size = {"height": 24, "width": 32, "step": 96, "encoding": "rgb8", "is_bigendian": 0}
            message = types.SimpleNamespace(header=head, data=pixels.tobytes(), **size)
            for topic in ("/front", "/back")[: 1 + (number < 5)]:
                bag.write_message(topic, schema, message, number, number)
        bag.finish()
    words = ["live", "walk", str(tmp_path / "drive.mcap"), "--no-web", "--fast", "--model", small, "--max-frames", "20"]
    assert main([*words, "--topic", "/front"]) == 0
    said = capsys.readouterr().out
    assert "walk: 20 frames" in said
    assert "drive.mcap: 8 frames" in said


def test_without_a_camera_the_embedded_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: object) -> None:
        raise SourceError("camera 0 gives no picture; try another")

    monkeypatch.setattr("tttstream.sources.open_source", none)
    assert default_source() == "places"
    assert "camera 0 gives no picture: showing the embedded source places instead" in capsys.readouterr().err


def test_rerun_that_is_not_installed(
    small: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "rerun", None)
    assert main(["live", "walk", "--no-web", "--model", small, "--max-frames", "1", "--rerun"]) == 2
    assert "pip install 'tttstream[rerun]'" in capsys.readouterr().err


def test_results_go_to_rerun(small: str, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    image = types.SimpleNamespace(compress=lambda: "image")
    fake = types.SimpleNamespace(
        init=lambda name, spawn: logged.append(f"init {name} {spawn}"),
        set_time=lambda timeline, duration: None,
        log=lambda path, value: logged.append(path),
        Image=lambda pixels: image,
        DepthImage=lambda values: values,
        Scalars=lambda value: value,
    )
    monkeypatch.setitem(sys.modules, "rerun", fake)  # type: ignore[arg-type]
    assert main(["live", "walk", "--no-web", "--model", small, "--max-frames", "20", "--rerun"]) == 0
    assert logged[0] == "init tttstream True"
    assert {"walk/frame", "walk/surprise", "walk/latency_ms", "walk/surprise_map", "walk/expected"} <= set(logged)


def test_control_c_ends_in_good_order(small: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tttstream", "live", "walk", "--no-web", "--model", small]
    process = subprocess.Popen(
        [*command, "--snapshots", str(tmp_path), "--every", "0.2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 40
    while not (tmp_path / "walk.safetensors").exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "walk: " in out
    assert "Traceback" not in err
    assert os.listdir(tmp_path) == ["walk.safetensors"]

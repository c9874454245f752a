"""The parts of live: what counts as an event, clips, the gallery, the webhook, policies, names, pictures pushed in."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from tttstream import Frame, open_source
from tttstream.errors import ConfigError, FrameError, SourceError
from tttstream.live import Engine, Retry
from tttstream.live.gallery import Gallery, moment
from tttstream.live.gate import Gate
from tttstream.live.naming import id_of, kind_of, label_of, scrubbed
from tttstream.live.panes import Panes, Shown
from tttstream.live.policy import Inbox, Policy, Taken
from tttstream.live.webhook import Webhook
from tttstream.models import FrameModel
from tttstream.sources.pushed import Pushed
from tttstream.streams import Stream


def said(gate: Gate, surprises: list[float], step: float = 0.125) -> list[tuple[str, ...]]:
    return [gate.push(surprise, index * step) for index, surprise in enumerate(surprises)]


def test_an_event_has_hysteresis_and_a_minimum_duration() -> None:
    assert said(Gate(3.0, hold_s=0.25), [0, 4, 2, 4, 1, 1, 0]) == [(), ("rise", "begin"), (), (), (), ("end",), ()]
    long = Gate(3.0, least_s=0.375, hold_s=0.25)
    assert said(long, [0, 4, 0, 4, 2, 2, 2, 0, 0]) == [(), ("rise",), (), ("rise",), (), (), ("begin",), (), ("end",)]
    assert said(Gate(3.0, least_s=0.3), [0, 9, 9, 0, 0]) == [(), ("rise",), (), (), ()]


def test_a_jump_of_the_clock_does_not_count_as_time() -> None:
    gate = Gate(3.0, least_s=5.0)
    assert gate.push(4.0, 0.0) == ("rise",)
    assert gate.push(4.0, 1e6) == ()
    assert gate.push(4.0, -1e6) == ()


def test_clips_hold_three_seconds_before_and_after(model: FrameModel, reel: Any, tmp_path: Path) -> None:
    folder = tmp_path / "events"
    with Engine(
        model,
        allowed=["gym:0"],
        opener=lambda spec: reel(0, 320),
        policy="all",
        paced=False,
        events=folder,
        expect=True,
    ) as engine:
        camera = engine.add(0)
        camera.gate.threshold = 4.0
        assert engine.wait(40)
        engine.stop()
        events = engine.gallery.list()
    assert events
    assert all(event["has"] == ["clip", "expected", "frame", "surprise"] for event in events)
    inner = next(event for event in events if 3 < event["begins"]["time_s"] < event["ends"]["time_s"] < 12.8 - 3.2)
    begins, ends = inner["begins"]["time_s"], inner["ends"]["time_s"]
    path = engine.gallery.content(inner["number"], "clip")
    assert isinstance(path, Path)
    with av.open(str(path)) as clip:
        frames = [frame.time for frame in clip.decode(video=0)]
    assert frames[-1] - frames[0] == pytest.approx(3 + (ends - begins) + 3, abs=0.2)
    again = Gallery(folder)
    assert [event["number"] for event in again.list()] == [event["number"] for event in events]
    picture = again.content(events[0]["number"], "expected")
    assert isinstance(picture, bytes)
    assert Image.open(io.BytesIO(picture)).format == "JPEG"
    assert again.begin("x", "x", moment(1, 0.1), 5.0, {}) == events[-1]["number"] + 1
    again.close()


def test_a_gallery_without_a_folder_keeps_the_last_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tttstream.live.gallery.IN_MEMORY", 2)
    gallery = Gallery()
    for index in range(3):
        gallery.begin("a", "a", moment(index, index), 4.0, {"frame": b"x"})
    assert [gallery.content(number, "frame") for number in (1, 2, 3)] == [None, b"x", b"x"]
    assert gallery.content(3, "clip") is None
    assert gallery.list(camera="b") == []


@pytest.fixture
def listener() -> Iterator[tuple[str, list[Any], list[str]]]:
    """An address, the bodies and the authorisations that came to it; the path /never does not answer."""
    bodies: list[Any] = []
    secrets: list[str] = []
    release = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/never":
                release.wait(10)
                return
            bodies.append(json.loads(body))
            secrets.append(self.headers.get("Authorization", ""))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}", bodies, secrets
    release.set()
    server.shutdown()
    server.server_close()


def test_a_webhook_receives_the_begin_and_the_end_of_an_event(listener: Any, model: FrameModel, reel: Any) -> None:
    host, bodies, secrets = listener
    with Engine(
        model, allowed=["gym:0"], opener=lambda spec: reel(0, 90), policy="all", paced=False, expect=False,
        webhook=f"http://me:secret@{host}/events",
    ) as engine:  # fmt: skip
        camera = engine.add(0)
        camera.gate.threshold = 4.0
        assert engine.wait(20)
    assert [body["kind"] for body in bodies[:2]] == ["begin", "end"]
    assert bodies[0]["event"]["camera"] == camera.id
    assert bodies[1]["event"]["ends"]["frame"] > bodies[0]["event"]["begins"]["frame"]
    assert secrets[0].startswith("Basic ")
    assert "secret" not in json.dumps(engine.summary)


def test_a_webhook_that_never_answers_blocks_nothing(listener: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tttstream.live.webhook.TIMEOUT_S", 0.1)
    monkeypatch.setattr("tttstream.live.webhook.TRIES", 1)
    hook = Webhook(f"http://user:secret@{listener[0]}/never")
    began = time.monotonic()
    for number in range(1000):
        hook.tell("begin", {"number": number})
    assert time.monotonic() - began < 1.0
    hook.close()
    assert "did not take an event" in (hook.trouble or "")
    assert "secret" not in (hook.trouble or "")
    hook._chores._thread.join(5.0)  # the messages that waited are dropped
    assert not hook._chores._thread.is_alive()
    for wrong in ("file:///etc/passwd", "ftp://x/y", "hello", "http://[x"):
        with pytest.raises(ConfigError):
            Webhook(wrong)


def test_policies_are_parsed(reel: Any) -> None:
    assert [str(Policy.parse(text)) for text in ("auto", "latest", "all", "every 5", "every:5")] == [
        "auto", "latest", "all", "every 5", "every 5"
    ]  # fmt: skip
    for wrong in ("", "newest", "every", "every 0", "every -1"):
        with pytest.raises(ConfigError):
            Policy.parse(wrong)
    inbox = Inbox(lambda: None)
    frames = [Taken(frame, 0.0, None, None) for _, frame in zip(range(3), reel(0), strict=False)]  # type: ignore[arg-type]
    assert all(inbox.put(frame, True) for frame in frames)
    taken = inbox.take()
    assert taken is not None
    assert (taken.frame.index, inbox.dropped, inbox.take()) == (2, 2, None)


@pytest.mark.parametrize(("policy", "frames"), [("every 5", 8), ("all", 40)])
def test_which_frames_a_policy_takes(policy: str, frames: int, model: FrameModel, reel: Any) -> None:
    with Engine(
        model, allowed=["gym:0"], opener=lambda spec: reel(0, 40), policy=policy, paced=False, expect=False
    ) as engine:
        camera = engine.add(0)
        assert engine.wait(20)
    assert camera.version == frames
    assert camera.shown is not None
    assert camera.shown.frame.index == 40 - (5 if frames == 8 else 1)


def test_names_contain_no_secrets() -> None:
    address = "rtsp://admin:hunter2@10.0.0.7:554/live/front?token=abc#x"
    assert (kind_of(address), label_of(address)) == ("network", "rtsp://10.0.0.7:554/live/front")
    assert id_of(label_of(address), []) == "front"
    assert [kind_of(spec) for spec in ("0", "/dev/video1", "walk", "gym:CartPole-v1", "a/b.mp4")] == [
        "camera", "camera", "generated", "environment", "file"
    ]  # fmt: skip
    for secret in ("pa/ss", "pa?ss", "pa#ss", "pa@ss", "12/ss", "p@/ss"):
        spec = f"rtsp://admin:{secret}@10.0.0.7:554/live"
        assert label_of(spec) == "rtsp://10.0.0.7:554/live"
        assert scrubbed(f"{spec} and admin:{secret} failed", spec) == "rtsp://10.0.0.7:554/live and … failed"
        if secret != "pa@ss":  # FFmpeg reads that as it is meant
            with pytest.raises(SourceError, match=r"^rtsp://10\.0\.0\.7:554/live: an @ is after"):
                open_source(spec)
    assert label_of("http://10.0.0.7/@me/x.mp4") == "http://10.0.0.7/@me/x.mp4"
    taken: list[str] = []
    for spec in ("0", "a/clip.mp4", "b/clip.mp4", "walk", "Walk", "../../etc/passwd", "ä ö.mp4", "...."):
        taken.append(id_of(label_of(spec), taken))
    assert taken == ["camera-0", "clip", "clip-2", "walk", "Walk-2", "passwd", "source", "source-2"]


def test_messages_and_files_contain_no_secrets(model: FrameModel, reel: Any, tmp_path: Path) -> None:
    address = "http://someone:PW@127.0.0.1:9/stream.mjpg?key=SECRET#F"
    with Engine(model, allowed=[address], expect=False, retry=Retry(0.05, 0.05)) as engine:
        camera = engine.add(0)
        until = time.monotonic() + 20
        while camera.status()["attempts"] < 1 and time.monotonic() < until:
            time.sleep(0.02)
        said = json.dumps(engine.status())
        assert "http://127.0.0.1:9/stream.mjpg" in camera.status()["reason"]
    text = "http://127.0.0.1:9/stream.mjpg?key=SECRET#F and key=SECRET and someone:PW failed"
    for words in (said, json.dumps(engine.summary), scrubbed(text, address)):
        assert not [secret for secret in ("PW", "SECRET", "someone") if secret in words]
    named = reel(0, 20)
    named.name = "http://h/x.mp4?key=SECRET"
    address = "http://someone:PW@h/x.mp4?key=SECRET"
    with Engine(model, allowed=[address], opener=lambda spec: named, snapshots=tmp_path, expect=False) as engine:
        engine.add(0)
        assert engine.wait(20)
    (file,) = tmp_path.glob("*.safetensors")
    assert b"SECRET" not in file.read_bytes()
    named._index, named.frames = 0, 30
    with Engine(
        model, allowed=[address], opener=lambda spec: named, snapshots=tmp_path, expect=False, resume=True
    ) as engine:
        camera = engine.add(0)
        assert engine.wait(20)
        assert (camera.version, camera.stream.frames) == (10, 30)


def test_pushed_pictures_become_frames(model: FrameModel) -> None:
    def jpeg(value: int) -> bytes:
        data = io.BytesIO()
        Image.fromarray(np.full((40, 60, 3), value, np.uint8)).save(data, "JPEG")
        return data.getvalue()

    with Engine(model, expect=False) as engine:
        camera = engine.add_browser("my phone <b>")
        for value in range(5):
            camera.put(jpeg(40 * value))
            assert camera.wait(camera.version, 10)
        with pytest.raises(FrameError, match="no picture"):
            camera.put(b"GIF89a not really")
        assert camera.status()["picture"] == [60, 40]
        engine.remove(camera.id)
        assert not engine.cameras
    huge = io.BytesIO()
    Image.new("L", (5000, 10)).save(huge, "PNG")
    with pytest.raises(FrameError, match="at most 4096"):
        Pushed().put(huge.getvalue())


class Interrupted:
    """A lock whose holder waits while another thread does a job."""

    def __init__(self, job: Any) -> None:
        self.job = job

    def __enter__(self) -> None:
        self.job()

    def __exit__(self, *_: object) -> None:
        pass


def test_a_pane_is_drawn_when_its_thing_is_released_meanwhile(model: FrameModel) -> None:
    stream = Stream(model)
    frame = Frame(np.full((32, 32, 3), 90, np.uint8), 0, 0.0)
    panes = Panes()
    panes.show(Shown(1, frame, stream.push(frame), stream, 0.0, 1.0))
    panes.mark((frame, np.ones((32, 32), np.uint8)))
    panes._lock = Interrupted(lambda: panes.mark(None))  # type: ignore[assignment]
    assert panes.get("follow", 64) is not None
    assert panes.get("follow", 64) is None

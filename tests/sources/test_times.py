"""Difficult times: pauses of recordings with a variable rate, gaps, and streams without times."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from tttstream.errors import SourceError
from tttstream.sources import open_source
from tttstream.sources.video import Video

STILL_S = 4.0
WAITS = (0.0, 0.3, 0.3, 0.05, 0.8, 0.3)  # seconds before each picture of a network camera


def times(steady: bool) -> list[int]:
    """Milliseconds of 80 frames with a still part of four seconds in the middle."""
    steps = np.full(80, 40) if steady else np.random.default_rng(0).integers(15, 90, 80)
    steps[40] += int(STILL_S * 1000)
    return [int(stamp) for stamp in np.cumsum(steps) - steps[0]]


@pytest.fixture
def record(tmp_path: Path) -> Callable[..., Path]:
    """record(name, codec, milliseconds, sound=…): a video, optionally with continuous sound."""

    def write(name: str, codec: str, stamps: list[int], sound: bool = False) -> Path:
        tick = Fraction(1, 1000) if codec in ("libx264", "libvpx") else Fraction(1, 25)
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream(codec, rate=25)
            stream.width = stream.height = 32
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = tick
            packets = []
            for number, stamp in enumerate(stamps):
                frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), number % 250, np.uint8), format="rgb24")
                frame.pts, frame.time_base = round(stamp / 1000 / tick), tick
                packets += stream.encode(frame)
            packets += stream.encode(None)
            if sound:
                voice = container.add_stream("pcm_s16le", rate=8000, layout="mono")
                for second in range(0, stamps[-1], 100):
                    samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
                    samples.sample_rate, samples.pts, samples.time_base = 8000, second * 8, Fraction(1, 8000)
                    packets += voice.encode(samples)
            for packet in sorted(packets, key=lambda packet: float((packet.dts or 0) * packet.time_base)):
                container.mux(packet)
        return tmp_path / name

    return write


def came(path: Path) -> list[float]:
    """The times of all frames, read strictly."""
    with open_source(path, on_error="raise") as source:
        stamps = [frame.time_s for frame in source]
        assert (source.skipped, source.truncated) == (0, False)
    return stamps


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv", "a.webm", "a.flv", "a.ts", "a.nut"])
def test_a_pause_in_a_recording_of_variable_rate(record: Callable[..., Path], name: str) -> None:
    stamps = times(steady=False)
    codec = "libvpx" if name.endswith("webm") else "libx264"
    np.testing.assert_allclose(came(record(name, codec, stamps)), np.array(stamps) / 1000, atol=2e-3)


@pytest.mark.parametrize(("name", "codec"), [("b.mp4", "libx264"), ("b.mov", "mpeg4"), ("b.avi", "mpeg4")])
def test_a_pause_with_a_duration_in_the_file(record: Callable[..., Path], name: str, codec: str) -> None:
    stamps = times(steady=True)
    np.testing.assert_allclose(came(record(name, codec, stamps)), np.array(stamps) / 1000, atol=2e-3)


def test_a_pause_with_continuous_sound(record: Callable[..., Path]) -> None:
    assert max(np.diff(came(record("c.mkv", "libx264", times(steady=True), sound=True)))) > STILL_S


@pytest.mark.parametrize("name", ["d.mkv", "d.flv", "d.ts"])
def test_a_hole_in_a_stream_of_constant_rate(record: Callable[..., Path], name: str) -> None:
    path = record(name, "libx264", times(steady=True))
    with open_source(path) as source:
        assert len(list(source)) == 80
        assert source.truncated
    with open_source(path, on_error="raise") as source, pytest.raises(SourceError, match=r"4\.0 s are missing in the"):
        list(source)
    with open_source(path) as source:
        for _, _ in zip(range(60), source, strict=False):
            pass
        position = source.position()
    with open_source(path) as source:
        source.seek(position)
        assert len(list(source)) == 20
        assert source.truncated


def test_an_estimated_number_of_frames_ends_nothing(record: Callable[..., Path]) -> None:
    """Matroska has no number of frames. Of 25 frames a second there would be 28; faster than that there are 60."""
    path = record("fast.mkv", "libx264", [*range(0, 1080, 18)])
    with open_source(str(path)) as source:
        assert source.frames is not None
        assert source.frames < 30
        assert source.estimated
        assert not source.ends_before(59)
        assert len(list(source)) == 60
    with open_source(str(record("counted.mp4", "libx264", [*range(0, 1080, 18)]))) as source:
        assert source.frames == 60
        assert source.ends_before(60)
        assert not source.ends_before(59)


def test_several_holes(record: Callable[..., Path]) -> None:
    stamps = [stamp for stamp in range(0, 12000, 40) if stamp // 1000 not in (2, 3, 7, 8)]
    with open_source(record("e.mkv", "libx264", stamps)) as source:
        list(source)
        assert source.truncated


class NetworkCamera(BaseHTTPRequestHandler):
    """Motion JPEG over HTTP as cameras send it: no times, no end."""

    pictures: tuple[bytes, ...] = ()
    lengths = True
    whole = False

    def do_GET(self) -> None:
        self.send_response(200)
        if self.whole:  # a file on a server: it has an end
            body = b"".join(self.pictures)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            return
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        for wait, picture in zip(WAITS, self.pictures, strict=True):
            time.sleep(wait)
            length = b"Content-Length: %d\r\n" % len(picture) if self.lengths else b""
            self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\n" + length + b"\r\n" + picture + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"--frame--\r\n")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def pictures() -> tuple[bytes, ...]:
    noise = np.random.default_rng(0).integers(0, 255, (len(WAITS), 48, 64, 3)).astype(np.uint8)
    found = []
    for image in noise:
        data = io.BytesIO()
        Image.fromarray(image).save(data, "JPEG")
        found.append(data.getvalue())
    return tuple(found)


@pytest.fixture
def camera() -> Iterator[Callable[..., str]]:
    """camera(**settings): the address of a network camera."""
    servers = []

    def start(**settings: object) -> str:
        handler = type("Handler", (NetworkCamera,), {"pictures": pictures(), **settings})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}/stream"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("lengths", [True, False])
def test_times_of_motion_jpeg_over_http_are_those_of_arrival(camera: Callable[..., str], lengths: bool) -> None:
    with open_source(camera(lengths=lengths)) as source:
        assert source.live
        begin = time.monotonic()
        found = [(frame.time_s, time.monotonic() - begin) for frame in source]
    stamps, clock = np.array(found).T
    assert len(stamps) == len(WAITS)
    assert stamps[0] == 0
    assert (np.diff(stamps) > 0).all()
    # The first ones were read to detect the format; later time stamps follow the clock of the reader.
    assert stamps[-1] >= sum(WAITS[3:]) - 0.1
    np.testing.assert_allclose(stamps - stamps[-1], clock - clock[-1], atol=0.5)


def test_a_picture_cut_in_half_on_the_network(camera: Callable[..., str]) -> None:
    items = list(pictures())
    items[3] = items[3][: len(items[3]) // 2]
    with open_source(camera(pictures=tuple(items))) as source:
        assert len(list(source)) == len(WAITS) - 1
        assert (source.skipped, source.truncated) == (1, True)


def test_a_file_on_a_server_keeps_its_rate(camera: Callable[..., str]) -> None:
    with Video(camera(whole=True)) as video:
        assert not video.live
        np.testing.assert_allclose([frame.time_s for frame in video], np.arange(len(WAITS)) / 25, atol=1e-6)


def test_motion_jpeg_on_a_pipe(tmp_path: Path) -> None:
    import os

    path = tmp_path / "pipe"
    os.mkfifo(path)

    def write() -> None:
        with path.open("wb", buffering=0) as pipe:
            for wait, picture in zip(WAITS, pictures(), strict=True):
                time.sleep(wait)
                pipe.write(picture)

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    with Video(str(path)) as video:
        assert video.live
        stamps = [frame.time_s for frame in video]
    writer.join(10)
    assert len(stamps) == len(WAITS)
    assert (np.diff(stamps) > 0).all()

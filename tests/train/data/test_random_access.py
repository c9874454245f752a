"""Frame n is the n-th frame of sequential decoding in every container, after any earlier reads, by PyAV and by
decord."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tttstream.sources.decoder import longest_stream
from tttstream.sources.pictures import Display
from tttstream.sources.video import Video
from tttstream.train.data import Decoder, Decord, PyAV, video
from tttstream.train.data.clips import Pixels
from tttstream.train.data.packets import scan

COUNT, WIDTH, HEIGHT = 30, 64, 48
REORDERING = ("libx264", "mpeg4", "mpeg2video", "mpeg1video")
OPTIONS = {
    "libx264": {"preset": "ultrafast"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
}
FORMATS = {"rgb24": ("png", "apng"), "rgb8": ("gif",), "yuvj420p": ("mjpeg",)}
MUXERS = {"m2ts": "mpegts", "wmv": "asf", "ogv": "ogg", "mpg": "mpeg"}
CONTAINERS = {
    "libx264": "mp4 mov mkv avi ts m2ts mpg vob flv wmv 3gp h264 nut mxf",
    "mpeg4": "mp4 mkv avi ts mpg wmv nut m4v",
    "mpeg2video": "mkv mov ts mpg vob avi m2v nut",
    "mpeg1video": "mpg ts mp4",
    "libvpx": "webm mkv ogv avi ivf",
    "libvpx-vp9": "webm mp4",
    "mjpeg": "mov avi mjpeg",
    "wmv2": "wmv avi",
    "flv": "flv",
    "rawvideo": "y4m avi",
    "ffv1": "mkv avi mxf",
    "gif": "gif",
    "apng": "apng",
}
WINDOWS = ([27, 28, 29], [24], [11, 12], [23], [12, 17, 22], [0, 1], [29])


def make(path: Path, codec: str, gap: int = 12, b_frames: int = 0, **given: Any) -> Path:
    """A video of COUNT frames that all differ. gap: frames from one key frame to the next. given: the numbers of the
    time stamps, options of the codec and of the container.
    """
    stamps, more, container = given.get("stamps", range(COUNT)), given.get("options", {}), given.get("container", {})
    scale = 8 * given.get("size", HEIGHT) // HEIGHT
    noise = np.random.default_rng(0).integers(30, 220, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    suffix = path.suffix[1:]
    muxer = {"y4m": "yuv4mpegpipe", "mkv": "matroska"}.get(suffix, MUXERS.get(suffix))
    with av.open(str(path), "w", format=muxer, options=container) as file:
        stream: Any = file.add_stream(codec, rate=25, options=OPTIONS.get(codec, {}) | more)
        stream.width, stream.height = WIDTH * scale // 8, HEIGHT * scale // 8
        stream.pix_fmt = next((name for name, codecs in FORMATS.items() if codec in codecs), "yuv420p")
        stream.bit_rate, stream.gop_size = 1_000_000, gap
        stream.codec_context.thread_count = 1
        if codec in REORDERING:
            stream.codec_context.max_b_frames = b_frames
        for stamp in stamps:
            picture = np.roll(noise, stamp, 1).repeat(scale, 0).repeat(scale, 1)
            picture[:scale] = 40 + 5 * (stamp % 41)
            frame = av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = stamp, Fraction(1, 25)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    return path


def in_sequence(path: Path) -> Pixels:
    """All frames, by decoding from the start to the end."""
    with av.open(str(path)) as file:
        stream = longest_stream(file, path.name)
        stream.codec_context.thread_count = 1
        return np.stack([Display(str(path)).show(picture) for picture in file.decode(stream)])


def check(path: Path, decoder: Decoder, expected: Pixels, off: float = 0.0) -> None:
    """Windows have the expected frames, each by its own reader and all by one reader; no file is reported as
    damaged."""
    name = str(path)
    scan.cache_clear()
    kept = decoder.open(name)
    assert kept.frames == decoder.count(name) == len(expected)
    for window in WINDOWS:
        wanted = np.array([index for index in window if index < len(expected)], np.int64)
        alone = decoder.open(name)
        for reader in (alone, kept):
            shown = reader.read(wanted).frames
            assert reader.damage is None
            if not len(wanted):  # beyond the end, where frames have no size
                assert len(shown) == 0
                continue
            assert shown.shape == expected[wanted].shape, window
            error = np.abs(shown.astype(int) - expected[wanted]).mean((1, 2, 3))
            assert (error <= off).all(), (window, error)
        alone.close()
    kept.close()


CASES = [
    pytest.param(codec, suffix, gap, b_frames, id=f"{suffix}-{codec}-{gap}-{b_frames}")
    for codec, suffixes in CONTAINERS.items()
    for suffix in suffixes.split()
    for gap, b_frames in (((12, 2),) if codec in REORDERING else ((12, 0),))
] + [
    pytest.param("libx264", "ts", 12, 0, id="ts-one-direction"),
    pytest.param("libx264", "ts", 100, 2, id="ts-one-key-frame"),
    pytest.param("mpeg2video", "mpg", 100, 0, id="mpg-one-key-frame"),
    pytest.param("mpeg1video", "ts", 1, 0, id="ts-key-frames-only"),
    pytest.param("libx264", "flv", 1, 0, id="flv-key-frames-only"),
    pytest.param("libx264", "wmv", 1, 0, id="wmv-key-frames-only"),
]


@pytest.mark.parametrize(("codec", "suffix", "gap", "b_frames"), CASES)
def test_every_container(tmp_path: Path, codec: str, suffix: str, gap: int, b_frames: int) -> None:
    path = make(tmp_path / f"a.{suffix}", codec, gap, b_frames)
    expected = in_sequence(path)
    assert len(expected) == COUNT
    check(path, PyAV(), expected)
    if suffix in ("mp4", "mkv", "avi", "mpg", "wmv"):
        check(path, Decord(), expected, 3.0)


OPEN = {"x264-params": "open-gop=1:scenecut=0:bframes=3:keyint=12:min-keyint=6"}
ODD: dict[str, dict[str, Any]] = {
    "open-gop": {"b_frames": 2, "options": OPEN},
    "intra-refresh": {"options": {"x264-params": "intra-refresh=1:keyint=12"}},
    "negative": {"b_frames": 2, "stamps": range(-5, COUNT - 5)},
    "late": {"b_frames": 2, "stamps": range(1000, 1000 + COUNT)},
    "variable": {"b_frames": 2, "stamps": [3 * n + n * n // 7 for n in range(COUNT)]},
    "fragments": {"b_frames": 2, "container": {"movflags": "frag_keyframe+empty_moov"}},
}


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("odd", ODD)
def test_odd_streams(tmp_path: Path, odd: str, suffix: str) -> None:
    given = {key: value for key, value in ODD[odd].items() if suffix == "mp4" or key != "container"}
    path = make(tmp_path / f"a.{suffix}", "libx264", **given)
    expected = in_sequence(path)
    check(path, PyAV(), expected)
    if suffix in ("mp4", "mkv"):
        check(path, Decord(), expected, 3.0)


@pytest.mark.parametrize("b_frames", [0, 2])
def test_files_that_call_every_frame_a_key_frame(tmp_path: Path, b_frames: int) -> None:
    """As MP4 without its table of key frames (stss) does: decord would begin to decode at any frame."""
    path, source = tmp_path / "all.mp4", make(tmp_path / "a.mp4", "libx264", b_frames=b_frames)
    with av.open(str(source)) as whole, av.open(str(path), "w") as file:
        stream = file.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is not None:
                packet.stream, packet.is_keyframe = stream, True
                file.mux(packet)
    check(path, PyAV(), in_sequence(path))
    check(path, Decord(), in_sequence(path), 3.0)


@pytest.mark.parametrize("suffix", ["webm", "ivf"])
def test_pictures_of_vp8_that_are_never_shown(tmp_path: Path, suffix: str) -> None:
    alt = {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good", "cpu-used": "4"}
    path = make(tmp_path / f"a.{suffix}", "libvpx", options=alt)
    check(path, PyAV(), in_sequence(path))


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def test_times_that_come_twice_or_go_back(tmp_path: Path) -> None:
    first, late = (make(tmp_path / f"{n}.ts", "libx264", stamps=range(n, n + COUNT), b_frames=2) for n in (0, 500))
    for parts in ((first, first), (late, first), (first, late)):
        path = joined(tmp_path / "joined.ts", *parts)
        expected = in_sequence(path)
        assert len(expected) == 2 * COUNT
        check(path, PyAV(), expected)


@pytest.mark.parametrize("codec", ["libx264", "mpeg2video"])
def test_a_stream_that_begins_between_key_frames(tmp_path: Path, codec: str) -> None:
    whole = make(tmp_path / "whole.ts", codec, b_frames=2).read_bytes()
    path = tmp_path / "cut.ts"
    path.write_bytes(whole[len(whole) // 3 // 188 * 188 :])
    expected = in_sequence(path)
    assert 0 < len(expected) < COUNT
    check(path, PyAV(), expected)


def test_inside_a_tar(tmp_path: Path) -> None:
    path = make(tmp_path / "a.ts", "libx264", b_frames=2)
    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(path, "a.ts")
    check(Path(f"{tmp_path}/shard.tar::a.ts"), PyAV(), in_sequence(path))


def test_a_seek_that_leads_elsewhere_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make(tmp_path / "a.mp4", "libx264", b_frames=2)
    expected = in_sequence(path)
    for stamp in (0, 10**6):
        monkeypatch.setattr(
            "tttstream.train.data.video._sought", lambda file, stream, _, to=stamp: _seek(file, stream, to)
        )
        check(path, PyAV(), expected)


def _seek(file: Any, stream: Any, stamp: int) -> bool:
    file.seek(stamp, stream=stream)
    return True


def test_packets_that_are_not_those_of_the_scan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the key frame that was sought a packet is missing: the file is read from its start instead."""
    path = make(tmp_path / "a.mp4", "libx264")
    expected = in_sequence(path)
    honest = video.demuxed

    def leaky(*given: Any) -> Iterator[Any]:
        packets = list(honest(*given))
        yield from packets if len(packets) == COUNT else packets[:1] + packets[2:]

    monkeypatch.setattr(video, "demuxed", leaky)
    check(path, PyAV(), expected)


@pytest.mark.parametrize("suffix", ["mp4", "ts", "mpg", "flv", "avi", "gif"])
def test_watch_continues_at_its_last_position(tmp_path: Path, suffix: str) -> None:
    codec = {"mpg": "mpeg2video", "avi": "mpeg4", "gif": "gif"}.get(suffix, "libx264")
    path = make(tmp_path / f"a.{suffix}", codec, b_frames=2)
    expected = in_sequence(path)
    for stop in (12, 23):
        with Video(str(path)) as source:
            for _, _ in zip(range(stop), source, strict=False):
                pass
            position = source.position()
        with Video(str(path)) as source:
            source.seek(position)
            rest = [frame.pixels() for frame in source]
        np.testing.assert_array_equal(np.stack(rest), expected[position["index"] :])


@pytest.mark.parametrize("decoder", [PyAV(), PyAV(short_side=40), Decord()], ids=["pyav", "pyav-small", "decord"])
def test_frames_of_another_size_are_brought_to_that_of_the_clip(tmp_path: Path, decoder: Decoder) -> None:
    path = joined(tmp_path / "joined.ts", *(make(tmp_path / f"{n}.ts", "libx264", size=n) for n in (48, 96)))
    scan.cache_clear()
    reader = decoder.open(str(path))
    shown = reader.read(np.arange(2 * COUNT)).frames
    assert shown.shape == (2 * COUNT, *shown[0].shape)
    if shown.shape[1:] == (48, 64, 3):
        assert reader.damage == "the size of its frames changes from 64×48 to 128×96 pixels"
    np.testing.assert_array_equal(decoder.open(str(path)).read(np.array([COUNT + 5])).frames[0], shown[COUNT + 5])
    assert np.abs(shown[COUNT + 5].astype(int) - shown[5]).mean() < 12

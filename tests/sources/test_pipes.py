"""What cannot be rewound: the standard input, named pipes, and a server that falls silent."""

from __future__ import annotations

import io
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tttstream.cli.main import main
from tttstream.errors import SourceError
from tttstream.sources import open_source
from tttstream.sources.video import Video

MakeVideo = Callable[..., Path]
TIMES = range(0, 1000, 40)


def sums(path: Path) -> list[int]:
    """A checksum of each frame of a file."""
    with open_source(path) as source:
        return [int(frame.image.sum()) for frame in source]


@contextmanager
def fifo(path: Path, content: bytes) -> Iterator[str]:
    """A named pipe into which somebody writes."""
    os.mkfifo(path)

    def write() -> None:
        try:
            with open(path, "wb") as file:
                file.write(content)
        except BrokenPipeError:
            pass

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    yield str(path)
    writer.join(30)
    assert not writer.is_alive()


def test_the_standard_input(make_video: MakeVideo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_video("x.ts", TIMES)
    assert len(sums(path)) == 25
    with open(path) as file, fifo(tmp_path / "pipe", path.read_bytes()) as pipe, open(pipe) as piped:
        for stdin in (file, piped):  # a file that the shell opened, and the output of another program
            monkeypatch.setattr(sys, "stdin", stdin)
            with open_source("-") as source:
                assert source.name == "standard input"
                assert [int(frame.image.sum()) for frame in source] == sums(path)


def test_without_a_pipe(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    assert main(["watch", "-", "--out", str(tmp_path / "out")]) == 2
    assert "nothing is piped into it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["x.ts", "x.mkv"])
def test_a_named_pipe(make_video: MakeVideo, tmp_path: Path, name: str) -> None:
    path = make_video(name, TIMES)
    with fifo(tmp_path / "pipe", path.read_bytes()) as pipe, open_source(pipe) as source:
        assert [int(frame.image.sum()) for frame in source] == sums(path)
        assert not source.truncated


def test_mp4_with_its_index_last_is_named(make_video: MakeVideo, tmp_path: Path) -> None:
    noise = b"\0" * 2_000_000  # more than FFmpeg keeps to go back
    data = make_video("x.mp4", TIMES).read_bytes()
    place = data.index(b"mdat") - 4
    size = int.from_bytes(data[place : place + 4], "big")
    grown = (size + len(noise)).to_bytes(4, "big") + data[place + 4 : place + size] + noise
    data = data[:place] + grown + data[place + size :]
    said = r"index at the end.*faststart.*MPEG-TS"
    with fifo(tmp_path / "pipe", data) as pipe, pytest.raises(SourceError, match=said) as caught:
        list(open_source(pipe))
    assert "\n" not in str(caught.value)
    with fifo(tmp_path / "empty", b"") as pipe, pytest.raises(SourceError, match="it sent no data"):
        list(open_source(pipe))
    with fifo(tmp_path / "text", b"no video at all" * 99) as pipe, pytest.raises(SourceError) as caught:
        list(open_source(pipe))
    assert "faststart" not in str(caught.value)


def test_frames_are_handed_on_while_the_rest_is_on_its_way(make_video: MakeVideo, tmp_path: Path) -> None:
    data = make_video("x.ts", range(0, 8000, 40), side=320).read_bytes()
    os.mkfifo(tmp_path / "pipe")
    go_on = threading.Event()

    def write() -> None:
        with open(tmp_path / "pipe", "wb") as file:
            file.write(data[: len(data) * 3 // 4])
            file.flush()
            go_on.wait(60)
            file.write(data[len(data) * 3 // 4 :])

    threading.Thread(target=write, daemon=True).start()
    with open_source(tmp_path / "pipe") as source:
        frames = iter(source)
        for _ in range(20):
            next(frames)
        assert not go_on.is_set()
        go_on.set()
        assert sum(1 for _ in frames) == 180


class Stalling:
    """An HTTP server that announces a whole file, sends the beginning of it, and then nothing more."""

    def __init__(self, content: bytes, promised: int) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._content, self._promised, self._held = content, promised, list[socket.socket]()
        self.address = f"http://127.0.0.1:{self._socket.getsockname()[1]}/x.ts"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self._held.append(connection)
            connection.recv(4096)
            head = f"HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\nContent-Length: {self._promised}\r\n\r\n"
            connection.sendall(head.encode() + self._content)

    def __enter__(self) -> str:
        return self.address

    def __exit__(self, *_: object) -> None:
        for held in (self._socket, *self._held):
            held.close()


def test_a_stall_of_the_network_is_named(make_video: MakeVideo) -> None:
    data = make_video("x.ts", range(0, 8000, 40), side=320).read_bytes()
    with Stalling(data[:0], len(data)) as address:
        with pytest.raises(SourceError, match=r"no data for 0.5 s; see whether it sends") as caught:
            Video(address, timeout_s=0.5)
        assert "exit" not in str(caught.value).lower()
    with Stalling(data[: len(data) * 3 // 4], len(data)) as address:
        source = Video(address, timeout_s=0.5, on_error="raise")
        frames = iter(source)
        first = next(frames)
        with pytest.raises(SourceError, match=r"reading failed \(no data for 0.5 s\)"):
            list(frames)
        source.close()
        with Video(address, timeout_s=0.5) as source:
            frames_left = list(source)
            assert source.truncated
        np.testing.assert_array_equal(frames_left[0].image, first.image)
        assert len(frames_left) > 50


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://localhost:1/x.mp4", "refused"),
        ("nosuch://b/x.mp4", "Protocol not found"),
        ("http://[::1/x", "no address"),
    ],
)
def test_an_address_that_leads_nowhere(address: str, said: str) -> None:
    """The reason is named, without a guess about a file that was not read."""
    with pytest.raises(SourceError, match=said) as caught:
        open_source(address)
    assert "faststart" not in str(caught.value)

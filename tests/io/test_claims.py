"""One run at a time: a folder or file belongs to one process, until it ends."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tttstream.errors import OutputError
from tttstream.io import claims
from tttstream.io.claims import FOLDER_LOCK, Claim, beside
from tttstream.io.outputs import OutputFolder, TextFile

HOLDER = """
import os, sys, time
from tttstream.io.claims import Claim
claim = Claim.on_folder(sys.argv[1])
if hasattr(os, "fork") and os.fork() == 0:
    time.sleep(20)  # a worker that outlives its parent
    os._exit(0)
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def holder(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has claimed a folder."""
    words = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_another_process_is_named_and_a_dead_one_is_no_hindrance(tmp_path: Path) -> None:
    link = tmp_path / "link"
    (tmp_path / "out").mkdir()
    link.symlink_to("out")
    with holder(tmp_path / "out") as process:
        for way in (tmp_path / "out", link, tmp_path / "out" / ".." / "out"):
            with pytest.raises(
                OutputError, match=rf"in use by another run \(process {process.pid}, since 20"
            ) as caught:
                OutputFolder(way)
            assert "\n" not in str(caught.value)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / "out" / FOLDER_LOCK).exists()
        OutputFolder(link).release()  # though a worker of it still runs
    assert os.listdir(tmp_path / "out") == []


def test_a_lock_holds_within_one_process_until_its_release(tmp_path: Path) -> None:
    with Claim.on_file(tmp_path / "a") as claim:
        assert claim.held
        with pytest.raises(OutputError, match=f"the file {tmp_path / 'a'} is in use.*process {os.getpid()}"):
            Claim.on_file(tmp_path / "a")
        Claim.on_file(tmp_path / "b").release()
    claim.release()
    assert not claim.held
    Claim.on_file(tmp_path / "a").release()
    assert os.listdir(tmp_path) == []


def test_a_file_is_written_by_one_and_stays_whole(tmp_path: Path) -> None:
    first = TextFile(tmp_path / "a.txt")
    first.write("first")
    with pytest.raises(OutputError, match="in use"):
        TextFile(tmp_path / "a.txt")
    first.close()
    with TextFile(tmp_path / "a.txt") as second:
        first.discard()  # of a file that was published: another's is not touched
        second.write("second")
    assert (tmp_path / "a.txt").read_text() == "second"
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_file_system_without_locks_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.warns(UserWarning, match="without locks"), Claim.on_folder(tmp_path):
        pass
    assert os.listdir(tmp_path) == []


def test_long_names(tmp_path: Path) -> None:
    for name in ("x" * 255, "日" * 85):
        assert len(os.fsencode(beside(tmp_path / name, ".part").name)) <= 255
        with TextFile(tmp_path / name) as file:
            file.write("whole")
        assert os.listdir(tmp_path) == [name]
        (tmp_path / name).unlink()
    for make in (TextFile, OutputFolder):
        with pytest.raises(OutputError, match="too long"):
            make(tmp_path / ("x" * 300))
    assert os.listdir(tmp_path) == []


def test_the_holder_is_named_even_if_it_is_written_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "PATIENCE_S", 0.05)
    with Claim.on_folder(tmp_path):
        (tmp_path / FOLDER_LOCK).write_text("")
        with pytest.raises(OutputError, match="in use by another run: wait"):
            Claim.on_folder(tmp_path)

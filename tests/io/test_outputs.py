"""Output files: complete or absent, and errors of the system in one line."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tttstream.errors import OutputError
from tttstream.io.outputs import ArrayFile, OutputFile, OutputFolder, TextFile, saving


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_an_array_grows_row_by_row(tmp_path: Path, count: int) -> None:
    rows = np.random.default_rng(0).normal(size=(count, 5)).astype(np.float32)
    with ArrayFile(tmp_path / "a.npy", 5) as file:
        for row in rows:
            file.write(row)
    loaded = np.load(tmp_path / "a.npy")
    assert loaded.dtype == np.float32
    np.testing.assert_array_equal(loaded, rows)
    assert np.load(tmp_path / "a.npy", mmap_mode="r").shape == (count, 5)


def test_lines_of_json(tmp_path: Path) -> None:
    with TextFile(tmp_path / "a.jsonl") as file:
        file.write_json({"a": 1.5})
        file.write_json({"a": 2})
        assert not (tmp_path / "a.jsonl").exists()
    assert (tmp_path / "a.jsonl").read_text() == '{"a": 1.5}\n{"a": 2}\n'


@pytest.mark.parametrize("make", [lambda path: TextFile(path), lambda path: ArrayFile(path, 3)])
def test_discard_leaves_the_earlier_file_and_no_other(tmp_path: Path, make: Callable[[Path], OutputFile]) -> None:
    (tmp_path / "a").write_text("earlier")
    file = make(tmp_path / "a")
    file.discard()
    file.discard()
    assert os.listdir(tmp_path) == ["a"]
    assert (tmp_path / "a").read_text() == "earlier"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EACCES, "no permission"),
        (errno.EROFS, "read-only"),
        (errno.ENOENT, "cannot be made"),
        (errno.EIO, "Input/output error"),
    ],
)
def test_reasons_in_words(number: int, words: str) -> None:
    with pytest.raises(OutputError, match=f"cannot write somewhere: .*{words}"), saving("somewhere"):
        raise OSError(number, os.strerror(number))


def test_a_folder_is_made_and_unmade(tmp_path: Path) -> None:
    folder = OutputFolder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()
    folder.discard()
    assert os.listdir(tmp_path) == []


def test_a_folder_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    OutputFolder(tmp_path).discard()
    assert os.listdir(tmp_path) == ["mine"]


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    with pytest.raises(OutputError, match="not a folder"):
        OutputFolder(tmp_path / "a")
    with pytest.raises(OutputError, match="not a folder"):
        OutputFolder(tmp_path / "a" / "b")
    assert (tmp_path / "a").read_text() == "x"

"""WebDataset shards: samples in tar files, with their labels, shuffled and resumed like any other video."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tttstream.errors import DataError
from tttstream.train.data import Decord, PyAV, Shards, VideoData, Window

Make = Callable[..., Path]


def pack(path: Path, files: dict[str, bytes | str], mode: Any = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            item = tarfile.TarInfo(name)
            item.size = len(data)
            tar.addfile(item, io.BytesIO(data))
    return path


@pytest.fixture
def shards(movie: Make, tmp_path: Path) -> str:
    """Two shards with three videos of 8, 10 and 12 frames."""
    videos = [movie(f"{number}.mp4", 8 + 2 * number).read_bytes() for number in range(3)]
    pack(tmp_path / "data-000.tar", {"a/x.mp4": videos[0], "a/x.cls": "2\n", "a/y.mp4": videos[1], "a/y.json": "{}"})
    pack(tmp_path / "data-001.tar", {"z.left.mp4": videos[2], "z.json": json.dumps({"label": 1, "from": "here"})})
    return str(tmp_path / "data-{000..001}.tar")


def test_samples_and_labels(shards: str) -> None:
    clips = Shards(shards).clips()
    assert [clip.name.rpartition("::")[2] for clip in clips] == ["a/x.mp4", "a/y.mp4", "z.left.mp4"]
    assert [clip.label for clip in clips] == [2, -1, 1]
    assert [clip.count(PyAV()) for clip in clips] == [8, 10, 12]
    by_star = Shards([shards.replace("{000..001}", "*")]).clips()
    assert by_star == clips


@pytest.mark.parametrize("decoder", [PyAV(), Decord()], ids=["pyav", "decord"])
def test_frames(shards: str, numbers: Callable[..., list[int]], decoder: Any) -> None:
    options: dict[str, Any] = {"size": 32, "length": 6, "batch_size": 3, "window": Window(6), "decoder": decoder}
    batches = [
        next(iter(VideoData(Shards(shards), **options, workers=workers).train_dataloader())) for workers in (0, 2)
    ]
    assert numbers(batches[0].frames) == batches[0].frame.flatten().tolist()
    assert torch.equal(batches[0].frames, batches[1].frames)
    assert sorted(batches[0].label[:, 0].tolist()) == [-1, 1, 2]


def test_names_of_classes(tmp_path: Path) -> None:
    path = str(pack(tmp_path / "a.tar", {"1.avi": b"-", "1.cls": "sit", "2.avi": b"-", "2.json": '{"cls": "run"}'}))
    assert [clip.label for clip in Shards(path, ["run", "sit"]).clips()] == [1, 0]


def test_mistakes(tmp_path: Path) -> None:
    pack(tmp_path / "texts.tar", {"1.txt": "no video"})
    pack(tmp_path / "empty.tar", {})
    pack(tmp_path / "packed.tar", {"1.mp4": b"-"}, "w:gz")
    pack(tmp_path / "unknown.tar", {"1.mp4": b"-", "1.cls": "stand"})
    pack(tmp_path / "beyond.tar", {"1.mp4": b"-", "1.cls": "9"})
    pack(tmp_path / "broken.tar", {"1.mp4": b"-", "1.json": "{"})
    (tmp_path / "text.tar").write_text("no tar " * 200)
    expected = {
        "texts": "holds no videos; expected members such as",
        "empty": "holds no videos",
        "packed": "cannot be read as an uncompressed tar",
        "text": "cannot be read as an uncompressed tar",
        "unknown": "1.cls: unknown class 'stand'; expected one of 2",
        "beyond": "1.cls: unknown class '9'",
        "broken": "1.json cannot be read as json",
        "absent": "no shard .*absent.tar",
        "texts{0..2}": "no shard .*texts0.tar",
    }
    for name, message in expected.items():
        with pytest.raises(DataError, match=message) as caught:
            Shards(str(tmp_path / f"{name}.tar"), ["run", "sit"]).clips()
        assert "\n" not in str(caught.value)

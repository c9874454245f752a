"""A stream of the model `features`: surprise, saved files, and options that it refuses."""

from pathlib import Path

import numpy as np
import pytest

from tttstream import models
from tttstream.cli.main import main
from tttstream.errors import CheckpointError, ConfigError
from tttstream.streams import Stream


def picture(seed: int) -> np.ndarray:
    low = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return low.repeat(12, 0).repeat(12, 1)


def made(embed: bool = True) -> Stream:
    return Stream(models.load("features", size=64), device="cpu", embed=embed)


def test_it_grows_used_to_what_it_sees_and_notices_the_new() -> None:
    stream = made()
    usual = [stream.push(picture(0)) for _ in range(60)]
    new = stream.push(picture(1))
    assert usual[-1].loss < usual[0].loss
    assert usual[-1].loss < 0.5 * new.loss
    assert new.surprise > 3 > usual[-1].surprise
    assert new.surprise_map.shape == (4, 4)
    assert np.linalg.norm(new.embedding) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("embed", [True, False])
def test_a_saved_stream_continues_bit_for_bit(tmp_path: Path, embed: bool) -> None:
    stream, other = made(), made(embed)
    for seed in range(4):
        stream.push(picture(seed))
    stream.save(tmp_path / "state.safetensors")
    other.load(tmp_path / "state.safetensors")
    for seed in (1, 7, 2):
        assert stream.push(picture(seed)).loss == other.push(picture(seed)).loss
    assert other.frames == 7


def test_embeddings_may_begin_after_a_restart(tmp_path: Path) -> None:
    stream = made(embed=False)
    stream.push(picture(0))
    stream.save(tmp_path / "state.safetensors")
    later = made()
    later.load(tmp_path / "state.safetensors")
    assert later.push(picture(1)).embedding.size == 112


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FeatureModel predicts no pictures"):
        Stream(models.load("features"), predict=True)
    Stream(models.load("base", size=64)).save(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="another model"):
        made().load(tmp_path / "other.safetensors")


def test_on_the_command_line(tmp_path: Path) -> None:
    options = ["--model", "features", "--size", "64", "--max-frames", "6", "--embeddings", "--out", str(tmp_path)]
    assert main(["watch", "walk", *options, "--save-state", str(tmp_path / "state.safetensors")]) == 0
    assert np.load(tmp_path / "embeddings.npy").shape == (6, 112)
    assert (tmp_path / "frames.jsonl").read_text().count("\n") == 6
    assert (tmp_path / "state.safetensors").is_file()

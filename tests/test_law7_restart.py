"""Law 7: a stream that is saved, killed and restored continues bit for bit, and another model's state is refused."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tttstream
from tttstream import models, state
from tttstream.errors import CheckpointError, StateError
from tttstream.state import pack
from tttstream.streams import Stream

MEMORIES = ["ttt_linear", "ttt_mlp", "ttt_conv", "ttt_swiglu"]

PROGRAM = """
import sys
import torch
import tttstream
from tttstream import models
torch.set_num_threads(1)
for memory in sys.argv[2:]:
    stream = tttstream.Stream(models.build("small", size=32, memory=memory))
    source = tttstream.open_source("walk", size=64, seed=3)
    stream.load(f"{sys.argv[1]}/{memory}.safetensors", source)
    for _, frame in zip(range(6), source):
        result = stream.push(frame)
        print(memory, result.index, result.loss.hex(), result.surprise.hex(), float(frame.image.sum()).hex())
"""


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    """What streams of all memories say here, and in another process that continues the saved ones."""
    folder, expected = tmp_path_factory.mktemp("streams"), []
    for memory in MEMORIES:
        stream = Stream(models.build("small", size=32, memory=memory))
        source = tttstream.open_source("walk", size=64, seed=3)
        frames = iter(source)
        for _ in range(12):
            stream.push(next(frames))
        stream.save(folder / f"{memory}.safetensors", source)
        for _ in range(6):
            frame = next(frames)
            result = stream.push(frame)
            said = (result.index, result.loss.hex(), result.surprise.hex(), float(frame.image.sum()).hex())
            expected.append(" ".join(map(str, (memory, *said))))
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), *MEMORIES], capture_output=True, text=True, check=True
    )
    return expected, run.stdout.splitlines()


@pytest.mark.parametrize("memory", MEMORIES)
def test_another_process_continues_bit_for_bit(continued: tuple[list[str], list[str]], memory: str) -> None:
    expected, found = ([line for line in lines if line.startswith(f"{memory} ")] for lines in continued)
    assert len(expected) == 6
    assert found == expected


@pytest.mark.parametrize("tokens", [1, 7, 16, 21])
@pytest.mark.parametrize("inner", ["linear", "mlp"])
def test_a_layer_continues_inside_a_mini_batch(inner: str, tokens: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = tttstream.TTTLayer(32, 2, inner)
    x = torch.randn(2, 40, 32)
    with torch.no_grad():
        _, now = layer(x[:, :tokens])
        state.save(now, tmp_path / "state.safetensors")
        again = state.load(tmp_path / "state.safetensors", layer)
        for t in range(tokens, 40):
            y, now = layer(x[:, t : t + 1], now)
            z, again = layer(x[:, t : t + 1], again)
            assert torch.equal(y, z)
    assert torch.equal(pack(now), pack(again))


def test_another_models_state_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    stream = Stream(models.build("small", size=32))
    stream.push(np.zeros((32, 32, 3), dtype=np.uint8))
    stream.save(path)
    for other in (
        models.build("small", size=32, seed=1),
        models.build("small", size=64),
        models.build("small", size=32, memory="ttt_mlp"),
    ):
        receiver = Stream(other)
        before = receiver.state
        with pytest.raises(CheckpointError, match="another model"):
            receiver.load(path)
        assert receiver.state is before
    with pytest.raises(StateError, match="another memory"):
        state.load(path, tttstream.TTTLayer(32, 2))


def test_files_that_are_no_saved_stream(tmp_path: Path) -> None:
    stream = Stream(models.build("small", size=32))
    with pytest.raises(CheckpointError, match="no saved state"):
        stream.load(tmp_path / "absent")
    (tmp_path / "text").write_text("hello, this is no state at all")
    with pytest.raises(CheckpointError, match="cannot be read"):
        stream.load(tmp_path / "text")
    state.save(tttstream.TTTLayer(8, 2).init_state(1), tmp_path / "memory")
    with pytest.raises(CheckpointError, match="not a saved stream"):
        stream.load(tmp_path / "memory")
    stream.save(tmp_path / "whole")
    whole = (tmp_path / "whole").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="cannot be read"):
        stream.load(tmp_path / "cut")
    (tmp_path / "old").write_bytes(whole.replace(b"tttstream.state/1", b"tttstream.state/0"))
    with pytest.raises(CheckpointError, match="format"):
        stream.load(tmp_path / "old")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cut", "memory", "old", "text", "whole"]

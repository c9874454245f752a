"""The frame model: the memory's contract one level up, folders of weights, export, and its options."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tttstream import models
from tttstream.errors import CheckpointError, ShapeError, StateError, TTTStreamError
from tttstream.models import FrameModel, ModelConfig
from tttstream.state import pack, unpack

MEMORIES = ["ttt_linear", "ttt_mlp", "ttt_conv", "ttt_swiglu", "window", "gru", "lstm"]


def tiny(memory: str = "ttt_linear", **changes: object) -> FrameModel:
    config = {"size": 16, "patch": 4, "dim": 24, "depth": 2, "heads": 2, "memory": memory, **changes}
    torch.manual_seed(0)
    model = FrameModel(ModelConfig(**config))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double().eval()


def frames(rows: int, count: int, seed: int = 1) -> Tensor:
    return torch.rand(rows, count, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("registers", [0, 3])
def test_any_partition_equals_one_call(memory: str, registers: int) -> None:
    model, x = tiny(memory, registers=registers), frames(2, 7)
    reset = torch.zeros(2, 7, dtype=torch.bool)
    reset[0, 2] = reset[1, 5] = True
    whole, state = model(x, None, reset)
    pieces, end, first = [], None, 0
    for size in (1, 3, 1, 2):
        output, end = model(x[:, first : first + size], end, reset[:, first : first + size])
        pieces.append(output)
        first += size
    assert end is not None
    for name in ("prediction", "embedding"):
        joined = torch.cat([getattr(piece, name) for piece in pieces], 1)
        torch.testing.assert_close(joined, getattr(whole, name), rtol=0, atol=1e-10)
    torch.testing.assert_close(pack(end), pack(state), rtol=0, atol=1e-10)


@pytest.mark.parametrize("memory", ["ttt_linear", "ttt_conv"])
def test_a_reset_starts_afresh(memory: str) -> None:
    model, x = tiny(memory), frames(1, 6)
    reset = torch.zeros(1, 6, dtype=torch.bool)
    reset[0, 4] = True
    whole, state = model(x, None, reset)
    alone, end = model(x[:, 4:])
    torch.testing.assert_close(whole.embedding[:, 4:], alone.embedding, rtol=0, atol=1e-12)
    torch.testing.assert_close(pack(state), pack(end), rtol=0, atol=1e-12)


def test_rows_do_not_meet() -> None:
    model, x = tiny(), frames(2, 3)
    x[1, 1, 0, 3, 3] = float("nan")
    output, state = model(x)
    alone, end = model(x[:1])
    torch.testing.assert_close(output.prediction[:1], alone.prediction, rtol=0, atol=1e-12)
    torch.testing.assert_close(pack(state[0]), pack(end), rtol=0, atol=1e-12)


def test_learning_lowers_the_loss_of_earlier_frames() -> None:
    model, x = tiny(), frames(1, 1).expand(1, 40, -1, -1, -1)
    output, _ = model(x)
    assert output.losses is not None
    losses = output.losses.before[0].mean(-1)
    assert (output.losses.after.mean() < output.losses.before.mean()).item()
    assert losses[-1] < 0.9 * losses[0]


def test_without_learning_the_state_stays() -> None:
    model, x = tiny(), frames(1, 4)
    _, state = model(x)
    output, end = model(x, state, learn=False)
    assert torch.equal(pack(end), pack(state))
    assert output.losses is not None
    assert torch.equal(output.losses.before, output.losses.after)


def test_before_training_the_next_frame_is_this_frame() -> None:
    model = models.build("small", size=16)
    x = torch.rand(1, 2, 3, 16, 16)
    torch.testing.assert_close(model(x)[0].prediction, x)


def test_bytes_and_floats_are_the_same_picture() -> None:
    model = models.build("small", size=16)
    x = torch.randint(0, 256, (1, 2, 3, 16, 16), dtype=torch.uint8)
    torch.testing.assert_close(model(x)[0].embedding, model(x.float() / 255)[0].embedding)


@pytest.mark.parametrize(("name", "millions"), [("small", 1), ("medium", 5)])
def test_sizes(name: str, millions: int) -> None:
    count = sum(parameter.numel() for parameter in models.build(name).parameters())
    assert 0.8 * millions < count / 1e6 < 1.25 * millions


def test_the_same_seed_gives_the_same_weights_and_does_not_change_the_generator() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = models.build("small"), models.build("small"), models.build("small", seed=1)
    assert torch.equal(torch.rand(3), expected)
    assert first.fingerprint() == second.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("memory", ["ttt_linear", "ttt_mlp", "ttt_conv"])
def test_a_folder_holds_the_model(memory: str, tmp_path: Path) -> None:
    model = tiny(memory).float()
    model.save(tmp_path / "model")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == ["config.json", "model.safetensors"]
    again = models.load(str(tmp_path / "model"))
    assert again.fingerprint() == model.fingerprint()
    x = frames(1, 2).float()
    assert torch.equal(again(x)[0].prediction, model(x)[0].prediction)
    assert models.load(str(tmp_path / "model"), size=32).config.size == 32
    model.save(tmp_path / "half", torch.float16)
    half, whole = (tmp_path / name / "model.safetensors" for name in ("half", "model"))
    assert half.stat().st_size < 0.6 * whole.stat().st_size
    torch.testing.assert_close(
        models.load(str(half.parent))(x)[0].prediction, model(x)[0].prediction, atol=1e-2, rtol=0
    )


def test_folders_that_are_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no model 'nothing'.*small"):
        models.load("nothing")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        models.load(str(tmp_path))
    tiny().float().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in [({"format": "x"}, "format"), ({"widht": 3}, "widht"), ({"dim": 48}, "does not fit")]:
        (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=message):
            models.load(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        models.load(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(CheckpointError, match="cannot be read"):
        models.load(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        models.load(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": 130}, "multiple of the patch"),
        ({"size": 0}, "size must be"),
        ({"dim": 30, "heads": 4}, "multiple of heads"),
        ({"memory": "ttt_cubic"}, "ttt_cubic"),
        ({"options": {"speed": 3}}, "speed"),
        ({"colour": 3}, "unknown model option"),
    ],
    ids=lambda value: str(value),
)
def test_options_that_do_not_fit(changes: dict[str, object], message: str) -> None:
    with pytest.raises(TTTStreamError, match=message):
        models.build("small", **changes)


def test_calls_that_do_not_fit() -> None:
    model = tiny()
    with pytest.raises(ShapeError, match="expected frames"):
        model(torch.rand(1, 2, 3, 8, 8))
    with pytest.raises(ShapeError, match="expected reset"):
        model(frames(1, 2), None, torch.zeros(1, 3, dtype=torch.bool))
    with pytest.raises(StateError, match="ModelState"):
        model(frames(1, 2), torch.zeros(3))
    with pytest.raises(StateError, match="rows"):
        model(frames(2, 2), model.init_state(1))


@pytest.mark.parametrize("memory", ["ttt_linear", "ttt_mlp", "ttt_conv", "ttt_swiglu"])
def test_the_one_frame_step_exports(memory: str) -> None:
    model = tiny(memory)

    class Step(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, frame: Tensor, flat: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            output, state = self.model(frame, unpack(flat, template))
            return output.prediction, output.embedding, pack(state)

    template = model.init_state(1)
    x = frames(1, 4)
    exported = torch.export.export(Step(), (x[:, :1], pack(template))).module()
    flat, state = pack(template), template
    for t in range(4):
        prediction, embedding, flat = exported(x[:, t : t + 1], flat)
        output, state = model(x[:, t : t + 1], state)
        torch.testing.assert_close(prediction, output.prediction, rtol=0, atol=1e-12)
        torch.testing.assert_close(embedding, output.embedding, rtol=0, atol=1e-12)
        torch.testing.assert_close(flat, pack(state), rtol=0, atol=1e-12)


def test_the_state_itself_exports(tmp_path: Path) -> None:
    model = tiny()
    x, state = frames(1, 1), model.init_state(1)
    torch.export.save(torch.export.export(model, (x, state)), tmp_path / "model.pt2")
    exported = torch.export.load(tmp_path / "model.pt2").module()
    output, end = exported(x, state)
    expected, expected_end = model(x, state)
    torch.testing.assert_close(output.prediction, expected.prediction, rtol=0, atol=1e-12)
    torch.testing.assert_close(end.blocks[1].delta, expected_end.blocks[1].delta, rtol=0, atol=1e-12)

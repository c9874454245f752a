"""Motion: shifts are found, the picture is shifted by them, and the previous frame is a state like any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream.errors import CheckpointError, ConfigError, StateError
from tttstream.models.frame import FrameModel, ModelConfig
from tttstream.models.motion import Motion
from tttstream.state import pack, unpack
from tttstream.streams import Stream

SIZE = 32


def model(**changes: object) -> FrameModel:
    """Small, untrained."""
    config = {"size": SIZE, "patch": 8, "dim": 24, "depth": 3, "heads": 2, "motion": 3, "surprise": 1, **changes}
    torch.manual_seed(0)
    return FrameModel(ModelConfig(**config)).eval()  # type: ignore[arg-type]


def disturbed(**changes: object) -> FrameModel:
    """The same in float64, with weights that all matter."""
    made = model(**changes).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def panned(count: int, down: int, right: int) -> Tensor:
    """A window that moves over noise, so that its content moves by these pixels a frame: [1, T, 3, SIZE, SIZE]."""
    noise = torch.rand(3, 4 * SIZE, 4 * SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wide = torch.nn.functional.avg_pool2d(noise, 3, 1, 1)
    top, left = 2 * SIZE, 2 * SIZE
    frames = [wide[:, top - down * t :, left - right * t :][:, :SIZE, :SIZE] for t in range(count)]
    return torch.stack(frames)[None]


def frames(rows: int, count: int) -> Tensor:
    return torch.rand(rows, count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


@pytest.mark.parametrize(("down", "right"), [(0, 0), (0, 1), (3, -2), (-1, 3)])
def test_the_least_cost_is_that_of_the_shift(down: int, right: int) -> None:
    motion = Motion(16, 8, 3).double()
    costs, _ = motion.costs(panned(3, down, right), motion.init_past(1, SIZE), None)
    inner = costs.patches.view(1, 3, 4, 4, -1)[0, 1:, 1:-1, 1:-1].argmin(-1)
    assert (inner == 7 * (3 - down) + 3 - right).all()
    around = F.avg_pool2d(costs.cells[0], 3, 1, 1, count_include_pad=False)
    assert (around[1:, :, 2:-2, 2:-2].argmin(1) == 7 * (3 - down) + 3 - right).all()
    assert (costs.patches[0, 0].argmin(-1) == 24).all()  # no previous frame: no motion


def test_before_training_the_motion_continues() -> None:
    x = panned(4, 2, -1)
    prediction = model().double()(x)[0].prediction
    middle = (slice(0, 1), slice(1, 3), slice(None), slice(8, -8), slice(8, -8))
    error = (prediction[middle] - x[:, 1:][:, 1:3][middle[0], :, :, 8:-8, 8:-8]).square().mean()
    repeated = (x[middle] - x[:, 1:][:, 1:3][middle[0], :, :, 8:-8, 8:-8]).square().mean()
    assert error < 0.01 * repeated


def test_a_still_picture_is_repeated() -> None:
    x = panned(1, 0, 0).expand(-1, 3, -1, -1, -1)
    assert (model().double()(x)[0].prediction - x).abs().max() < 0.02


def test_in_half_precision_the_same_motion_is_found() -> None:
    x, made = panned(4, 2, -1).float(), model()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = made(x)[0].prediction
    torch.testing.assert_close(mixed, made(x)[0].prediction, rtol=0, atol=1e-2)


def test_any_partition_equals_one_call() -> None:
    made, x = disturbed(), frames(2, 7)
    reset = torch.zeros(2, 7, dtype=torch.bool)
    reset[0, 2] = reset[1, 5] = True
    whole, state = made(x, None, reset)
    pieces, end, first = [], None, 0
    for size in (1, 3, 1, 2):
        output, end = made(x[:, first : first + size], end, reset[:, first : first + size])
        pieces.append(output.prediction)
        first += size
    assert end is not None
    torch.testing.assert_close(torch.cat(pieces, 1), whole.prediction, rtol=0, atol=1e-10)
    torch.testing.assert_close(pack(end), pack(state), rtol=0, atol=1e-10)
    assert state.nbytes == made.init_state(2).nbytes
    torch.testing.assert_close(pack(unpack(pack(state), state)), pack(state), rtol=0, atol=0)


def test_a_reset_removes_the_previous_frame() -> None:
    made, x = disturbed(), frames(2, 6)
    x[0, 3, 0, 5, 5] = float("nan")
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[:, 4] = True
    whole, state = made(x, None, reset)
    alone, end = made(x[:, 4:])
    torch.testing.assert_close(whole.prediction[:, 4:], alone.prediction, rtol=0, atol=1e-12)
    torch.testing.assert_close(pack(state), pack(end), rtol=0, atol=1e-12)
    assert whole.prediction[1].isfinite().all()
    assert whole.prediction[0, :3].isfinite().all()


def test_a_fresh_state_of_zeros_is_no_state() -> None:
    made, x = disturbed(), frames(2, 3)
    assert not pack(made.init_state(2)).any()
    torch.testing.assert_close(made(x, made.init_state(2))[0].prediction, made(x)[0].prediction, rtol=0, atol=0)


def test_the_surprise_does_not_depend_on_later_blocks() -> None:
    made, x = disturbed(), frames(1, 4)
    before = made(x)[0].losses
    with torch.no_grad():
        for part in (made.motion, *made.backbone.blocks[1:]):
            assert part is not None
            for parameter in part.parameters():
                parameter.mul_(1.5)
    after = made(x)[0].losses
    assert before is not None
    assert after is not None
    assert torch.equal(before.before, after.before)
    assert torch.equal(before.after, after.after)


def test_without_learning_only_the_previous_frame_is_updated() -> None:
    made, x = disturbed(), frames(1, 4)
    _, state = made(x[:, :2])
    _, end = made(x[:, 2:], state, learn=False)
    assert torch.equal(pack(end.blocks[1]), pack(state.blocks[1]))
    assert not torch.equal(end.past.light, state.past.light)


def test_the_one_frame_step_exports() -> None:
    made, x = disturbed(), frames(1, 3)
    state = made.init_state(1)
    exported = torch.export.export(made, (x[:, :1], state)).module()
    for t in range(3):
        expected, after = made(x[:, t : t + 1], state)
        output, state = exported(x[:, t : t + 1], state)
        torch.testing.assert_close(output.prediction, expected.prediction, rtol=0, atol=1e-12)
        torch.testing.assert_close(pack(after), pack(state))


def test_a_stream_equals_the_model() -> None:
    made, x = model(), panned(5, 1, 1).float()
    stream = Stream(made, device="cpu")
    results = [stream.push(frame.permute(1, 2, 0).numpy()) for frame in x[0]]
    output, _ = made(x)
    assert output.losses is not None
    torch.testing.assert_close(
        torch.tensor([result.loss for result in results]), output.losses.before[0].mean(-1).double().float(), rtol=1e-4,
        atol=0,
    )  # fmt: skip
    torch.testing.assert_close(torch.from_numpy(results[-1].embedding), output.embedding[0, -1], rtol=0, atol=1e-5)


def test_a_saved_stream_continues(tmp_path: Path) -> None:
    pictures = [frame.permute(1, 2, 0).float().numpy() for frame in panned(6, 1, 2)[0]]
    whole, first, second = (Stream(model(), device="cpu") for _ in range(3))
    expected = [whole.push(picture) for picture in pictures]
    for picture in pictures[:3]:
        first.push(picture)
    first.save(tmp_path / "stream")
    second.load(tmp_path / "stream")
    got = [second.push(picture) for picture in pictures[3:]]
    assert [result.loss for result in got] == [result.loss for result in expected[3:]]
    assert np.array_equal(got[-1].embedding, expected[-1].embedding)
    assert torch.equal(pack(second.state), pack(whole.state))


@pytest.mark.parametrize("changes", [{}, {"surprise": 2}, {"surprise": 0}, {"motion": 0}], ids=str)
def test_without_embeddings_the_losses_are_the_same(changes: dict[str, int]) -> None:
    made, x = disturbed(**changes), frames(2, 6)
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[0, 4] = True
    expected, state = made(x, None, reset)
    first, part = made.watch(x[:, :2], None, reset[:, :2])
    second, part = made.watch(x[:, 2:], part, reset[:, 2:])
    for got, want in zip(zip(first, second, strict=True), expected.losses, strict=True):
        torch.testing.assert_close(torch.cat(got, 1), want, rtol=0, atol=1e-12)
    torch.testing.assert_close(pack(part), pack(made.watched(state)), rtol=0, atol=1e-12)
    assert len(part.blocks) == (made.config.surprise or made.config.depth)
    assert made.watched(part) == part
    again, _ = made.watch(x, state)  # a complete state continues too
    torch.testing.assert_close(again.before, made(x, state)[0].losses.before, rtol=0, atol=1e-12)


def test_a_stream_without_embeddings_finds_the_same_bit_for_bit(tmp_path: Path) -> None:
    pictures = [frame.permute(1, 2, 0).float().numpy() for frame in panned(6, 1, 2)[0]]
    whole, part, later = (Stream(model(), device="cpu", embed=embed) for embed in (True, False, False))
    expected, got = ([stream.push(picture) for picture in pictures] for stream in (whole, part))
    for one, two in zip(expected, got, strict=True):
        assert (one.loss, one.learned, one.surprise) == (two.loss, two.learned, two.surprise)
        assert np.array_equal(one.surprise_map, two.surprise_map)
    assert got[0].embedding.shape == (0,)
    assert part.state_bytes < whole.state_bytes
    whole.save(tmp_path / "whole")
    later.load(tmp_path / "whole")
    next_one = pictures[0]
    assert later.push(next_one).loss == part.push(next_one).loss == whole.push(next_one).loss
    part.save(tmp_path / "part")
    later.load(tmp_path / "part")
    assert later.push(next_one).loss == part.push(next_one).loss
    with pytest.raises(CheckpointError, match="saved without embeddings"):
        whole.load(tmp_path / "part")
    part.reset()
    assert part.push(pictures[0]).loss == expected[0].loss


def test_embeddings_are_always_available_if_all_blocks_give_the_surprise(tmp_path: Path) -> None:
    with_, without = (Stream(model(surprise=0), device="cpu", embed=embed) for embed in (True, False))
    pictures = [frame.permute(1, 2, 0).float().numpy() for frame in panned(4, 1, 2)[0]]
    for picture in pictures[:3]:
        with_.push(picture)
        without.push(picture)
    without.save(tmp_path / "stream")
    expected = with_.push(pictures[3]).embedding
    with_.load(tmp_path / "stream")
    assert np.array_equal(with_.push(pictures[3]).embedding, expected)


def test_wrong_states_and_options() -> None:
    with pytest.raises(ConfigError, match="motion must be"):
        model(motion=-1)
    with pytest.raises(ConfigError, match="surprise must be"):
        model(surprise=3)
    with pytest.raises(ConfigError, match="registers=0"):
        model(registers=2)
    made = disturbed()
    with pytest.raises(StateError, match="a model with motion"):
        made(frames(1, 1), model(motion=0).double().init_state(1))
    with pytest.raises(StateError, match=r"expected the state of 3 blocks, got 1"):
        made(frames(1, 1), made.watch(frames(1, 1))[1])

"""Stream.push: correct results, frames of every kind, and inputs that cannot be used."""

import numpy as np
import pytest
import torch

from tttstream import models
from tttstream.errors import BackendError, ConfigError, FrameError
from tttstream.frames import Frame
from tttstream.streams import Stream


@pytest.fixture
def stream() -> Stream:
    return Stream(models.build("small", size=32))


def picture(seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_a_result(stream: Stream) -> None:
    result = stream.push(Frame(picture(), index=7, time_s=0.25))
    assert (result.index, result.time_s) == (7, 0.25)
    assert result.surprise_map.shape == (4, 4)
    assert result.surprise_map.mean() == pytest.approx(result.loss, rel=1e-5)
    assert np.linalg.norm(result.embedding) == pytest.approx(1, abs=1e-5)
    assert 0 < result.learned < 1
    assert result.latency_ms > 0


def test_the_surprise_falls_with_repetition_and_rises_for_new_frames(stream: Stream) -> None:
    usual = [stream.push(picture(0)) for _ in range(60)]
    assert usual[-1].loss < usual[0].loss
    new = stream.push(picture(1))
    assert new.surprise > 3
    assert new.loss > usual[-1].loss


def test_the_map_shows_where(stream: Stream) -> None:
    for _ in range(60):
        usual = stream.push(picture(0, 32, 32))
    changed = picture(0, 32, 32)
    changed[8:16, 16:24] = picture(1, 8, 8)
    change = stream.push(changed).surprise_map - usual.surprise_map
    assert np.unravel_index(change.argmax(), change.shape) == (1, 2)


def test_bytes_and_floats_are_the_same(stream: Stream) -> None:
    other = Stream(models.build("small", size=32))
    image = picture(0, 32, 32)
    assert stream.push(image).loss == pytest.approx(other.push(image.astype(np.float64) / 255).loss, rel=1e-5)


def test_any_array_of_pixels_is_taken_as_it_is(stream: Stream) -> None:
    image = (picture().astype(np.float32) / 255)[::-1]
    expected = stream.picture(Frame(image))
    for same in (image.astype(np.float64), image.astype(np.longdouble), image.astype(">f4")):
        same.flags.writeable = False  # like np.asarray of an image of Pillow
        assert torch.equal(stream.picture(Frame(same)), expected)
        assert torch.equal(stream.picture(Frame(same.copy())), expected)


def test_the_whole_picture_is_seen() -> None:
    stream = Stream(models.build("small", size=32))
    image = np.zeros((20, 80, 3), dtype=np.uint8)
    image[:, :8] = 255
    image[:, -8:] = 255
    seen = stream.picture(Frame(image)).mean(0)
    assert seen.shape == (32, 32)
    assert seen[:, 0].min() > 0.9
    assert seen[:, -1].min() > 0.9
    assert seen[:, 16].max() < 0.1


def test_forget(stream: Stream) -> None:
    first = stream.push(picture())
    stream.push(picture(1))
    stream.reset()
    assert stream.push(picture()).loss == first.loss


def test_learning_can_be_switched_off_and_on(stream: Stream) -> None:
    stream.push(picture())
    stream.learn = False
    off = [stream.push(picture()).loss for _ in range(3)]
    assert off[0] == off[1] == off[2]
    assert stream.push(picture()).learned == 0
    stream.learn = True
    stream.push(picture())
    assert stream.push(picture()).loss < off[0]


def test_a_frame_with_nan_is_refused_and_changes_nothing(stream: Stream) -> None:
    stream.push(picture())
    before, count = stream.state, stream.frames
    broken = picture() / 255
    for value in (np.nan, np.inf, 1e300):
        broken[3, 4, 0] = value
        with pytest.raises(FrameError, match="frame 9: it has pixels that are not finite"):
            stream.push(Frame(broken, index=9))
    assert stream.state is before
    assert stream.frames == count


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e30, 0.0), (4 / 255, -2.0)], ids=["bytes", "huge", "white"])
def test_floats_that_are_not_made_for_0_to_1_are_refused(stream: Stream, scale: float, shift: float) -> None:
    with pytest.raises(FrameError, match=r"lie in 0\.\.1, these in .* give uint8"):
        stream.push(picture() * scale + shift)
    stream.push(picture() / 255 * 1.2 - 0.1)  # as sharpened pictures are


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4)), np.zeros((4, 4, 4), dtype=np.uint8), np.zeros((4, 4, 3), dtype=np.int32)], ids=str
)
def test_what_is_no_frame_is_refused(stream: Stream, image: np.ndarray) -> None:
    with pytest.raises(FrameError, match="expected"):
        stream.push(image)


def test_a_stream_needs_a_memory_with_a_loss_and_a_backend_that_runs() -> None:
    with pytest.raises(ConfigError, match="inner loss"):
        Stream(models.build("small", size=32, memory="gru"))
    with pytest.raises(ConfigError, match="unknown device"):
        Stream(models.build("small", size=32), device="quantum")
    with pytest.raises((ConfigError, BackendError), match="backend"):
        Stream(models.build("small", size=32), backend="quick")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="no CUDA"):
            Stream(models.build("small", size=32), device="cuda")


def test_two_streams_of_one_model_are_independent() -> None:
    model = models.build("small", size=32)
    alone = Stream(models.build("small", size=32))
    expected = [alone.push(picture(seed)).loss for seed in range(4)]
    one, two = Stream(model), Stream(model)
    found = []
    for seed in range(4):
        found.append(one.push(picture(seed)).loss)
        two.push(picture(seed + 10))
    assert found == expected

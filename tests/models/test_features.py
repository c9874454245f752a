"""FeatureModel: the contract of models of surprise, on random weights of the encoder and on the shipped model."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tttstream import encoders, models
from tttstream.errors import ConfigError, ShapeError, StateError
from tttstream.models.features import FeatureConfig, FeatureModel

SIZE = 40  # no multiple of the stride


@pytest.fixture(scope="module")
def model() -> FeatureModel:
    torch.manual_seed(0)
    return FeatureModel(FeatureConfig(dim=32, heads=2, size=SIZE)).double().eval()


@pytest.fixture(scope="module")
def frames() -> torch.Tensor:
    return torch.rand(2, 6, 3, SIZE, SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_any_partition_gives_the_same(model: FeatureModel, frames: torch.Tensor) -> None:
    whole, last = model(frames)
    state, parts = None, []
    for piece in frames.split([1, 3, 2], 1):
        seen, state = model(piece, state)
        parts.append(seen)
    for name in ("before", "after"):
        joined = torch.cat([getattr(part.losses, name) for part in parts], 1)
        torch.testing.assert_close(joined, getattr(whole.losses, name), rtol=1e-10, atol=1e-12)
    assert whole.losses.before.shape == (2, 6, model.rows**2)
    assert state is not None
    for one, other in zip(state.tensors(), last.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_a_reset_is_a_fresh_start_of_its_row_alone(model: FeatureModel, frames: torch.Tensor) -> None:
    reset = torch.zeros(2, 6, dtype=torch.bool)
    reset[1, 3] = True
    seen, _ = model(frames, None, reset)
    plain, _ = model(frames)
    fresh, _ = model(frames[1:, 3:])
    torch.testing.assert_close(seen.losses.before[1, 3:], fresh.losses.before[0], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(seen.losses.before[0], plain.losses.before[0], rtol=1e-10, atol=1e-12)


def test_without_learning_the_state_stays(model: FeatureModel, frames: torch.Tensor) -> None:
    _, state = model(frames)
    _, after = model(frames, state, learn=False)
    assert all(torch.equal(one, other) for one, other in zip(state.tensors(), after.tensors(), strict=True))


def test_what_was_learned_is_less_of_a_surprise(model: FeatureModel, frames: torch.Tensor) -> None:
    same = frames[:, :1].expand(-1, 30, -1, -1, -1)
    losses, _ = model.watch(same)
    assert (losses.before[:, -1].mean(1) < 0.5 * losses.before[:, 0].mean(1)).all()


def test_embeddings_tell_pictures_apart(model: FeatureModel, frames: torch.Tensor) -> None:
    seen, _ = model(frames)
    torch.testing.assert_close(seen.embedding.norm(dim=2), torch.ones(2, 6, dtype=torch.float64))
    other, _ = model(frames * torch.tensor([1.0, 0.2, 0.2], dtype=torch.float64)[:, None, None])
    assert (seen.embedding * other.embedding).sum(2).max() < 0.999


def test_the_file_holds_no_encoder_and_gives_the_same(
    model: FeatureModel, frames: torch.Tensor, tmp_path: Path
) -> None:
    model.save(tmp_path)
    assert not any("encoder" in name for name in load_file(tmp_path / "model.safetensors"))
    again = models.load(tmp_path).double()
    assert again.fingerprint() == model.fingerprint()
    assert torch.equal(again(frames)[0].losses.before, model(frames)[0].losses.before)


def test_the_shipped_model_sees_what_the_encoder_sees() -> None:
    model = models.load("features", size=64)
    frames = torch.rand(1, 2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    (maps,) = encoders.load(strides=(16,))(frames[0])
    expected = torch.nn.functional.normalize(maps.flatten(2).mT, dim=2)
    torch.testing.assert_close(model.features(frames)[0], expected)
    assert model(frames)[0].losses.before.shape == (1, 2, 16)


def test_mistakes_are_named(model: FeatureModel, frames: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match="expected frames"):
        model(frames[0])
    with pytest.raises(ShapeError, match="reset bool"):
        model(frames, None, torch.zeros(2, 5, dtype=torch.bool))
    with pytest.raises(StateError, match="FeatureModel"):
        model(frames, models.build("small", size=32).init_state(2))
    with pytest.raises(ConfigError, match="at least 32 pixels"):
        FeatureConfig(size=16)
    with pytest.raises(ConfigError, match="multiple of heads"):
        FeatureConfig(dim=30, heads=4)

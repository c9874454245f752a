"""Calibration of maps: gain, covariance of the residuals and usual loss are those of the streams."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tttstream import models
from tttstream.models.map import MapConfig, MapModel, MapOutput
from tttstream.streams.map import LEAST
from tttstream.train import calibration
from tttstream.train.calibration import LEAST_CELLS, calibrate

CODES = 4


def small() -> MapModel:
    torch.manual_seed(0)
    return MapModel(MapConfig(size=32, patch=8, codes=CODES, marks=4, where=12, what=8, heads=2))


def frames(gain: Tensor, mixing: Tensor) -> list[tuple[Tensor, MapOutput]]:
    """Frames of ten familiar cells, with codes that are `gain` times the memory's, and residuals of a covariance."""
    draw = torch.Generator().manual_seed(1)
    found = []
    for _ in range(LEAST_CELLS // 5):
        said = torch.randn(10, CODES, generator=draw)
        residual = torch.randn(10, CODES, generator=draw) @ mixing.mT
        found.append((gain * said + residual, MapOutput(said, torch.full((10,), 0.2), torch.ones(10))))
    return found


def test_gain_covariance_and_usual_loss_are_those_of_the_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    gain = torch.tensor([1.0, 1.5, 0.5, 2.0])
    mixing = 0.2 * torch.tensor([[1.0, 0, 0, 0], [0.5, 1, 0, 0], [0, 0, 0.3, 0], [0, 0, 0.2, 2]])
    made = frames(gain, mixing)
    monkeypatch.setattr(calibration, "_quiet", lambda *args: made)
    model = small()
    calibrate(model, seeds=(0,))
    torch.testing.assert_close(model.gain, gain, rtol=0.05, atol=0.0)
    covariance = mixing @ mixing.mT
    expected = torch.linalg.inv(covariance) * covariance.diagonal().mean()
    torch.testing.assert_close(model.precision, expected, rtol=0.1, atol=0.1)
    residuals = torch.cat([codes - said.codes * model.gain for codes, said in made])
    weighed = (residuals @ model.precision * residuals).mean()
    torch.testing.assert_close(weighed, residuals.square().mean(), rtol=1e-3, atol=0.0)  # the scale stays
    scores = [model.score(codes, said).max() for codes, said in made]
    logs = (torch.stack(scores) + LEAST).log()
    assert model.config.usual == pytest.approx((float(logs.mean()), float(logs.std())), rel=1e-4)


def test_calibration_restores_the_score_of_a_map_that_recalls_at_half_the_contrast() -> None:
    """The gain doubles, and the precision stays, when the codes of the shipped map are halved in its last layer."""
    found = []
    for shrink in (1.0, 0.5):
        model = models.load_as(MapModel, "map")
        last = model.memory.answer[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight[: model.config.codes] *= shrink
            last.bias[: model.config.codes] *= shrink
        calibrate(model, seeds=(700,), frames=220)
        found.append(model)
    torch.testing.assert_close(found[1].gain, 2 * found[0].gain, rtol=0.05, atol=0.0)
    torch.testing.assert_close(found[1].precision, found[0].precision, rtol=0.1, atol=0.3)


def test_a_map_that_knows_too_little_is_left_alone() -> None:
    model = small()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    with pytest.warns(UserWarning, match=r"the map is not calibrated: it knows \d+ cells well, 1000 are needed"):
        calibrate(model, seeds=(700,), frames=12)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())

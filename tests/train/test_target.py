"""Training of target models: what is prepared, what is trained, and that `fit` writes a model that follows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tttstream import encoders, models
from tttstream.models.masks import TargetConfig, TargetModel
from tttstream.train.masks import TargetPropagation

SMALL = TargetConfig(key=8, hidden=8, channels=8, inside=8, outside=16, size=32)
CONFIG = """
model: {{size: 48}}
trainer: {{accelerator: cpu, devices: 1, max_steps: 3, limit_val_batches: 1, num_sanity_val_steps: 0,
  log_every_n_steps: 1, enable_progress_bar: false, enable_model_summary: false, default_root_dir: {out},
  logger: {{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {{save_dir: {out}, name: run}}}}}}
task:
  class_path: tttstream.train.masks.TargetPropagation
  init_args: {{network: {{key: 8, hidden: 8, channels: 8, inside: 8, outside: 16, size: 48}}}}
data:
  class_path: tttstream.train.data.VideoData
  init_args:
    train: {{class_path: tttstream.train.data.objects.MovingObjects, init_args: {{count: 50, frames: 4}}}}
    val: {{class_path: tttstream.train.data.objects.MovingObjects, init_args: {{count: 2, frames: 4, seed: 90}}}}
    window: {{frames: 4}}
    eval_window: {{frames: 4, start: first}}
    length: 2
    batch_size: 2
    steps: 3
    workers: 0
"""


def test_models_begin_with_pretrained_features_of_one_scale() -> None:
    model = TargetPropagation(SMALL).model
    frames = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(model.encoder(frames), encoders.load(strides=(4, 8, 16))(frames), strict=True):
        assert torch.equal(ours, theirs)
    frames = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    model.prepare(frames)
    maps = model.encoded(frames)
    torch.testing.assert_close(maps.eighth[:, :176].mean((0, 2, 3)), torch.zeros(176), rtol=0, atol=1e-4)
    torch.testing.assert_close(maps.eighth[:, :176].std((0, 2, 3)), torch.ones(176), rtol=0, atol=0.02)


@pytest.mark.filterwarnings("ignore:The dirpath has changed", "ignore:Found .* in eval mode")
def test_fit_trains_all_but_the_encoder(tmp_path: Path) -> None:
    from tttstream.train.cli import main

    (tmp_path / "fit.yaml").write_text(CONFIG.format(out=tmp_path))
    assert main(["fit", "--config", str(tmp_path / "fit.yaml")]) == 0
    trained = models.load(tmp_path / "run" / "version_0" / "model")
    assert isinstance(trained, TargetModel)
    before = TargetPropagation(trained.config).model.state_dict()
    moved = {name for name, value in trained.state_dict().items() if not torch.equal(value, before[name])}
    assert {
        "key.weight",
        "basis.weight",
        "warmth",
        "contour.straight.weight",
        "contour.out.2.weight",
        "contour.fit.0.weight",
    } <= moved
    assert not any(name.startswith("encoder.") or name in ("centre", "spread") for name in moved)
    assert trained.memories == ("target", "given", "last", "past")

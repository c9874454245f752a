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
from tttstream.models.masks.contours import CUES, MEMORIES
from tttstream.models.masks.kept import NOWHERE, alike, drawn, whole
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
    model, (frames, masks) = make_target_model(doubt=1e-9), mask_clip(1, 4, 1)
    config, rate = model.config, model.config.rate  # whose doubt is 0: every frame is learned
    forced = torch.ones(1, 4, dtype=torch.bool)  # true masks are learned in all frames: the sum can be written down
    _, state = model(frames, masks=masks, given=first_only(masks), forced=forced)
    w = model.target(state)[0, 0].detach().requires_grad_()
    loss = config.ridge * w.square().sum()
    for t in range(4):
        told = torch.nn.functional.avg_pool2d(masks[0, t], 8).flatten()
        target = model.encoding(torch.nn.functional.avg_pool2d(masks[:, t], 4))[0, 0].detach()
        assert_close(target[0], 2 * told - 1)
        weights = 0.5 * told / told.sum().clamp(min=1) + 0.5 * (1 - told) / (1 - told).sum().clamp(min=1)
        weights = weights if t == 0 else weights * (2 * told - 1).abs()  # how sure a found mask is
        squares = (weights[:, None] * (model.encoded(frames[:, t]).basis[0] @ w - target.mT) ** 2).sum()
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
    assert after.missed.eq(3).all()  # so that they are looked for further away
    assert_close(pack(after._replace(missed=begun.missed)), pack(begun))
    assert output.logits.isfinite().all()
    nothing = torch.zeros(1, 3, 2, 32, 48, dtype=torch.float64)
    forced = torch.ones(1, 3, dtype=torch.bool)
    none = torch.zeros(1, 3, 2, dtype=torch.bool)
    _, after = model(frames[:, 1:], begun, masks=nothing, given=none, forced=forced)
    assert after.missed.eq(3).all()  # so that they are looked for further away
    assert_close(pack(after._replace(missed=begun.missed)), pack(begun))


def test_an_object_has_no_pixels_until_it_is_given_and_then_its_given_mask(
    make_target_model: Make, mask_clip: Clip
) -> None:
    model, (frames, masks) = make_target_model(), mask_clip(1, 4)
    shown = torch.zeros(1, 4, 2, dtype=torch.bool)
    shown[0, 0, 0] = shown[0, 2, 1] = True
    output, state = model(frames, masks=masks, given=shown)
    share = output.logits.softmax(2)
    assert share[0, :2, 2].max() < 1e-3
    assert_close((share[0, 0, 1] > 0.5).double(), masks[0, 0, 0])
    assert_close((share[0, 2, 2] > 0.5).double(), masks[0, 2, 1])
    assert state.seen.tolist() == [[1.0, 1.0]]


def test_kept_keys_are_those_of_the_object_and_of_its_surroundings() -> None:
    keys = torch.arange(24.0, dtype=torch.float64)[None, :, None].expand(1, 24, 10)
    inside = torch.zeros(1, 2, 24, dtype=torch.bool)
    inside[0, 0, :5] = True
    of_it, around = drawn(keys, inside, 12), drawn(keys, ~inside, 20)
    assert of_it.shape == (1, 2, 12, 11)
    assert set(of_it[0, 0, :, 0].tolist()) == set(range(5))
    assert set(around[0, 0, :, 0].tolist()) == set(range(5, 24))
    assert not of_it[0, 1, :, -1].any()  # the second object is nowhere, so nothing is kept of it
    assert around[0, 1, :, -1].all()
    turned = [drawn(keys, ~inside, 3, torch.full((1, 2), float(turn)))[0, 0, :, 0].tolist() for turn in range(8)]
    assert len({number for some in turned for number in some}) > 10  # not the same ones in each frame
    assert turned == [
        drawn(keys, ~inside, 3, torch.full((1, 2), float(turn)))[0, 0, :, 0].tolist() for turn in range(8)
    ]


def test_the_past_is_of_the_last_frames(make_target_model: Make, mask_clip: Clip) -> None:
    """The room is taken over within `span` frames, and what is in it was seen in frames that were learned."""
    model, (frames, masks) = make_target_model(span=4, doubt=1e-9), mask_clip(1, 9, 1)
    forced, shown = torch.ones(1, 9, dtype=torch.bool), first_only(masks)
    _, begun = model(frames[:, :1], masks=masks[:, :1], given=shown[:, :1])
    assert not begun.past_keys.any()
    _, state = model(frames[:, 1:], begun, masks=masks[:, 1:], given=shown[:, 1:], forced=forced[:, 1:])
    assert state.learned.item() == 8
    assert state.past_keys[..., -1].all()
    recent = torch.cat([model.encoded(frames[:, t]).keys[0] for t in range(5, 9)])
    found = torch.cdist(state.past_keys[0, 0, :, :8], recent).amin(1)
    assert found.max() < 1e-6
    old = torch.cdist(model.encoded(frames[:, 0]).keys[0], state.past_keys[0, 0, :, :8]).amin(1)
    assert old.max() > 1e-3


def test_similarity_is_that_of_the_best_key_and_falls_with_distance() -> None:
    generator = torch.Generator().manual_seed(0)
    keys = torch.nn.functional.normalize(torch.randn(1, 300, 8, dtype=torch.float64, generator=generator), dim=2)
    kept = torch.randn(1, 2, 30, 11, dtype=torch.float64, generator=generator)
    kept[..., -1] = (kept[..., -1] > 0).double()
    warmth, at = torch.tensor(3.0, dtype=torch.float64), torch.rand(1, 300, 2, dtype=torch.float64, generator=generator)
    for places, reach in ((None, 1.0), (at, 0.4)):
        far = (
            0
            if places is None
            else ((places[:, None, :, None] - kept[:, :, None, :, 8:10]) ** 2).sum(4) / (2 * reach**2)
        )
        every = (
            warmth * (keys[:, None] @ kept[..., :8].mT - far) + torch.where(kept[..., -1] > 0, 0.0, -40.0)[:, :, None]
        )
        parts = every[..., :12].amax(3), every[..., 12:].amax(3)
        for grad in (False, True):
            found = alike(keys.clone().requires_grad_(grad), kept, 12, warmth, places, reach)
            for ours, best in zip(found, parts, strict=True):
                assert_close(ours.detach(), best.clamp(min=NOWHERE) / 4)


def test_an_object_is_searched_for_near_its_last_position_unless_it_is_lost(
    make_target_model: Make, mask_clip: Clip
) -> None:
    model, (frames, masks) = make_target_model(near=0.2, widen=0.1), mask_clip(1, 1, 1)
    _, state = model(frames, masks=masks, given=first_only(masks))
    inside = torch.nn.functional.avg_pool2d(masks[0, 0, 0][None], 8)[0] > 0.5
    rows, columns = (axis.nonzero().flatten() for axis in (inside.any(1), inside.any(0)))
    short = min(inside.shape)
    middle = torch.tensor([size / 2 - 0.5 for size in inside.shape])
    ends = torch.stack([rows.aminmax()[end] for end in (0, 1)]), torch.stack([columns.aminmax()[end] for end in (0, 1)])
    box = (torch.stack(ends, 1) - middle) / short
    torch.testing.assert_close(state.box[0, 0], box.flatten().double())
    fine = torch.zeros(1, 1, 8, 12, dtype=torch.float64)
    for missed, free in ((0.0, 0.2), (3.0, 0.5)):
        view = torch.tensor([whole(8, 12)], dtype=torch.float64)
        far = model._far(fine, view, state._replace(missed=torch.full_like(state.missed, missed)))[0, 0]
        places = torch.stack(
            torch.meshgrid((torch.arange(8) - 3.5) / 8, (torch.arange(12) - 5.5) / 8, indexing="ij"), 2
        )
        outside = torch.maximum(box[0] - places, places - box[1]).clamp(min=0).norm(dim=2)
        torch.testing.assert_close(far, 40 * (outside - free).clamp(min=0).double(), rtol=1e-5, atol=1e-5)
    model.contour.fit[-1].bias.data.fill_(-9.0)  # in doubt, so it is missed
    _, state = model(frames.expand(-1, 3, -1, -1, -1), state)
    assert state.missed.item() == 3


def test_an_object_in_doubt_is_not_learned(make_target_model: Make, mask_clip: Clip) -> None:
    model, (frames, masks) = make_target_model(), mask_clip(1, 3)
    shown = first_only(masks)
    _, begun = model(frames[:, :1], masks=masks[:, :1], given=shown[:, :1])
    forced, truth = torch.ones(1, 2, dtype=torch.bool), masks[:, 1:]
    for bias, learned in ((9.0, 2.0), (-9.0, 0.0)):
        with torch.no_grad():
            model.contour.fit[-1].bias.fill_(bias)  # how well it thinks that its masks fit
        _, state = model(frames[:, 1:], begun, masks=truth, given=shown[:, 1:], forced=forced)
        assert state.learned.tolist() == [[learned, learned]]
        assert torch.equal(state.last_gram, begun.last_gram) is (learned == 0)


def test_memories_may_be_left_out_to_compare(make_target_model: Make, mask_clip: Clip) -> None:
    model, (frames, masks) = make_target_model(), mask_clip(1, 3)
    _, state = model(frames, masks=masks, given=first_only(masks))
    maps = model.encoded(frames[:, 2])
    whole, part = model.cues(maps, state), model.only("given").cues(maps, state)
    own = [cue in MEMORIES["given"] for cue in range(CUES)]
    assert_close(part[:, :, own], whole[:, :, own])
    assert not part[:, :, [not mine for mine in own]].any()
    assert model.memories == ("target", "given", "last", "past")


def test_gradients_reach_every_parameter_outside_of_the_encoder(make_target_model: Make, mask_clip: Clip) -> None:
    model, (frames, masks) = make_target_model(), mask_clip()
    output, _ = model(frames, masks=masks, given=first_only(masks))
    assert output.fit is not None
    (output.logits.square().mean() + output.fit[:, 1:].square().mean()).backward()
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
        ({"memories": ("future",)}, "some of target, given, last, past"),
    ):
        with pytest.raises(ConfigError, match=says):
            TargetConfig(**options)  # type: ignore[arg-type]
    frames, masks = mask_clip(2, 2)
    with pytest.raises(StateError, match="rows"):
        make_target_model()(frames, make_target_model().init_state(1, 2), masks=masks, given=first_only(masks))

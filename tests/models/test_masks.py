"""The mask model under the laws: streaming, resets and isolation, constant memory; objects; what it refuses."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tttstream.errors import ShapeError, StateError
from tttstream.masks import MaskOutput, Propagator
from tttstream.models.masks.propagator import together
from tttstream.state import pack, unpack
from tttstream.testing import assert_close

Make = Callable[..., Any]
Clip = Callable[..., tuple[Tensor, Tensor]]
ROWS, COUNT, OBJECTS = 2, 5, 2
EACH = pytest.mark.parametrize("contour", [0, 8])


def run(
    model: Propagator[Any],
    frames: Tensor,
    masks: Tensor,
    shown: Tensor,
    splits: list[int],
    reset: Tensor,
    lengths: Tensor,
) -> tuple[Tensor, Any]:
    """Logits and final state of a stream that comes in pieces."""
    state: Any = model.init_state(len(frames), masks.shape[2])
    logits, start = [], 0
    for size in splits:
        piece = slice(start, start + size)
        output, state = model(
            frames[:, piece], state, reset[:, piece], masks=masks[:, piece], given=shown[:, piece],
            lengths=(lengths - start).clamp(0, size),
        )  # fmt: skip
        logits.append(output.logits)
        start += size
    return torch.cat(logits, 1), state


def first_only(masks: Tensor) -> Tensor:
    shown = torch.zeros(masks.shape[:3], dtype=torch.bool)
    shown[:, 0] = True
    return shown


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.sets(st.integers(1, COUNT - 1)),
    resets=st.sets(st.tuples(st.integers(0, ROWS - 1), st.integers(0, COUNT - 1)), max_size=2),
    extra=st.sets(st.tuples(st.integers(0, ROWS - 1), st.integers(1, COUNT - 1), st.integers(0, 1)), max_size=2),
    lengths=st.lists(st.integers(0, COUNT), min_size=ROWS, max_size=ROWS),
    contour=st.sampled_from([0, 8]),
)
def test_any_partition_gives_what_one_call_gives(
    make_mask_model: Make,
    mask_clip: Clip,
    cuts: set[int],
    resets: set[tuple[int, int]],
    extra: set[tuple[int, int, int]],
    lengths: list[int],
    contour: int,
) -> None:
    model, (frames, masks) = make_mask_model(contour=contour), mask_clip()
    reset, shown = torch.zeros(ROWS, COUNT, dtype=torch.bool), first_only(masks)
    for place in resets:
        reset[place] = True
    for row, t, number in extra:
        shown[row, t, number] = True
    splits = [b - a for a, b in pairwise([0, *sorted(cuts), COUNT])]
    whole, state = run(model, frames, masks, shown, [COUNT], reset, torch.tensor(lengths))
    pieces, other = run(model, frames, masks, shown, splits, reset, torch.tensor(lengths))
    inside = torch.arange(COUNT) < torch.tensor(lengths)[:, None]
    assert_close(pieces[inside], whole[inside], 1e-10)
    assert_close(other, state, 1e-10)


def test_gradients_pass_through_the_cut_and_reach_every_parameter(make_mask_model: Make, mask_clip: Clip) -> None:
    model, (frames, masks) = make_mask_model(), mask_clip(1, 3)
    shown = first_only(masks)
    found = []
    for splits in ([3], [1, 2]):
        logits, _ = run(model, frames, masks, shown, splits, torch.zeros(1, 3, dtype=torch.bool), torch.tensor([3]))
        found.append(torch.autograd.grad(logits[:, 1:].square().sum(), list(model.parameters())))
    assert_close(found[1], found[0], 1e-9)
    for (name, _), gradient in zip(model.named_parameters(), found[0], strict=True):
        assert gradient.abs().max() > 0, name


@EACH
def test_a_row_is_what_it_is_alone_and_after_a_reset(make_mask_model: Make, mask_clip: Clip, contour: int) -> None:
    model, (frames, masks) = make_mask_model(contour=contour), mask_clip(2, 4)
    shown = first_only(masks)
    shown[1, 2] = True
    reset = torch.zeros(2, 4, dtype=torch.bool)
    reset[1, 2] = True
    both, state = model(frames, reset=reset, masks=masks, given=shown)
    alone, single = model(frames[:1], masks=masks[:1], given=shown[:1])
    later, second = model(frames[1:, 2:], masks=masks[1:, 2:], given=shown[1:, 2:])
    assert_close(both.logits[:1], alone.logits, 1e-10)
    assert_close(both.logits[1:, 2:], later.logits, 1e-10)
    assert_close(state[0], single, 1e-10)
    assert_close(state[1], second, 1e-10)


@EACH
def test_a_nan_reaches_no_other_row_no_earlier_frame_and_nothing_after_a_reset(
    make_mask_model: Make, mask_clip: Clip, contour: int
) -> None:
    model, (frames, masks) = make_mask_model(contour=contour), mask_clip(2, 5)
    shown = first_only(masks)
    shown[:, 3] = True
    reset = torch.zeros(2, 5, dtype=torch.bool)
    reset[:, 3] = True
    clean, clean_state = model(frames, reset=reset, masks=masks, given=shown)
    frames[0, 1, 0, 3, 3] = float("nan")
    output, state = model(frames, reset=reset, masks=masks, given=shown)
    assert output.logits[0, 2].isnan().any()
    assert_close(output.logits[1], clean.logits[1], 1e-10)
    assert_close(output.logits[0, 0], clean.logits[0, 0], 1e-10)
    assert_close(output.logits[0, 3:], clean.logits[0, 3:], 1e-10)
    assert_close(state, clean_state, 1e-10)


@EACH
def test_the_state_is_constant_whatever_was_seen_and_packs(
    make_mask_model: Make, mask_clip: Clip, contour: int
) -> None:
    model, (frames, masks) = make_mask_model(torch.float32, contour=contour), mask_clip(2, 5)
    _, state = model(frames, masks=masks, given=first_only(masks))
    _, small = model(frames[:, :1, :, :16, :32], masks=masks[:, :1, :, :16, :32], given=first_only(masks)[:, :1])
    assert state.nbytes == small.nbytes == model.init_state(2, 2).nbytes
    assert all(bool((leaf == 0).all()) for leaf in model.init_state(2, 2).tensors())
    assert_close(unpack(pack(state), state), state, 0.0)
    assert state[1].rows == 1


@EACH
def test_objects_can_be_permuted(make_mask_model: Make, mask_clip: Clip, contour: int) -> None:
    model, (frames, masks) = make_mask_model(contour=contour), mask_clip(1, 4)
    straight, _ = model(frames, masks=masks, given=first_only(masks))
    turned, _ = model(frames, masks=masks.flip(2), given=first_only(masks))
    assert_close(turned.logits[:, :, [0, 2, 1]], straight.logits, 1e-9)


@EACH
def test_keys_have_the_same_scale_in_every_frame_of_a_stream(
    make_mask_model: Make, mask_clip: Clip, contour: int
) -> None:
    """They are centred as those of the first frame, and again where the first object is given."""
    model, (frames, masks) = make_mask_model(contour=contour), mask_clip(1, 4)
    shown = first_only(masks)
    _, first = model(frames[:, :1], masks=masks[:, :1], given=shown[:, :1])
    _, last = model(frames[:, 1:], first)
    assert torch.equal(last.middle, first.middle)
    assert torch.equal(last.spread, first.spread)
    _, blank = model(torch.zeros_like(frames[:, :1]), model.init_state(1, 2))
    _, given = model(frames[:, :1], blank, masks=masks[:, :1], given=shown[:, :1])
    assert_close(given, first, 1e-12)


@EACH
def test_a_given_mask_is_the_output(make_mask_model: Make, mask_clip: Clip, contour: int) -> None:
    model, (frames, masks) = make_mask_model(contour=contour), mask_clip(1, 2)
    output, _ = model(frames, masks=masks, given=first_only(masks))
    assert_close(output.logits[:, 0].softmax(1)[:, 1:], masks[:, 0], 1e-3)


def test_the_memory_carries_the_object(make_mask_model: Make, mask_clip: Clip) -> None:
    """Two objects that swap their masks in the first frame are distinguished by the memory, since frames are equal."""
    model, (frames, masks) = make_mask_model(), mask_clip(1, 2)
    one, _ = model(frames, masks=masks[:, :, :1], given=first_only(masks)[:, :, :1])
    other, _ = model(frames, masks=masks[:, :, 1:], given=first_only(masks)[:, :, 1:])
    fresh, _ = model(frames[:, 1:], model.init_state(1)._replace(seen=torch.ones(1, 1, dtype=torch.float64)))
    assert not torch.allclose(one.logits[:, 1], other.logits[:, 1], atol=1e-3)
    assert not torch.allclose(one.logits[:, 1], fresh.logits[:, 0], atol=1e-3)


def test_soft_aggregation() -> None:
    """Shares are in proportion to the odds of each object and of none of them."""
    logits = torch.tensor([0.7, -1.2], dtype=torch.float64).view(1, 2, 1, 1)
    chance = logits.sigmoid()
    none = (1 - chance).prod(1, keepdim=True)
    odds = torch.cat([none / (1 - none), chance / (1 - chance)], 1)
    torch.testing.assert_close(together(logits).softmax(1), odds / odds.sum(1, keepdim=True))
    assert together(torch.full((1, 3, 1, 1), -50.0)).isfinite().all()
    assert together(torch.full((1, 3, 1, 1), 50.0)).isfinite().all()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"frames": torch.zeros(1, 2, 3, 30, 48)}, "multiples of 16"),
        ({"frames": torch.zeros(1, 2, 1, 32, 48)}, "multiples of 16"),
        ({"masks": None, "given": None}, "the first call needs masks"),
        ({"masks": torch.zeros(1, 2, 1, 32, 32)}, "expected masks"),
        ({"given": None}, "masks need given"),
        ({"given": torch.zeros(1, 2, 2, dtype=torch.bool)}, "expected given"),
        ({"given": torch.zeros(1, 2, 1)}, "expected given"),
        ({"reset": torch.zeros(1, 3, dtype=torch.bool)}, "expected reset"),
    ],
)
def test_shapes_that_do_not_fit(make_mask_model: Make, change: dict[str, Any], said: str) -> None:
    options: dict[str, Any] = {
        "frames": torch.zeros(1, 2, 3, 32, 48),
        "masks": torch.zeros(1, 2, 1, 32, 48),
        "given": torch.zeros(1, 2, 1, dtype=torch.bool),
    }
    options |= change
    with pytest.raises(ShapeError, match=said):
        make_mask_model(torch.float32)(options.pop("frames"), **options)


@EACH
def test_states_that_do_not_fit(make_mask_model: Make, mask_clip: Clip, contour: int) -> None:
    model, (frames, masks) = make_mask_model(contour=contour), mask_clip(2, 1)
    with pytest.raises(StateError, match="2 rows"):
        model(frames, model.init_state(3, 2))
    with pytest.raises(ShapeError, match="masks of 2 objects, a state of 1"):
        model(frames, model.init_state(2, 1), masks=masks, given=first_only(masks)[:, :, :1])


@EACH
def test_the_output_says_what_it_is(make_mask_model: Make, mask_clip: Clip, contour: int) -> None:
    frames, masks = mask_clip(2, 3)
    output, _ = make_mask_model(contour=contour)(frames, masks=masks, given=first_only(masks))
    assert isinstance(output, MaskOutput)
    assert output.logits.shape == (2, 3, 3, 32, 48)
    assert output.guess.shape == (2, 3, 2, 8, 12)

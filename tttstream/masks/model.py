"""MaskModel: frames and a first mask in, masks out, carried by a memory that learns the object from every frame."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream import inner as catalogue
from tttstream.errors import ShapeError, StateError
from tttstream.masks.networks import EVERY, WHOLE, Decoder, Encoder, Features, MaskCode
from tttstream.state import State
from tttstream_kernels import InnerState, ttt
from tttstream_kernels.norm import normalise

SURE = 12.0
"""Log-odds of a mask that is given."""


SETTINGS = ("base_lr", "first", "passes", "size")
"""Of `MaskConfig`, what the same weights may be used with otherwise."""


@dataclass(frozen=True)
class MaskConfig:
    """A model's shape, and how its memory learns.

    width: channels of the features at a quarter of the size. heads, head_width: inner models side by side, and their
    width. placed: how many of the heads see where a place is. inner: linear or mlp. base_lr: base of the inner
    learning rate. first, passes: how often a given mask, and a predicted one, is learned. size: short side in pixels
    at which videos are looked at.
    """

    width: int = 48
    heads: int = 4
    head_width: int = 48
    placed: int = 2
    inner: str = "linear"
    base_lr: float = 48.0
    first: int = 16
    passes: int = 1
    size: int = 160

    def __post_init__(self) -> None:
        for name in ("width", "heads", "head_width", "placed", "first", "passes", "size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ShapeError(f"mask model: {name} must be a whole number of at least 1, got {value!r}")
        if self.width % 8 or self.placed >= self.heads:
            raise ShapeError(
                f"mask model: width must be a multiple of 8 and placed less than heads, got width={self.width}, "
                f"placed={self.placed}, heads={self.heads}"
            )
        catalogue.find(self.inner)


class _MaskFields(NamedTuple):
    delta: Tensor
    anchor: Tensor
    seen: Tensor
    middle: Tensor
    spread: Tensor


class MaskState(State, _MaskFields):
    """What is remembered of each object of each stream; its size depends neither on the frames nor on their size.

    delta: [B, O, H, P] the inner weights' difference from their learned start. anchor: the same right after the mask
    was given. seen: [B, O] 1 once it was given. middle, spread: [B, heads * D] of the keys of the first frame, or of
    that in which the first object was given.
    """

    __slots__ = ()

    @property
    def objects(self) -> int:
        """How many objects each stream has at most."""
        return self.seen.shape[1]


class MaskOutput(NamedTuple):
    """What a model says of every frame.

    logits: [B, T, 1 + O, H, W], softmax over the third axis gives the share of background and of each object.
    guess: [B, T, O, H/4, W/4] log-odds from the memory's answers alone.
    """

    logits: Tensor
    guess: Tensor


class MaskModel(nn.Module):
    """Mask propagation with a memory whose weights are learned online: every frame is both test and training data.

    Keys come from the frame, values from the mask. In each frame the memory is asked first, at the weights that it
    has learned from the frames before; a decoder makes masks of the answers; then the memory learns to answer with
    these masks at this frame's keys, and is drawn back a little towards what it was when the mask was given.

    Called as `output, state = model(frames, state=None, reset=None, masks=…, given=…)` with frames [B, T, 3, H, W] in
    0..1 (or uint8), H and W multiples of 16; masks [B, T, O, H, W] in 0..1 count where given bool [B, T, O] is true:
    there they are learned hard, at the first frame and wherever an object is added or corrected. reset bool [B, T]:
    the frame begins another stream. lengths [B]: only so many frames of the row count. Any partition of a stream
    gives what one call gives. Objects that were never given are nowhere.

    `learn=False` freezes the memory after the masks that are given: the first-frame classifier alone.
    """

    def __init__(self, config: MaskConfig) -> None:
        super().__init__()
        self.config = config
        self.entry = catalogue.find(config.inner)
        self.inner = self.entry.make(None)
        self.encoder = Encoder(config.width, config.heads, config.head_width, config.placed)
        self.code = MaskCode(config.heads, config.head_width)
        self.decoder = Decoder(config.width, 2 * config.heads * config.head_width)
        self.start = nn.Parameter(self.entry.init(self.inner, config.heads, config.head_width))
        self.gamma = nn.Parameter(torch.ones(config.heads, config.head_width))
        self.beta = nn.Parameter(torch.zeros(config.heads, config.head_width))
        self.pull = nn.Parameter(torch.full((config.heads,), -3.0))
        self._begin()
        self.update = self.entry.update(config.base_lr, config.head_width, 1, "frame")

    @torch.no_grad()
    def _begin(self) -> None:
        """Start where an untaught memory says "no object" of every place, and the guess tells that from an object."""
        masks = torch.stack([torch.zeros(64, 64), torch.ones(64, 64)])
        nothing, object_ = self.code(masks, torch.zeros_like(masks))[0].unflatten(1, (8, 8))[:, 4, 4]
        self.start[:, -self.config.head_width :] = nothing
        contrast = (object_ - nothing).flatten() / 2
        self.decoder.guess.weight.copy_((12.0 / (2 * contrast.numel()) * contrast.repeat(2))[None, :, None, None])
        assert self.decoder.guess.bias is not None
        self.decoder.guess.bias.fill_(0.5)

    def init_state(self, batch: int, objects: int = 1) -> MaskState:
        """A fresh state of `batch` streams with room for so many objects each, all zeros."""
        dtype = torch.float64 if self.start.dtype == torch.float64 else torch.float32
        zeros = partial(torch.zeros, dtype=dtype, device=self.start.device)
        weights, keys = (batch, objects, *self.start.shape), (batch, self.gamma.numel())
        return MaskState(zeros(weights), zeros(weights), zeros(batch, objects), zeros(keys), zeros(keys))

    def forward(
        self,
        frames: Tensor,
        state: MaskState | None = None,
        reset: Tensor | None = None,
        *,
        masks: Tensor | None = None,
        given: Tensor | None = None,
        lengths: Tensor | None = None,
        taught: Tensor | None = None,
        offset: Tensor | None = None,
        learn: bool = True,
    ) -> tuple[MaskOutput, MaskState]:
        """See the class. taught: bool [B, T], the memory learns `masks` in place of what it said. offset: [B, 2] pixels
        by which the middle of the frames is moved. Both are for training."""
        state, given = self._check(frames, state, reset, masks, given)
        frames = frames.to(self.start.dtype) / 255.0 if frames.dtype == torch.uint8 else frames.to(self.start.dtype)
        rows, count = frames.shape[:2]
        moved = None if offset is None else offset.repeat_interleave(count, 0)
        parts = (x.unflatten(0, (rows, count)).unbind(1) for x in self.encoder(frames.flatten(0, 1), moved))
        every = [Features(*here) for here in zip(*parts, strict=True)]
        logits, guesses = [], []
        for t, here in enumerate(every):
            before = state
            if reset is not None:
                state = state.map(torch.zeros_like).where(reset[:, t], state)
            mask = None if masks is None else masks[:, t].to(frames.dtype)
            told = None if taught is None else taught[:, t]
            said, guess, state = self._frame(here, state, mask, given[:, t], told, learn)
            logits.append(said)
            guesses.append(guess)
            if lengths is not None:
                state = state.where(t < lengths, before)
        return MaskOutput(torch.stack(logits, 1), torch.stack(guesses, 1)), state

    def save(self, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors into a folder; dtype: of the file, such as float16."""
        from tttstream.masks.folder import save

        save(self, folder, dtype)

    def fingerprint(self) -> str:
        """A hash of the configuration and of all weights: what a saved stream must match."""
        digest = hashlib.sha256(json.dumps(dataclasses.asdict(self.config), sort_keys=True).encode())
        for name, weight in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def _frame(
        self,
        features: Features,
        state: MaskState,
        masks: Tensor | None,
        given: Tensor,
        taught: Tensor | None,
        learn: bool,
    ) -> tuple[Tensor, Tensor, MaskState]:
        objects, known = state.objects, state.seen > 0
        height, width = features.coarse.shape[-2:]
        fresh = (state.spread == 0).all(1) | (given.any(1) & ~known.any(1))
        mean, deviation = moments(features.keys.to(state.delta.dtype))
        middle = torch.where(fresh[:, None], mean, state.middle)
        spread = torch.where(fresh[:, None], deviation, state.spread)
        keys = self.centred(features.keys, middle, spread)
        answer = torch.cat([self._read(keys, weights) for weights in (state.delta, state.anchor)], 2)
        logits, guess = self.decoder(answer, features, objects)
        logits = torch.where(known[..., None, None], logits, -SURE)
        if masks is not None:
            logits = torch.where(given[..., None, None], (2 * masks - 1) * SURE, logits)
        logits = together(logits)
        learned = logits.detach().to(state.delta.dtype).softmax(1)[:, 1:]
        if taught is not None and masks is not None:
            learned = torch.where(taught[:, None, None, None], masks, learned)
        others = (learned.sum(1, keepdim=True) - learned).flatten(0, 1)
        code, rate = self.code(learned.flatten(0, 1), others)
        teaching = keys.unflatten(1, (height, width))[:, ::EVERY, ::EVERY].flatten(1, 2)
        passes = torch.where(given, self.config.first, torch.where(known, self.config.passes * int(learn), 0))
        delta = self._learn(teaching, code, rate, state.delta, passes)
        pull = self.pull.sigmoid()[:, None].to(delta.dtype)
        pulled = torch.where((passes > 0)[..., None, None], delta + pull * (state.anchor - delta), delta)
        first = given[..., None, None]
        return (
            logits,
            guess,
            MaskState(
                torch.where(first, delta, pulled),
                torch.where(first, delta, state.anchor),
                torch.where(given, 1.0, state.seen),
                middle,
                spread,
            ),
        )

    def centred(self, keys: Tensor, middle: Tensor, spread: Tensor) -> Tensor:
        """Keys [B, N, heads * D] as the memory takes them, [B, N, heads, D] of length sqrt(D).

        All frames of a stream are centred alike, so that a key means the same in each. Keys that are not centred lie
        close together, and the memory is slow to tell them apart.
        """
        keys = ((keys - middle[:, None]) / spread[:, None]).unflatten(2, self.gamma.shape)
        return F.layer_norm(keys, keys.shape[-1:])

    def _read(self, keys: Tensor, delta: Tensor) -> Tensor:
        """The code that the memory gives for each token at its weights: [B * O, N, heads * head width]."""
        rows, objects, heads, size = delta.shape
        tokens, width = keys.shape[1], keys.shape[3]
        weights = self.inner.split((self.start + delta).reshape(-1, size), width)
        keys = keys.transpose(1, 2)  # [B, heads, N, width]
        keys = keys[:, None].expand(-1, objects, -1, -1, -1).reshape(-1, tokens, width).to(delta.dtype)
        gamma, beta = (x.repeat(rows * objects, 1)[:, None].to(delta.dtype) for x in (self.gamma, self.beta))
        answer = normalise(self.inner.forward(keys, weights)[0], gamma, beta)
        return answer.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)

    def _learn(self, keys: Tensor, code: Tensor, rate: Tensor, delta: Tensor, passes: Tensor) -> Tensor:
        """The weights after each object's `passes` steps on this frame's keys and codes."""
        most = int(passes.max())
        if most == 0:
            return delta
        objects, tokens = delta.shape[1], keys.shape[1]
        keys = keys.repeat_interleave(objects, 0)
        rate = rate * (self.config.base_lr / self.config.head_width)
        keys, values, rate = (x.repeat(1, most, *[1] * (x.dim() - 2)) for x in (keys, keys + code, rate))
        nothing = delta.new_zeros(len(keys))
        old = delta.flatten(0, 1)
        counted = None if bool((passes == most).all()) else passes.flatten() * tokens
        _, state, _ = ttt(
            self.inner, keys, keys, values, rate, self.start, self.gamma, self.beta,
            mini_batch=tokens, causal="frame", update=self.update, lengths=counted,
            state=InnerState(old, old[..., :0], old[..., :0], nothing),
        )  # fmt: skip
        return state.delta.view_as(delta)

    def _check(
        self,
        frames: Tensor,
        state: MaskState | None,
        reset: Tensor | None,
        masks: Tensor | None,
        given: Tensor | None,
    ) -> tuple[MaskState, Tensor]:
        whole = frames.dim() == 5 and frames.shape[1] > 0 and frames.shape[2] == 3
        if not whole or frames.shape[3] % WHOLE or frames.shape[4] % WHOLE:
            raise ShapeError(
                f"mask model: expected frames [B, T >= 1, 3, H, W] with H and W multiples of {WHOLE}, "
                f"got {list(frames.shape)}"
            )
        rows, count, _, height, width = frames.shape
        if state is None and masks is None:
            raise ShapeError("mask model: the first call needs masks [B, T, objects, H, W], or a state")
        if masks is not None and (
            masks.dim() != 5 or (*masks.shape[:2], *masks.shape[3:]) != (rows, count, height, width)
        ):
            raise ShapeError(
                f"mask model: expected masks [{rows}, {count}, objects, {height}, {width}], got {list(masks.shape)}"
            )
        if state is None:
            assert masks is not None
            state = self.init_state(rows, masks.shape[2])
        elif not isinstance(state, MaskState) or state.rows != rows:
            raise StateError(f"mask model: expected a MaskState of {rows} rows, got {type(state).__name__}")
        shape = (rows, count, state.objects)
        if masks is not None and masks.shape[2] != state.objects:
            raise ShapeError(f"mask model: masks of {masks.shape[2]} objects, a state of {state.objects}")
        if given is None:
            given = torch.zeros(shape, dtype=torch.bool, device=frames.device)
            if masks is not None:
                raise ShapeError("mask model: say with given [B, T, objects] which of the masks count")
        if given.shape != shape or given.dtype != torch.bool:
            raise ShapeError(f"mask model: expected given bool {list(shape)}, got {given.dtype} {list(given.shape)}")
        if reset is not None and (reset.shape != shape[:2] or reset.dtype != torch.bool):
            raise ShapeError(
                f"mask model: expected reset bool {list(shape[:2])}, got {reset.dtype} {list(reset.shape)}"
            )
        return state, given


def moments(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over the tokens of a frame: [B, N, C] -> two of [B, C], the second never 0."""
    variance, mean = torch.var_mean(keys, 1, correction=0)
    return mean, (variance + 1e-5).sqrt()


def together(logits: Tensor) -> Tensor:
    """Log-odds of each object by itself [B, O, H, W] to logits of background and objects [B, 1 + O, H, W].

    Each place is shared out in proportion to the odds of every object and of none of them (soft aggregation,
    arXiv 1904.00607, section 3.4).
    """
    logits = logits.clamp(-SURE, SURE)
    none = F.logsigmoid(-logits).sum(1, keepdim=True)  # log of the chance that the place is no object's
    return torch.cat([none - torch.log(-torch.expm1(none.clamp(max=-1e-6))), logits], 1)

"""MaskModel: frames and a first mask in, masks out, carried by a memory that learns the object from every frame."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from tttstream import inner as catalogue
from tttstream.masks.networks import EVERY, Decoder, Encoder, Features, MaskCode
from tttstream.masks.propagator import SURE, ObjectState, Propagator, PropagatorConfig, together
from tttstream_kernels import InnerState, ttt
from tttstream_kernels.norm import normalise

SETTINGS = ("base_lr", "first", "passes", "size")
"""Of `MaskConfig`, what the same weights may be used with otherwise."""


@dataclass(frozen=True)
class MaskConfig(PropagatorConfig):
    """A model's shape (see PropagatorConfig; each head has an inner model), and how its memory learns.

    inner: linear or mlp. base_lr: base of the inner learning rate. first, passes: how often a given mask, and a
    predicted one, is learned.
    """

    inner: str = "linear"
    base_lr: float = 48.0
    first: int = 16
    passes: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        catalogue.find(self.inner)


class _MaskFields(NamedTuple):
    delta: Tensor
    anchor: Tensor
    seen: Tensor
    middle: Tensor
    spread: Tensor


class MaskState(ObjectState, _MaskFields):
    """What is remembered of each object of each stream; its size depends neither on the frames nor on their size.

    delta: [B, O, H, P] the inner weights' difference from their learned start. anchor: the same right after the mask
    was given. seen: [B, O] 1 once it was given. middle, spread: [B, heads * D] of the keys of the first frame, or of
    that in which the first object was given.
    """

    __slots__ = ()


class MaskModel(Propagator[MaskState]):
    """Mask propagation with a memory whose weights are learned online: every frame is both test and training data.

    Keys come from the frame, values from the mask. In each frame the memory is asked first, at the weights that it
    has learned from the frames before; a decoder makes masks of the answers; then the memory learns to answer with
    these masks at this frame's keys, and is drawn back a little towards what it was when the mask was given.

    Called as every Propagator is.
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
        middle, spread = self.measured(features.keys, state.middle, state.spread, given.any(1) & ~known.any(1))
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

"""TargetModel: follows objects on pretrained features, with a target model that is learned from the stream."""

from __future__ import annotations

import copy
from dataclasses import dataclass, fields
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream import encoders
from tttstream.errors import ConfigError
from tttstream.models.masks.networks import Residual, convolution
from tttstream.models.masks.propagator import SURE, ObjectState, Propagator, together

STRIDES = (4, 8, 16)
CELL = 8  # pixels along the side of a token
FINE = 4  # pixels along the side of what contours are drawn in
SHARES = (0.6, 1.0, 0.7)  # of the maps at these strides in the keys before training
MARGIN = 0.45  # tokens of a found mask whose share is nearer to a half than this are not kept
NOWHERE = -4.0  # likeness to what is not there
MEMORIES = {"target": (0, 5), "given": (1, 2), "last": (3, 4, 6)}
"""Which of the cues are each memory's."""
CUES = 7


@dataclass(frozen=True)
class TargetConfig:
    """The shape of the networks, what is kept of a stream, how it is learned, and the size of what is looked at.

    encoder: a pretrained encoder of `tttstream.encoders` with maps at strides 4, 8 and 16. key: numbers of a key.
    hidden: features of the target model. channels: of the network that draws contours. inside, outside: how many keys
    are kept of an object, and of what is around it, of the frame in which it was given and of the last frame each.
    reach: how far things move from frame to frame, as a share of the short side. ridge: how strongly the target model
    is held near zero. rate: the share of the last frame in what it learned after the given one. trust: how much this
    counts beside the given frame. memories: which are asked, see TargetModel. size: short side in pixels at which
    videos are looked at.
    """

    encoder: str = "efficientnet_lite0"
    key: int = 64
    hidden: int = 128
    channels: int = 48
    inside: int = 768
    outside: int = 1792
    reach: float = 0.35
    ridge: float = 0.01
    rate: float = 0.15
    trust: float = 0.2
    memories: tuple[str, ...] = ("target", "given", "last")
    size: int = 320

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "int" and (not isinstance(value, int) or value < 1):
                raise ConfigError(f"target: {field.name} must be a whole number of at least 1, got {value!r}")
            if field.type == "float" and (not isinstance(value, int | float) or not 0 < value < float("inf")):
                raise ConfigError(f"target: {field.name} must be a number above 0, got {value!r}")
        object.__setattr__(self, "memories", tuple(self.memories))  # a list where it was read from a file
        if not self.memories or any(memory not in MEMORIES for memory in self.memories):
            raise ConfigError(f"target: memories are {self.memories}, expected some of {', '.join(MEMORIES)}")
        if self.channels % 8 or self.rate > 1:
            raise ConfigError(
                f"target: channels must be a multiple of 8 and rate at most 1, got {self.channels} and {self.rate}"
            )


class Maps(NamedTuple):
    """Features of n frames. quarter [n, C, H/4, W/4], eighth [n, C', H/8, W/8]: features for contours. keys [n, N, D]
    of length 1 and basis [n, N, 1 + hidden], for each token of the grid of an eighth."""

    quarter: Tensor
    eighth: Tensor
    keys: Tensor
    basis: Tensor


class _TargetFields(NamedTuple):
    given_keys: Tensor
    last_keys: Tensor
    given_gram: Tensor
    last_gram: Tensor
    given_moment: Tensor
    last_moment: Tensor
    seen: Tensor


class TargetState(ObjectState, _TargetFields):
    """The state of each stream; its size depends neither on the frames nor on their size.

    given_keys, last_keys: [B, O, inside + outside, D + 3] keys of each object and of what is around it, in the frame in
    which it was given and in the last one, each with its place (y, x) in short sides and whether it is there.
    given_gram, last_gram: [B, O, C, C] and given_moment, last_moment: [B, O, C]: the normal equations of the target
    model, from the frame in which the object was given and from those after it. seen: [B, O] 1 once it was given.
    """

    __slots__ = ()


class TargetModel(Propagator[TargetState]):
    """Mask propagation by three memories of each object, whose answers a network draws contours from.

    1. The target model w is the inner model: a linear map of learned features z_j of the tokens, whose inner loss is

        l(w) = sum_j a_j (w z_j - t_j)^2 + trust * sum_i (1 - rate)^i rate sum_j a_ij (w z_ij - t_ij)^2 + ridge |w|^2

       with t = 2 m - 1 for the share m of the object in a token, a the weights that make object and surroundings count
       the same, the first sum over the frame in which the object was given, kept for ever, the second over the frames
       since, i frames ago, with the masks that were found and a times |2 m - 1|, how sure they are. It is solved
       exactly in each frame: recursive least squares with forgetting.
    2. Keys of the frame in which the object was given, of it and of its surroundings: how like is a token to each?
    3. The same of the last frame, where what lies far from where it was counts less.

    A frame in which an object is not found is not learned for it.
    """

    FORMAT = "tttstream.target/1"
    CONFIG = TargetConfig
    USE = "track VIDEO --first-mask MASK.png"
    CELL = CELL
    SETTINGS = ("inside", "outside", "reach", "ridge", "rate", "trust", "memories", "size")
    centre: Tensor
    spread: Tensor

    def __init__(self, config: TargetConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = encoders.load(config.encoder, STRIDES, weights="none")
        widths = self.encoder.widths
        seen = sum(widths)
        self.register_buffer("centre", torch.zeros(seen))
        self.register_buffer("spread", torch.ones(seen))
        self.key = nn.Linear(seen, config.key, bias=False)
        self.basis = nn.Linear(seen, config.hidden)
        self.warmth = nn.Parameter(torch.tensor(3.0))
        self.contour = TargetContour(seen, widths[0], config.channels)
        self.memories = config.memories

    def only(self, *memories: str) -> TargetModel:
        """The same weights with some of the memories, to compare: "target", "given", "last", numbers 1, 2, 3 above.

        The contours were trained with memories left out at random, so they can do without.
        """
        other = copy.copy(self)
        other.memories = memories
        return other

    @torch.no_grad()
    def prepare(self, frames: Tensor) -> None:
        """Before training: the encoder gets its pretrained weights, and frames [n, 3, H, W] in 0..1 say how features
        are scaled. The first keys are their principal components, in which the finer maps count more."""
        self.encoder.load_state_dict(encoders.load(self.config.encoder, STRIDES).state_dict())
        x = self._together(*self.encoder(frames)).transpose(0, 1).flatten(1)
        self.centre.copy_(x.mean(1))
        self.spread.copy_(x.std(1).clamp(min=1e-3))
        shares = torch.cat(
            [torch.full((width,), share) for width, share in zip(self.encoder.widths, SHARES, strict=True)]
        )
        scaled = (x - self.centre[:, None]) / self.spread[:, None] * shares[:, None]
        axes = torch.linalg.eigh(scaled @ scaled.mT).eigenvectors.flip(1)[:, : self.config.key]
        self.key.weight[: axes.shape[1]] = axes.mT * shares

    def init_state(self, batch: int, objects: int = 1) -> TargetState:
        """See Propagator."""
        config = self.config
        kind = torch.float64 if self.dtype == torch.float64 else torch.float32
        zeros = partial(torch.zeros, batch, objects, dtype=kind, device=self.warmth.device)
        keys, width = (config.inside + config.outside, config.key + 3), config.hidden + 1
        return TargetState(
            zeros(*keys), zeros(*keys), zeros(width, width), zeros(width, width), zeros(width), zeros(width), zeros()
        )

    def encoded(self, frames: Tensor, offset: Tensor | None = None) -> Maps:
        """Features of frames [n, 3, H, W] in 0..1."""
        return self.seen(*self.encoder(frames))

    def compared(self, frames: Tensor) -> Tensor:
        """See Propagator."""
        return torch.cat([self.encoded(frame[None]).keys for frame in frames])

    def seen(self, quarter: Tensor, eighth: Tensor, sixteenth: Tensor) -> Maps:
        """The same from the encoder's maps."""
        x = (self._together(quarter, eighth, sixteenth) - self.centre[:, None, None]) / self.spread[:, None, None]
        tokens = x.flatten(2).mT
        basis = F.relu(self.basis(tokens))
        width = quarter.shape[1]
        fine = (quarter - self.centre[:width, None, None]) / self.spread[:width, None, None]
        return Maps(
            fine, x, F.normalize(self.key(tokens), dim=2), torch.cat([torch.ones_like(basis[..., :1]), basis], 2)
        )

    @staticmethod
    def _together(quarter: Tensor, eighth: Tensor, sixteenth: Tensor) -> Tensor:
        """All maps side by side at an eighth of the size."""
        height, width = eighth.shape[-2:]
        return torch.cat(
            [F.adaptive_avg_pool2d(quarter, (height, width)), eighth, _resized(sixteenth, (height, width))], 1
        )

    def _frame(
        self,
        features: Maps,
        state: TargetState,
        masks: Tensor | None,
        given: Tensor,
        forced: Tensor | None,
        learn: bool,
    ) -> tuple[Tensor, Tensor, TargetState]:
        known = state.seen > 0
        fine, guess = self.found(features, state)
        fine = torch.where(known[..., None, None], fine, -SURE)
        whole = F.interpolate(fine, scale_factor=float(FINE), mode="bilinear")
        told = F.avg_pool2d(together(fine).softmax(1)[:, 1:], CELL // FINE).flatten(2).detach()
        told = torch.where(known[..., None], told, 0.0)
        if masks is not None:
            whole = torch.where(given[..., None, None], (2 * masks - 1) * SURE, whole)
            true = given if forced is None else given | forced[:, None]
            pooled = F.avg_pool2d(masks, CELL).flatten(2).to(told)
            free = 1 - torch.where(true[..., None], pooled, 0.0).sum(1, keepdim=True)
            told = torch.where(true[..., None], pooled, told * free.clamp(min=0))
        return together(whole), guess, self._learned(features, state, told, given, known, learn)

    def found(self, features: Maps, state: TargetState) -> tuple[Tensor, Tensor]:
        """Log-odds of every object by itself [B, O, H/4, W/4], and those of the target model [B, O, H/8, W/8]."""
        cues = self.cues(features, state)
        fine: Tensor = self.contour(cues, features)
        return fine, 3 * cues[:, :, 0]

    def cues(self, features: Maps, state: TargetState) -> Tensor:
        """Scores of the memories for each token, [B, O, CUES, H/8, W/8]: the target model's score; likeness to the
        object and to its surroundings, in the given frame and in the last one; and the best score and likeness of
        others."""
        height, width = features.eighth.shape[-2:]
        score = torch.einsum("boc,bnc->bon", self.target(state), features.basis.to(state.seen.dtype)).clamp(-3, 3)
        given = self._alike(features.keys, state.given_keys, None)
        last = self._alike(features.keys, state.last_keys, _places(height, width, features.keys))
        mine = torch.stack([score, *given, *last], 2).to(features.keys.dtype)
        others = torch.stack([_others(score), _others(last[0] - last[1])], 2).to(mine)
        every = torch.cat([mine, others], 2).unflatten(3, (height, width))
        told = [cue for memory in self.memories for cue in MEMORIES[memory]]
        heard = torch.tensor([cue in told for cue in range(CUES)], device=every.device)
        return torch.where(heard[:, None, None], every, 0.0)

    def target(self, state: TargetState) -> Tensor:
        """The weights of the target model [B, O, 1 + hidden]: the least squares of what was learned."""
        config = self.config
        gram = state.given_gram + config.trust * state.last_gram
        moment = state.given_moment + config.trust * state.last_moment
        ridge = config.ridge * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        return torch.linalg.solve(gram + ridge, moment)

    def _alike(self, keys: Tensor, kept: Tensor, places: Tensor | None) -> tuple[Tensor, Tensor]:
        """The best likeness [B, O, N] of tokens to keys of each object, and to those around it."""
        width, inside = keys.shape[2], self.config.inside
        known, at, there = kept[..., :width], kept[..., width : width + 2], kept[..., width + 2]
        warmth = self.warmth.exp().to(known)
        queries = warmth * keys[:, None].to(known)
        bias = torch.where(there > 0, 0.0, 10 * NOWHERE)
        if places is not None:  # - |p - q|^2 / (2 reach^2) as a product
            places, scale = places.to(known), warmth * 0.5 / self.config.reach**2
            queries = torch.cat([queries, (2 * scale * places).expand(*queries.shape[:3], 2)], 3)
            known = torch.cat([known, at], 3)
            bias = bias - scale * at.square().sum(3)
        near = queries @ known.mT + bias[:, :, None]
        best = near[..., :inside].amax(3), near[..., inside:].amax(3)
        if places is None:
            return best[0].clamp(min=NOWHERE) / 4, best[1].clamp(min=NOWHERE) / 4
        own = scale * places.square().sum(-1)
        return (best[0] - own).clamp(min=NOWHERE) / 4, (best[1] - own).clamp(min=NOWHERE) / 4

    def _learned(
        self, features: Maps, state: TargetState, told: Tensor, given: Tensor, known: Tensor, learn: bool
    ) -> TargetState:
        """The state after a frame with masks `told` [B, O, N]."""
        kind = state.seen.dtype
        told, basis = told.to(kind), features.basis.to(kind)
        shown = (told > 0.5).any(2)
        places = _places(features.eighth.shape[-2], features.eighth.shape[-1], features.keys)
        keys = torch.cat([features.keys, places.expand(len(told), -1, -1)], 2).to(kind)
        kept = _where(given, self._kept(keys, told), self._kept(keys, told, MARGIN))
        balance = 0.5 * told / told.sum(2, keepdim=True).clamp(min=1)
        balance = balance + 0.5 * (1 - told) / (1 - told).sum(2, keepdim=True).clamp(min=1)
        balance = torch.where(given[..., None], balance, balance * (2 * told - 1).abs())
        gram = _gram(balance, basis)
        moment = (balance * (2 * told - 1)) @ basis
        rate = self.config.rate
        goes_on = known & shown & learn & ~given
        here = partial(_where, given)
        later = partial(_where, goes_on)
        return TargetState(
            here(kept, state.given_keys),
            _where(given | goes_on, kept, state.last_keys),
            here(gram, state.given_gram),
            here(torch.zeros_like(gram), later((1 - rate) * state.last_gram + rate * gram, state.last_gram)),
            here(moment, state.given_moment),
            here(torch.zeros_like(moment), later((1 - rate) * state.last_moment + rate * moment, state.last_moment)),
            torch.where(given, 1.0, state.seen),
        )

    def _kept(self, keys: Tensor, told: Tensor, margin: float = 0.0) -> Tensor:
        """Keys [B, O, inside + outside, D + 3] drawn from the object's tokens and from the others, and whether each is
        there. Tokens whose share is nearer to a half than the margin are neither's. Where there are fewer than room
        for, they are kept again and again. The draw depends on the number of tokens alone, so that a stream repeats bit
        for bit."""
        tokens = keys.shape[1]
        luck = torch.rand(tokens, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(keys.device)
        parts = []
        for chosen, room in ((told > 0.5 + margin, self.config.inside), (told <= 0.5 - margin, self.config.outside)):
            order = (luck + 2.0 * ~chosen).argsort(dim=2)
            count = chosen.sum(2, keepdim=True)
            which = order.gather(2, torch.arange(room, device=keys.device).remainder(count.clamp(min=1)))
            drawn = (
                keys[:, None]
                .expand(-1, told.shape[1], -1, -1)
                .gather(2, which[..., None].expand(-1, -1, -1, keys.shape[2]))
            )
            there = (count > 0).to(keys.dtype)[..., None].expand(*drawn.shape[:3], 1)
            parts.append(torch.cat([drawn, there], 3))
        return torch.cat(parts, 2)


class TargetContour(nn.Module):
    """Cues of each token and the frame's features to log-odds of each object at a quarter of the size."""

    def __init__(self, seen: int, fine: int, channels: int) -> None:
        super().__init__()
        self.seen = nn.Conv2d(seen, channels, 1, bias=False)
        self.cues = nn.Conv2d(CUES, channels, 3, padding=1)
        self.near = nn.Sequential(Residual(channels), Residual(channels))
        self.fine = nn.Conv2d(fine, 16, 1)
        drawn = nn.Conv2d(24, 1, 3, padding=1)
        self.out = nn.Sequential(convolution(channels + 16, 24), drawn)
        self.straight = nn.Conv2d(CUES, 1, 1)
        for parameter in (*drawn.parameters(), *self.straight.parameters()):
            nn.init.zeros_(parameter)
        with torch.no_grad():
            self.straight.weight += torch.tensor([2.0, 1.0, -1.0, 2.0, -2.0, 0.0, 0.0]).view(1, CUES, 1, 1)

    def forward(self, cues: Tensor, features: Maps) -> Tensor:
        """cues [n, objects, CUES, h, w], features of n frames -> [n, objects, 2 h, 2 w]."""
        objects = cues.shape[1]
        x = cues.flatten(0, 1)
        seen = self.seen(features.eighth).repeat_interleave(objects, 0)
        near = self.near(F.relu(self.cues(x) + seen))
        size = features.quarter.shape[-2:]
        fine = F.relu(self.fine(features.quarter)).repeat_interleave(objects, 0)
        drawn: Tensor = self.out(torch.cat([_resized(near, size), fine], 1)) + _resized(self.straight(x), size)
        return drawn.unflatten(0, (-1, objects)).squeeze(2)


def _resized(x: Tensor, size: tuple[int, ...] | torch.Size) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=False)


def _places(height: int, width: int, like: Tensor) -> Tensor:
    """The middles (y, x) of tokens [N, 2] from the middle of the frame, in short sides."""
    axes = [(torch.arange(size, device=like.device) + 0.5 - size / 2) / min(height, width) for size in (height, width)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), 2).flatten(0, 1).to(like.dtype)


def _gram(weights: Tensor, basis: Tensor) -> Tensor:
    """sum_n weights[b, o, n] basis[b, n, c] basis[b, n, d] -> [B, O, C, C]."""
    return (basis.mT[:, None] * weights[:, :, None]) @ basis[:, None]


def _others(x: Tensor) -> Tensor:
    """The largest of the other objects' values, [B, O, N]; NOWHERE where there is no other."""
    if x.shape[1] == 1:
        return torch.full_like(x, NOWHERE)
    own = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    return torch.where(own[None, :, :, None], NOWHERE, x[:, None]).amax(2)


def _where(objects: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Object by object: the new values where `objects` [B, O] is true, the old ones elsewhere."""
    return torch.where(objects.view(*objects.shape, *[1] * (new.dim() - 2)), new, old)

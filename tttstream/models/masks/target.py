"""TargetModel: follows objects on pretrained features, with a target model that is learned from the stream."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tttstream import encoders
from tttstream.errors import ConfigError
from tttstream.models.base import check_numbers
from tttstream.models.masks.contours import MEMORIES, SCORES, Encoding, TargetContour
from tttstream.models.masks.kept import alike, drawn, places, whole
from tttstream.models.masks.networks import Residual, resized
from tttstream.models.masks.propagator import SURE, MaskOutput, ObjectState, Propagator, together

STRIDES = (4, 8, 16)
CELL = 8  # pixels along the side of a token
FINE = 4  # pixels along the side of what contours are drawn in
SHARES = (0.6, 1.0, 0.7)  # of the maps at these strides in the keys before training
TURNS = 1 << 20  # a whole number that float32 holds exactly
STEEP = 40.0  # log-odds that are lost for each short side of distance
PART = 0.36  # of `edge` and `keep` count where a part of a frame is seen: more of it is the object's
MARGIN = 0.45  # tokens of a found mask whose share is nearer to a half than this are not kept


@dataclass(frozen=True)
class TargetConfig:
    """The shape of the networks, the options of the memories, and the size of the input.

    encoder: a pretrained encoder of `tttstream.encoders` with maps at strides 4, 8 and 16. key: width of a key. trunk:
    channels of the network around each token. hidden: features of the target model. channels: of the network for
    contours. inside, outside: the number of keys of an object, and of its surroundings, that each of three memories
    holds: of the frame in which it was given, of the last frame, and of the frames between. reach: the usual motion
    from frame to frame, as a share of the short side. ridge: weight of the target model's ridge. rate: the share of the
    last frame in what the target model learned after the given frame. trust: the weight of these frames relative to the
    given one. span: the number of frames from which the keys of the past are drawn. doubt: an object is learned in a
    frame if the expected overlap J of its mask is above this. near: the largest distance of an object from its last
    position, as a share of the short side; widen: the increase for each frame in which it was not learned. edge:
    log-odds from which a pixel belongs to the object; keep: the share of it from which a pixel is learned as such.
    memories: those that are used, see TargetModel. size: short side in pixels of the scaled frames.
    """

    encoder: str = "efficientnet_lite0"
    key: int = 64
    trunk: int = 64
    hidden: int = 128
    channels: int = 48
    inside: int = 512
    outside: int = 1024
    reach: float = 0.35
    ridge: float = 0.01
    rate: float = 0.15
    trust: float = 0.5
    span: int = 48
    doubt: float = 0.3
    near: float = 0.25
    widen: float = 0.12
    edge: float = 0.55
    keep: float = 0.3
    memories: tuple[str, ...] = ("target", "given", "last", "past")
    size: int = 320

    def __post_init__(self) -> None:
        check_numbers(self, "target")
        object.__setattr__(self, "memories", tuple(self.memories))  # a list where it was read from a file
        if not self.memories or any(memory not in MEMORIES for memory in self.memories):
            raise ConfigError(f"target: memories are {self.memories}, expected some of {', '.join(MEMORIES)}")
        if self.channels % 8 or self.rate > 1:
            raise ConfigError(
                f"target: channels must be a multiple of 8 and rate at most 1, got {self.channels} and {self.rate}"
            )


class Maps(NamedTuple):
    """Features of n frames. quarter [n, C, H/4, W/4], eighth [n, C', H/8, W/8]: features for contours. keys [n, N, D]
    of length 1 and basis [n, N, 1 + hidden], for each token of the grid of an eighth. view [n, 4]: the visible part of
    the frame, see Propagator; part bool [n]: whether it is not the whole frame."""

    quarter: Tensor
    eighth: Tensor
    keys: Tensor
    basis: Tensor
    view: Tensor
    part: Tensor


class _TargetFields(NamedTuple):
    given_keys: Tensor
    last_keys: Tensor
    past_keys: Tensor
    given_gram: Tensor
    last_gram: Tensor
    given_moment: Tensor
    last_moment: Tensor
    learned: Tensor
    box: Tensor
    missed: Tensor
    seen: Tensor


class TargetState(ObjectState, _TargetFields):
    """The state of each stream; its size depends neither on the number of frames nor on their size.

    given_keys, last_keys, past_keys: [B, O, inside + outside, D + 3] keys of each object and of its surroundings, of
    the frame in which it was given, of the last one and of frames between, each with its position (y, x) in short sides
    and whether it exists. given_gram, last_gram: [B, O, C, C] and given_moment, last_moment: [B, O, C, SCORES]: the
    normal equations of the target model, from the frame in which the object was given and from those after it.
    learned: [B, O] frames that were learned since, counted modulo TURNS. box: [B, O, 4] top, left, bottom and right of
    the object where it was learned last, in short sides from the middle of the frame; missed: [B, O] frames since, at
    most TURNS. seen: [B, O] 1 after it was given.
    """

    __slots__ = ()


class TargetModel(Propagator[TargetState]):
    """Mask propagation with four memories of each object; a network computes contours from their scores.

    1. The target model w is the inner model: a linear map of learned features z_j of the tokens, whose inner loss is

        l(w) = sum_j a_j |w z_j - t_j|^2 + trust * sum_i (1 - rate)^i rate sum_j a_ij |w z_ij - t_ij|^2 + ridge |w|^2

       with t = 2 m - 1 for the share m of the object in a token, and beside it a learned code of the mask around the
       token (`Encoding`); a the weights that make object and surroundings count the same, the first sum over the frame
       in which the object was given, kept for ever, the second over the frames since, i frames ago, with the masks that
       were found and a times |2 m - 1|, how sure they are. It is solved exactly in each frame: recursive least squares
       with forgetting.
    2. Keys of the object and of its surroundings in the frame in which it was given; the score of a token is its
       largest similarity to them.
    3. The same for the last frame, where distant keys count less.
    4. The same for the frames between: some keys of each frame replace the oldest ones.

    The network also predicts the overlap of its masks. An object is not learned in a frame in which it is not found or
    its predicted overlap is low. `near`, `widen`, `edge` and `keep` are not used in training.
    """

    FORMAT = "tttstream.target/2"
    CONFIG = TargetConfig
    USE = "track VIDEO --first-mask MASK.png"
    CELL = CELL
    VIEWS = True
    FITS = True
    SETTINGS = (
        "inside",
        "outside",
        "reach",
        "ridge",
        "rate",
        "trust",
        "span",
        "doubt",
        "near",
        "widen",
        "memories",
        "size",
    )
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
        self.trunk = nn.Sequential(nn.Conv2d(seen, config.trunk, 1), nn.ReLU(), Residual(config.trunk))
        self.basis = nn.Linear(seen + config.trunk, config.hidden)
        self.warmth = nn.Parameter(torch.tensor(3.0))
        self.encoding = Encoding()
        self.contour = TargetContour(seen + config.trunk, widths[0], config.channels)
        self.memories = config.memories

    def only(self, *memories: str) -> TargetModel:
        """The same weights with some of the memories, for comparisons: "target", "given", "last", "past", numbers 1 to
        4 above.

        In training, memories were left out at random, so the contours work without some of them.
        """
        other = copy.copy(self)
        other.memories = memories
        return other

    @torch.no_grad()
    def prepare(self, frames: Tensor) -> None:
        """Before training: load the encoder's pretrained weights, and scale features by those of frames [n, 3, H, W] in
        0..1. The first keys are their principal components, with more weight for finer maps."""
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
        config = self.config
        kind = torch.float64 if self.dtype == torch.float64 else torch.float32
        zeros = partial(torch.zeros, batch, objects, dtype=kind, device=self.warmth.device)
        keys, width = (config.inside + config.outside, config.key + 3), config.hidden + 1
        grams, moments = (width, width), (width, SCORES)
        every = (keys, keys, keys, grams, grams, moments, moments, (), (4,), (), ())
        return TargetState._make(zeros(*shape) for shape in every)

    def encoded(self, frames: Tensor, offset: Tensor | None = None, view: Tensor | None = None) -> Maps:
        """Features of frames [n, 3, H, W] in 0..1."""
        part = torch.full((len(frames),), view is not None, device=frames.device)
        if view is None:
            kind = torch.float64 if self.dtype == torch.float64 else torch.float32
            view = torch.tensor(whole(*frames.shape[-2:]), dtype=kind, device=frames.device).expand(len(frames), -1)
        quarter, eighth, sixteenth = self.encoder(frames)
        return self.seen(quarter, eighth, sixteenth, view, part)

    def compared(self, frames: Tensor) -> Tensor:
        return torch.cat([self.encoded(frame[None]).keys for frame in frames])

    def seen(self, quarter: Tensor, eighth: Tensor, sixteenth: Tensor, view: Tensor, part: Tensor) -> Maps:
        """The same from the encoder's maps."""
        x = (self._together(quarter, eighth, sixteenth) - self.centre[:, None, None]) / self.spread[:, None, None]
        every = torch.cat([x, self.trunk(x)], 1)
        basis = F.relu(self.basis(every.flatten(2).mT))
        width = quarter.shape[1]
        fine = (quarter - self.centre[:width, None, None]) / self.spread[:width, None, None]
        keys = F.normalize(self.key(x.flatten(2).mT), dim=2)
        return Maps(fine, every, keys, torch.cat([torch.ones_like(basis[..., :1]), basis], 2), view, part)

    @staticmethod
    def _together(quarter: Tensor, eighth: Tensor, sixteenth: Tensor) -> Tensor:
        """All maps side by side at an eighth of the size."""
        height, width = eighth.shape[-2:]
        return torch.cat(
            [F.adaptive_avg_pool2d(quarter, (height, width)), eighth, resized(sixteenth, (height, width))], 1
        )

    def _frame(
        self,
        features: Maps,
        state: TargetState,
        masks: Tensor | None,
        given: Tensor,
        forced: Tensor | None,
        learn: bool,
    ) -> tuple[MaskOutput, TargetState]:
        known = state.seen > 0
        fine, guess, fit = self.found(features, state)
        edge = 0.0 if self.training else self.config.edge
        edge = edge * torch.where(features.part, PART, 1.0).to(fine)[:, None, None, None]
        kept = edge * self.config.keep
        fine = torch.where(known[..., None, None], fine - edge, -SURE)
        fit = torch.where(given, SURE, torch.where(known, fit, -SURE))
        whole = F.interpolate(fine, scale_factor=float(FINE), mode="bilinear")
        told = together(fine + edge - kept).softmax(1)[:, 1:].detach()
        told = torch.where(known[..., None, None], told, 0.0)
        if masks is not None:
            whole = torch.where(given[..., None, None], (2 * masks - 1) * SURE, whole)
            true = given if forced is None else given | forced[:, None]
            pooled = F.avg_pool2d(masks, FINE).to(told)
            free = 1 - torch.where(true[..., None, None], pooled, 0.0).sum(1, keepdim=True)
            told = torch.where(true[..., None, None], pooled, told * free.clamp(min=0))
        surely = fit.detach().sigmoid() > self.config.doubt
        state = self._learned(features, state, told, given, known & surely if learn else given)
        return MaskOutput(together(whole), guess, fit), state

    def found(self, features: Maps, state: TargetState) -> tuple[Tensor, Tensor, Tensor]:
        """Log-odds of every object by itself [B, O, H/4, W/4], those of the target model [B, O, H/8, W/8], and those of
        the expected overlap [B, O]."""
        cues = self.cues(features, state)
        fine, fit = self.contour(cues, features.eighth, features.quarter)
        if not self.training:
            fine = fine - self._far(fine, features.view, state)
        return fine, 3 * cues[:, :, 0], fit

    def _far(self, fine: Tensor, view: Tensor, state: TargetState) -> Tensor:
        """A penalty on log-odds [B, O, H/4, W/4] that grows with the distance from the object's possible positions."""
        height, width = fine.shape[-2:]
        at = places(height, width, view)[:, None]
        outside = torch.maximum(state.box[:, :, None, :2] - at, at - state.box[:, :, None, 2:]).clamp(min=0)
        free = self.config.near + self.config.widen * state.missed
        far = STEEP * (outside.square().sum(3).sqrt() - free[:, :, None]).clamp(min=0)
        return far.unflatten(2, (height, width)).to(fine.dtype)

    def cues(self, features: Maps, state: TargetState) -> Tensor:
        """Scores of the memories for each token, [B, O, CUES, H/8, W/8]: the target model's scores; similarities to the
        object and to its surroundings (with other objects) in the given frame, in the last one and in the past. Those
        of memories that are not used are 0."""
        height, width = features.eighth.shape[-2:]
        kind = state.seen.dtype
        keys, warmth = features.keys.to(kind), self.warmth.exp().to(kind)
        at = places(height, width, features.view.to(kind))
        scores = keys.new_zeros(len(keys), state.objects, SCORES, keys.shape[1])
        if "target" in self.memories:
            basis = features.basis.to(kind)[:, None]
            scores = (basis @ self.target(state)).mT.clamp(-3, 3)
        found = {"target": scores}
        for memory, kept in (("given", state.given_keys), ("last", state.last_keys), ("past", state.past_keys)):
            if memory in self.memories:
                near = at if memory == "last" else None
                found[memory] = torch.stack(alike(keys, kept, self.config.inside, warmth, near, self.config.reach), 2)
            else:
                found[memory] = torch.zeros_like(scores[:, :, :2])
        return torch.cat([*found.values()], 2).to(features.keys.dtype).unflatten(3, (height, width))

    def target(self, state: TargetState) -> Tensor:
        """The weights of the target model [B, O, 1 + hidden, SCORES]: the least squares of what was learned."""
        config = self.config
        gram = state.given_gram + config.trust * state.last_gram
        moment = state.given_moment + config.trust * state.last_moment
        ridge = config.ridge * torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        return torch.linalg.solve_ex(gram + ridge, moment)[0]  # numbers that are not finite reach no other row

    def _learned(self, features: Maps, state: TargetState, told: Tensor, given: Tensor, learn: Tensor) -> TargetState:
        """The state after a frame with masks `told` [B, O, H/4, W/4]: given [B, O] ones are kept, those of `learn` [B,
        O] are learned if they are in view."""
        kind, config = state.seen.dtype, self.config
        target, share = self.encoding(told.to(features.keys)).to(kind), F.avg_pool2d(told.to(kind), 2).flatten(2)
        basis = features.basis.to(kind)
        at = places(features.eighth.shape[-2], features.eighth.shape[-1], features.view.to(kind))
        keys = torch.cat([features.keys.to(kind), at], 2)
        balance = 0.5 * share / share.sum(2, keepdim=True).clamp(min=1)
        balance = balance + 0.5 * (1 - share) / (1 - share).sum(2, keepdim=True).clamp(min=1)
        balance = torch.where(given[..., None], balance, balance * (2 * share - 1).abs())
        gram = (basis.mT[:, None] * balance[:, :, None]) @ basis[:, None]  # [B, O, C, C], summed over the tokens
        moment = (target * balance[:, :, None] @ basis[:, None]).mT
        margin = torch.where(given, 0.0, MARGIN)[..., None]
        inside, outside = share > 0.5 + margin, share <= 0.5 - margin
        inside = inside | (share > 0.5) & ~inside.any(2, keepdim=True)  # a small object has no sure token
        kept = torch.cat([drawn(keys, inside, config.inside), drawn(keys, outside, config.outside)], 2)
        goes_on = learn & inside.any(2) & ~given
        past = self._past(keys, inside, outside, state)
        rate = config.rate
        here = partial(_where, given)
        later = partial(_where, goes_on)
        return TargetState(
            here(kept, state.given_keys),
            _where(given | goes_on, kept, state.last_keys),
            here(torch.zeros_like(past), later(past, state.past_keys)),
            here(gram, state.given_gram),
            here(torch.zeros_like(gram), later((1 - rate) * state.last_gram + rate * gram, state.last_gram)),
            here(moment, state.given_moment),
            here(torch.zeros_like(moment), later((1 - rate) * state.last_moment + rate * moment, state.last_moment)),
            here(torch.zeros_like(state.learned), (state.learned + goes_on) % TURNS),
            _where(given | goes_on, _box(at, share > 0.5), state.box),
            torch.where(given | goes_on, 0.0, (state.missed + 1).clamp(max=TURNS)),
            torch.where(given, 1.0, state.seen),
        )

    def _past(self, keys: Tensor, inside: Tensor, outside: Tensor, state: TargetState) -> Tensor:
        """Past keys, the oldest replaced by some keys of this frame."""
        parts = []
        old = state.past_keys.split([self.config.inside, self.config.outside], 2)
        for before, chosen in zip(old, (inside, outside), strict=True):
            room = before.shape[2]
            count = -(-room // self.config.span)
            new = drawn(keys, chosen, count, state.learned)
            place = (state.learned[..., None].long() * count + torch.arange(count, device=keys.device)) % room
            places = place[..., None].expand(*new.shape)
            now = before.scatter(2, places, new)
            parts.append(torch.where(chosen.any(2)[..., None, None], now, before))
        return torch.cat(parts, 2)


def _box(at: Tensor, inside: Tensor) -> Tensor:
    """The box [B, O, 4] around those of the places [B, N, 2] that are inside [B, O, N]."""
    there, at = inside[..., None], at[:, None]
    low = torch.where(there, at, torch.inf).amin(2)
    high = torch.where(there, at, -torch.inf).amax(2)
    return torch.cat([low, high], 2).nan_to_num(0.0, 0.0, 0.0)


def _where(objects: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """Object by object: the new values where `objects` [B, O] is true, the old ones elsewhere."""
    return torch.where(objects.view(*objects.shape, *[1] * (new.dim() - 2)), new, old)

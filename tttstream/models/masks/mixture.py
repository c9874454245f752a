"""MixtureModel: masks by a mixture of keys and masks, learned online by steps of expectation-maximisation."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream.errors import ConfigError, ShapeError
from tttstream.models.base import check_numbers
from tttstream.models.masks.networks import STRIDE, Contour, FeatureNetwork, Features
from tttstream.models.masks.propagator import SURE, MaskOutput, ObjectState, Propagator, moments, together

Inner = tuple[Tensor, Tensor, Tensor]
"""The inner model's weights: slots, says and mass of MixtureState."""


@dataclass(frozen=True)
class MixtureConfig:
    """The shape of the networks, the options of the mixture, and the size of the input.

    width: channels of the features at a quarter of the size. heads, head_width: number of keys side by side, and their
    width. placed: the number of heads that see the position of a token. depth: residuals at each of the encoder's two
    coarsest scales. contour: channels of the network for contours, 0 for none. slots: components of the mixture.
    sharpness, agreement: weights of the similarity of keys, and of masks. patience: the weight of a component's past,
    in tokens, when it learns a frame. prior: the weight of the number of tokens that it learned; 1 as in a mixture
    weighted by shares. power: the exponent of predicted shares. first: steps on a given mask. size: short side in
    pixels of the scaled frames.
    """

    width: int = 48
    heads: int = 4
    head_width: int = 48
    placed: int = 2
    depth: int = 1
    contour: int = 0
    slots: int = 768
    sharpness: float = 20.0
    agreement: float = 10.0
    patience: float = 0.1
    prior: float = 0.5
    power: float = 1.5
    first: int = 2
    size: int = 160

    def __post_init__(self) -> None:
        check_numbers(self, "mixture", contour=0)
        if self.width % 8 or self.contour % 8 or self.placed >= self.heads:
            raise ConfigError(
                "mixture: width and contour must be multiples of 8 and placed less than heads, got "
                f"width={self.width}, contour={self.contour}, placed={self.placed}, heads={self.heads}"
            )


class _MixtureFields(NamedTuple):
    slots: Tensor
    says: Tensor
    mass: Tensor
    seen: Tensor
    middle: Tensor
    spread: Tensor


class MixtureState(ObjectState, _MixtureFields):
    """The state of each stream; its size depends neither on the number of frames nor on their size.

    slots: [B, M, heads * D] the keys of the components, of length 1. says: [B, M, O] the share of each object in a
    component. mass: [B, M] the number of tokens that it learned last, including its past. seen: [B, O] 1 after the
    object was given. middle, spread: [B, heads * D] mean and deviation of the keys of the first frame, or of the frame
    in which the first object was given.
    """

    __slots__ = ()

    def without(self, number: int) -> MixtureState:
        says = self.says.clone()
        says[:, :, number] = 0
        return super().without(number)._replace(says=says)


class MixtureModel(Propagator[MixtureState]):
    """Mask propagation with a mixture of M Gaussians over keys k (of length 1) and masks v as the inner model.

    Its weights are the means (P, V) and the masses n, and its inner loss at given masses is the negative
    log-likelihood of a frame's tokens,

        l(P, V) = -sum_j log sum_m n_m^b exp(-s/2 |k_j - P_m|^2 - a/2 |v_j - V_m|^2).

    The read-out at k is the mean of v given k, softmax_m(s k P_m + b log n_m) V: matching with M components instead of
    all earlier tokens. With r_jm the share of component m in token j, the gradient of l at P_m is
    -s sum_j r_jm (k_j - P_m); a frame's step goes along it at the rate 1 / (s (c + sum_j r_jm)), which makes

        P_m <- (c P_m + sum_j r_jm k_j) / (c + sum_j r_jm),

    scaled to length 1, and V_m in the same way; the denominator is the new n_m. A component's past has the weight of c
    tokens (online EM, Cappé and Moulines, arXiv 0712.4273). A component without similar tokens does not change.

    If a mask is given, the components are replaced by tokens of that frame, drawn from each object and from the
    background, with the given masks, and the predicted masks of the other objects.
    """

    FORMAT = "tttstream.mixture/1"
    CONFIG = MixtureConfig
    USE = "track VIDEO --first-mask MASK.png"
    CELL = STRIDE
    SETTINGS = ("slots", "sharpness", "agreement", "patience", "prior", "power", "first", "size")

    def __init__(self, config: MixtureConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = FeatureNetwork(config.width, config.heads, config.head_width, config.placed, config.depth)
        self.contour = Contour(config.width, config.contour) if config.contour else None

    def init_state(self, batch: int, objects: int = 1, slots: int | None = None) -> MixtureState:
        """See Propagator. slots: the number of components, by default that of the configuration. No weight depends on
        it."""
        config = self.config
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        zeros = partial(torch.zeros, dtype=dtype, device=next(self.parameters()).device)
        width, slots = config.heads * config.head_width, config.slots if slots is None else slots
        return MixtureState(
            zeros(batch, slots, width),
            zeros(batch, slots, objects),
            zeros(batch, slots),
            zeros(batch, objects),
            zeros(batch, width),
            zeros(batch, width),
        )

    def encoded(self, frames: Tensor, offset: Tensor | None = None, view: Tensor | None = None) -> Features:
        if view is not None:
            raise ShapeError("mixture: it needs whole frames, got parts of them (view)")
        features: Features = self.encoder(frames, offset)
        return features

    def compared(self, frames: Tensor) -> Tensor:
        raw = torch.cat([self.encoder(frame[None], None).keys for frame in frames])
        first = moments(raw[:1])
        return torch.cat([F.normalize(self.centred(keys[None], *first).flatten(2), dim=2) for keys in raw])

    def _frame(
        self,
        features: Features,
        state: MixtureState,
        masks: Tensor | None,
        given: Tensor,
        forced: Tensor | None,
        learn: bool,
    ) -> tuple[MaskOutput, MixtureState]:
        known, begins = state.seen > 0, given.any(1)
        grid, kind = features.coarse.shape[-2:], state.slots.dtype
        inner = state.slots, state.says, state.mass
        with torch.autocast(features.keys.device.type, enabled=False):
            raw = features.keys.to(kind)
            middle, spread = self.measured(raw, state.middle, state.spread, begins & ~known.any(1))
            keys = self.centred(raw, middle, spread).flatten(2) / state.slots.shape[2] ** 0.5
            near = keys @ state.slots.mT
            alike = self._alike(near, state.mass)
            share = alike.softmax(2) @ state.says
            guess = torch.where(known[:, None], share.clamp(1e-6, 1 - 1e-6).logit(), -SURE).mT.unflatten(2, grid)
            found = self._sharpened(share)
        fine, told = self._drawn(found, near, features)
        fine = torch.where(known[..., None, None], fine, -SURE)
        told = torch.where(known[:, None], told.detach(), 0.0)
        if masks is not None:
            fine = torch.where(given[..., None, None], (2 * masks - 1) * SURE, fine)
            true = given if forced is None else given | forced[:, None]
            pooled = F.avg_pool2d(masks, STRIDE).flatten(2).mT.to(kind)
            free = 1 - torch.where(true[:, None], pooled, 0.0).sum(2, keepdim=True)
            told = torch.where(true[:, None], pooled, told * free.clamp(min=0))
        with torch.autocast(keys.device.type, enabled=False):
            if learn:
                inner = _where(known.any(1), self._learned(keys, told, *inner, alike), inner)
            if masks is not None and bool(begins.any()):
                fresh = self._begun(keys, told, state.slots.shape[1])
                for _ in range(self.config.first):
                    fresh = self._learned(keys, told, *fresh)
                inner = _where(begins, fresh, inner)
        seen = torch.where(given, 1.0, state.seen)
        return MaskOutput(together(fine), guess), MixtureState(*inner, seen, middle, spread)

    def _drawn(self, found: Tensor, near: Tensor, features: Features) -> tuple[Tensor, Tensor]:
        """Log-odds [B, O, H, W] for the predicted shares [B, N, O] of tokens, and the shares to learn [B, N, O]."""
        picture = found.mT.unflatten(2, features.coarse.shape[-2:])
        if self.contour is None:
            share = F.interpolate(picture, scale_factor=float(STRIDE), mode="bilinear")
            return share.clamp(1e-6, 1 - 1e-6).logit(), found
        best = near.amax(2)[:, None].unflatten(2, picture.shape[-2:])
        fine = self.contour(picture, best, features)
        with torch.no_grad():
            told = F.avg_pool2d(together(fine).softmax(1)[:, 1:], STRIDE // 2).flatten(2).mT.to(found.dtype)
        return F.interpolate(fine, scale_factor=2.0, mode="bilinear"), told

    def _sharpened(self, share: Tensor) -> Tensor:
        """Shares of objects [B, N, O], raised to a power together with the background's and normalised to sum 1.
        Otherwise masks that are learned from predictions would blur from frame to frame."""
        every = torch.cat([1 - share.sum(2, keepdim=True), share], 2).clamp(min=1e-6) ** self.config.power
        return (every / every.sum(2, keepdim=True))[:, :, 1:]

    def _begun(self, keys: Tensor, told: Tensor, slots: int) -> Inner:
        """New components at tokens: half are drawn uniformly from all tokens, half equally from the background and each
        object.

        The draw depends only on the positions and shares of tokens, so that a stream is repeatable bit for bit.
        """
        classes = torch.cat([1 - told.sum(2, keepdim=True), told], 2)
        mine = F.one_hot(classes.argmax(2), classes.shape[2]).to(told.dtype)
        counts = mine.sum(1, keepdim=True)
        part = (mine / counts.clamp(min=1)).sum(2) / (counts > 0).sum(2)
        tokens = keys.shape[1]
        luck = torch.rand(tokens, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(min=1e-9)
        drawn = (luck.log().to(told) / (0.5 / tokens + 0.5 * part)).argsort(dim=1, descending=True, stable=True)
        drawn = drawn[:, torch.arange(slots, device=keys.device) % tokens, None]
        means, says = (x.gather(1, drawn.expand(-1, -1, x.shape[2])) for x in (keys, told))
        return means, says, torch.ones_like(means[..., 0])

    def _alike(self, near: Tensor, mass: Tensor) -> Tensor:
        """[B, N, M] log-likelihood of each token's key in each component, up to a constant of the token."""
        return self.config.sharpness * near + self.config.prior * mass.clamp(min=self.config.patience).log()[:, None]

    def _learned(
        self, keys: Tensor, told: Tensor, slots: Tensor, says: Tensor, mass: Tensor, alike: Tensor | None = None
    ) -> Inner:
        """The components after one step; see the class. alike: their `_alike`, if it is already known.

        Gradients pass through the means and not through the shares of the components in the tokens: at the best shares
        the likelihood does not change with them (the E step of expectation-maximisation).
        """
        config = self.config
        with torch.no_grad():
            alike = self._alike(keys @ slots.mT, mass) if alike is None else alike
            agree = config.agreement * (told @ says.mT - 0.5 * says.square().sum(2)[:, None])
            share = (alike + agree).softmax(2)
        mass = config.patience + share.sum(1)
        slots = F.normalize((config.patience * slots + share.mT @ keys) / mass[..., None], dim=2)
        return slots, (config.patience * says + share.mT @ told) / mass[..., None], mass


def _where(rows: Tensor, new: Inner, old: Inner) -> Inner:
    """Row by row: the new weights where `rows` [B] is true, the old ones elsewhere."""
    slots, says, mass = (torch.where(rows.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(new, old, strict=True))
    return slots, says, mass

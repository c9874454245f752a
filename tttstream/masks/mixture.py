"""MixtureModel: masks by a mixture of keys and masks, learned online by steps of expectation-maximisation."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tttstream.errors import ShapeError
from tttstream.masks.model import MaskModel
from tttstream.masks.networks import STRIDE, Encoder, Features
from tttstream.masks.propagator import SURE, ObjectState, Propagator, PropagatorConfig, together

Inner = tuple[Tensor, Tensor, Tensor]
"""The inner model's weights: slots, says and mass of MixtureState."""


@dataclass(frozen=True)
class MixtureConfig(PropagatorConfig):
    """The encoder's shape (see PropagatorConfig), and how the mixture learns.

    slots: components of the mixture. sharpness, agreement: how much likeness of keys, and of masks, counts. patience:
    as how many tokens a component's past counts when it learns a frame. prior: how much the number of tokens that it
    learned counts, 1 as in a mixture weighed by shares. power: what found shares are raised to. first: steps over a
    given mask.
    """

    slots: int = 768
    sharpness: float = 20.0
    agreement: float = 10.0
    patience: float = 0.1
    prior: float = 0.5
    power: float = 1.5
    first: int = 2

    NAME: ClassVar[str] = "mixture"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("sharpness", "agreement", "patience", "prior", "power"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < float("inf"):
                raise ShapeError(f"{self.NAME}: {name} must be a number above 0, got {value!r}")


class _MixtureFields(NamedTuple):
    slots: Tensor
    says: Tensor
    mass: Tensor
    seen: Tensor
    middle: Tensor
    spread: Tensor


class MixtureState(ObjectState, _MixtureFields):
    """What is remembered of each stream; its size depends neither on the frames nor on their size.

    slots: [B, M, heads * D] where the components lie among the keys, of length 1. says: [B, M, O] each object's share
    of a component. mass: [B, M] how many tokens it learned last, its past among them. seen, middle, spread: as in
    MaskState.
    """

    __slots__ = ()


class MixtureModel(Propagator[MixtureState]):
    """Mask propagation with a mixture of M Gaussians over keys k (of length 1) and masks v as the inner model.

    Its weights are the means (P, V) and the masses n, and its inner loss at given masses is the negative
    log-likelihood of a frame's tokens,

        l(P, V) = -sum_j log sum_m n_m^b exp(-s/2 |k_j - P_m|^2 - a/2 |v_j - V_m|^2).

    Asked for v at k it answers with the mean of v given k, softmax_m(s k P_m + b log n_m) V: matching, with M places
    in place of all tokens that were seen. With r_jm the share of component m in token j, the gradient of l at P_m is
    -s sum_j r_jm (k_j - P_m); a frame's step goes along it at the rate 1 / (s (c + sum_j r_jm)), which makes

        P_m <- (c P_m + sum_j r_jm k_j) / (c + sum_j r_jm),

    put back to length 1, and likewise V_m; the denominator is the new n_m. A component's past counts as c tokens do
    (online EM, Cappé and Moulines, arXiv 0712.4273). A component that no token is like stays where it is.

    Where a mask is given the components begin anew, as tokens of that frame drawn so that each object and the
    background have their part, with the masks given and those found of the other objects.
    """

    def __init__(self, config: MixtureConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.width, config.heads, config.head_width, config.placed)

    @classmethod
    def of(cls, model: MaskModel) -> MixtureModel:
        """The mixture over the keys of a trained mask model, which it shares the encoder with."""
        values = {field.name: getattr(model.config, field.name) for field in fields(PropagatorConfig)}
        mixture = cls(MixtureConfig(**values)).to(model.dtype)
        mixture.encoder = model.encoder
        return mixture.train(model.training)

    def init_state(self, batch: int, objects: int = 1) -> MixtureState:
        """See Propagator."""
        config = self.config
        dtype = torch.float64 if self.dtype == torch.float64 else torch.float32
        zeros = partial(torch.zeros, dtype=dtype, device=next(self.parameters()).device)
        width = config.heads * config.head_width
        return MixtureState(
            zeros(batch, config.slots, width),
            zeros(batch, config.slots, objects),
            zeros(batch, config.slots),
            zeros(batch, objects),
            zeros(batch, width),
            zeros(batch, width),
        )

    def _frame(
        self,
        features: Features,
        state: MixtureState,
        masks: Tensor | None,
        given: Tensor,
        taught: Tensor | None,
        learn: bool,
    ) -> tuple[Tensor, Tensor, MixtureState]:
        known = state.seen > 0
        grid = features.coarse.shape[-2:]
        middle, spread = self.measured(features.keys, state.middle, state.spread, given.any(1) & ~known.any(1))
        keys = F.normalize(self.centred(features.keys, middle, spread).flatten(2), dim=2)
        alike = self._alike(keys, state.slots, state.mass)
        found = self._sharpened(alike.softmax(2) @ state.says)
        guess = torch.where(known[:, None], found.clamp(1e-6, 1 - 1e-6).logit(), -SURE).mT.unflatten(2, grid)
        share = F.interpolate(found.mT.unflatten(2, grid), scale_factor=float(STRIDE), mode="bilinear")
        logits = torch.where(known[..., None, None], share.clamp(1e-6, 1 - 1e-6).logit(), -SURE)
        told = torch.where(known[:, None], found.detach(), 0.0)
        if masks is not None:
            logits = torch.where(given[..., None, None], (2 * masks - 1) * SURE, logits)
            true = given if taught is None else given | taught[:, None]
            pooled = F.avg_pool2d(masks, STRIDE).flatten(2).mT.to(told.dtype)
            free = 1 - torch.where(true[:, None], pooled, 0.0).sum(2, keepdim=True)
            told = torch.where(true[:, None], pooled, told * free.clamp(min=0))
        inner = state.slots, state.says, state.mass
        begins = given.any(1)
        if masks is not None:
            inner = _where(begins, self._begun(keys.to(told.dtype), told), inner)
        for step in range(1 if masks is None else self.config.first):
            learns = begins | known.any(1) if learn and step == 0 else begins
            new = self._learned(keys, told, *inner, alike if masks is None else None)
            inner = _where(learns, new, inner)
        seen = torch.where(given, 1.0, state.seen)
        return together(logits), guess, MixtureState(*inner, seen, middle, spread)

    def _sharpened(self, share: Tensor) -> Tensor:
        """Shares of objects [B, N, O], raised to a power with the background's and made to sum to 1 again: what is
        learned from what was found would otherwise blur from frame to frame."""
        every = torch.cat([1 - share.sum(2, keepdim=True), share], 2).clamp(min=1e-6) ** self.config.power
        return (every / every.sum(2, keepdim=True))[:, :, 1:]

    def _begun(self, keys: Tensor, told: Tensor) -> Inner:
        """Components that are tokens: half of them drawn from all alike, half from background and objects alike.

        The draw depends on a token's place and what it shows alone, so that a stream repeats bit for bit.
        """
        classes = torch.cat([1 - told.sum(2, keepdim=True), told], 2)
        mine = F.one_hot(classes.argmax(2), classes.shape[2]).to(told.dtype)
        counts = mine.sum(1, keepdim=True)
        part = (mine / counts.clamp(min=1)).sum(2) / (counts > 0).sum(2)
        tokens = keys.shape[1]
        luck = torch.rand(tokens, generator=torch.Generator().manual_seed(0), dtype=torch.float64).clamp(min=1e-9)
        drawn = (luck.log().to(told) / (0.5 / tokens + 0.5 * part)).argsort(dim=1, descending=True, stable=True)
        drawn = drawn[:, torch.arange(self.config.slots, device=keys.device) % tokens, None]
        slots, says = (x.gather(1, drawn.expand(-1, -1, x.shape[2])) for x in (keys, told))
        return slots, says, torch.ones_like(slots[..., 0])

    def _alike(self, keys: Tensor, slots: Tensor, mass: Tensor) -> Tensor:
        """[B, N, M] log-likelihood of each token's key in each component, up to a constant of the token."""
        near = self.config.sharpness * (keys @ slots.to(keys.dtype).mT)
        prior = self.config.prior * mass.clamp(min=self.config.patience).log()
        return near.to(mass.dtype) + prior[:, None]

    def _learned(
        self, keys: Tensor, told: Tensor, slots: Tensor, says: Tensor, mass: Tensor, alike: Tensor | None = None
    ) -> Inner:
        """The components after one step; see the class. alike: what `_alike` gives for them, where it is known."""
        config = self.config
        agree = config.agreement * (told @ says.mT - 0.5 * says.square().sum(2)[:, None])
        share = ((self._alike(keys, slots, mass) if alike is None else alike) + agree).softmax(2)
        mass = config.patience + share.sum(1)
        slots = config.patience * slots + (share.to(keys.dtype).mT @ keys).to(slots.dtype)
        says = (config.patience * says + share.mT @ told) / mass[..., None]
        return F.normalize(slots / mass[..., None], dim=2), says, mass


def _where(rows: Tensor, new: Inner, old: Inner) -> Inner:
    """Row by row: the new weights where `rows` [B] is true, the old ones elsewhere."""
    slots, says, mass = (torch.where(rows.view(-1, *[1] * (a.dim() - 1)), a, b) for a, b in zip(new, old, strict=True))
    return slots, says, mass

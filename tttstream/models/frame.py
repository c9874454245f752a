"""FrameModel: predicts the next frame, an embedding and the surprise of each frame with a memory that learns."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tttstream.errors import ConfigError, StateError
from tttstream.models.backbone import Backbone, Losses, ModelState
from tttstream.models.base import SavedModel, check_frames, check_numbers
from tttstream.models.heads import Embedding, NextFrame
from tttstream.models.motion import Costs, Motion, Past
from tttstream.models.tokens import PatchTokens
from tttstream.state import exportable


@dataclass(frozen=True)
class ModelConfig:
    """The options that determine the shape of a model.

    size: side of the square picture in pixels. patch: side of a patch. dim, depth, heads: width, blocks, heads of the
    backbone. memory: a name of `tttstream.memory.build`, options: its other options. registers: additional tokens, and
    only these pass through the memory; with 0 all patches pass through it. mlp_ratio: width of the MLP divided by dim.
    motion: the range in pixels of the search for each patch in the frame before, for a prediction that shifts the
    picture (see `Motion`); 0 disables it. surprise: the number of blocks, from the first on, whose losses are the
    surprise (less than depth); the features of motion are inputs of the other blocks only. 0 uses all blocks.
    """

    size: int = 128
    patch: int = 8
    dim: int = 128
    depth: int = 4
    heads: int = 4
    memory: str = "ttt_linear"
    registers: int = 0
    mlp_ratio: int = 4
    options: dict[str, Any] = field(default_factory=dict)
    motion: int = 0
    surprise: int = 0

    def __post_init__(self) -> None:
        check_numbers(self, "model", registers=0, motion=0, surprise=0)
        if self.motion and self.patch % 2:
            raise ConfigError(f"model: motion must be 0 or pixels, with an even patch; got {self.motion}, {self.patch}")
        if self.surprise >= self.depth:
            raise ConfigError(f"model: surprise must be from 0 to below depth, {self.depth}; got {self.surprise!r}")
        if self.motion and self.registers:
            raise ConfigError(f"model: motion needs registers=0, got motion={self.motion}, registers={self.registers}")
        if self.size % self.patch != 0:
            raise ConfigError(f"model: size must be a multiple of the patch, {self.patch} pixels; got {self.size}")
        if self.dim % self.heads != 0:
            raise ConfigError(f"model: dim must be a multiple of heads, got dim={self.dim}, heads={self.heads}")

    @property
    def side(self) -> int:
        """Patches along one side of the picture."""
        return self.size // self.patch


@exportable
class Output(NamedTuple):
    """The output of a model for every frame. prediction: [B, T, 3, H, W] the next frame. embedding: [B, T, dim] with
    length 1. losses: inner loss of each token before and after it was learned, [B, T, N]; None for memories without
    one.
    """

    prediction: Tensor
    embedding: Tensor
    losses: Losses | None


class Seen(NamedTuple):
    """The input of a model's heads. patches: [B, T, N, dim]. costs: of shifts, from `Motion`; None without it. losses:
    see `Output`.
    """

    patches: Tensor
    costs: Costs | None
    losses: Losses | None


class Glance(NamedTuple):
    """The values of a frame for a stream: losses as in `Output`; an embedding [1, 1, dim], if requested; logits [1, 1,
    classes] of a classifier; a prediction [1, 1, 3, size, size] of the next frame, if requested.
    """

    losses: Losses | None
    embedding: Tensor | None
    logits: Tensor | None = None
    prediction: Tensor | None = None


class FrameModel(SavedModel):
    """Patch tokens, blocks of mixing inside the frame and memory over the stream, heads.

    Called as `output, state = model(frames, state=None, reset=None)` with frames [B, T, 3, size, size] in 0..1 (or
    uint8), reset bool [B, T]. Any partition of a stream into calls gives the results of one call.
    """

    FORMAT = "tttstream.model/1"
    CONFIG = ModelConfig

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.tokens = PatchTokens(config.size, config.patch, config.dim, config.registers)
        self.backbone = Backbone(
            config.dim, config.depth, config.heads, config.side, config.registers, config.memory, config.mlp_ratio,
            config.options, config.surprise,
        )  # fmt: skip
        self.motion = Motion(config.dim, config.patch, config.motion) if config.motion else None
        self.next_frame = NextFrame(config.dim, config.patch, 0.1 if config.motion else 1.0)
        self.embedding = Embedding(config.dim)

    def init_state(self, batch: int) -> ModelState:
        """A fresh state of `batch` streams, all zeros."""
        state = self.backbone.init_state(batch)
        return state if self.motion is None else state._replace(past=self.motion.init_past(batch, self.config.size))

    def forward(
        self, frames: Tensor, state: ModelState | None = None, reset: Tensor | None = None, *, learn: bool = True
    ) -> tuple[Output, ModelState]:
        """See the class; with `learn=False` the memory is read and not changed (a model with motion still compares each
        frame with the one before)."""
        frames = self.pixels(frames)
        seen, state = self.look(frames, state, reset, learn=learn)
        return Output(self._next(seen, frames), self.embedding(seen.patches), seen.losses), state

    def look(
        self, frames: Tensor, state: ModelState | None = None, reset: Tensor | None = None, *, learn: bool = True
    ) -> tuple[Seen, ModelState]:
        """`forward` without the heads, if no prediction is needed."""
        frames = self._checked(frames, state, reset)
        if state is not None and len(state.blocks) != self.config.depth:
            raise StateError(
                f"model: expected the state of {self.config.depth} blocks, got {len(state.blocks)}: what `watch` "
                "returns continues in `watch`"
            )
        costs, said, past = self._search(frames, state, reset)
        x, state, losses = self.backbone(self.tokens(frames), state, reset, learn, said)
        return Seen(x[:, :, : self.config.side**2], costs, losses), state._replace(past=past)

    def watch(
        self, frames: Tensor, state: ModelState | None = None, reset: Tensor | None = None, *, learn: bool = True
    ) -> tuple[Losses | None, ModelState]:
        """The losses of `forward`, computed with only the necessary blocks, if only the surprise is needed.

        If `surprise` excludes blocks, these do not run, and the state is smaller: that of `watched`.
        """
        frames = self._checked(frames, state, reset)
        state = None if state is None else self.watched(state)
        x = self.tokens(frames)
        past: Past | tuple[()] = ()
        if not self.config.surprise:
            _, said, past = self._search(frames, state, reset)
            x = x if said is None else x + said
        losses, state = self.backbone.watch(x, state, reset, learn)
        return losses, state._replace(past=past)

    def watched(self, state: ModelState) -> ModelState:
        """The part of a state that `watch` uses: the complete state, unless `surprise` excludes blocks."""
        kept = self.config.surprise
        return ModelState(state.blocks[:kept]) if kept else state

    def glance(
        self, frames: Tensor, state: ModelState, *, learn: bool, embed: bool, predict: bool = False
    ) -> tuple[Glance, ModelState]:
        """The values of frames [B, 1, 3, size, size] for a stream, without unused ones."""
        if not embed and not predict:
            losses, state = self.watch(frames, state, learn=learn)
            return Glance(losses, None), state
        frames = self.pixels(frames)
        seen, state = self.look(frames, state, learn=learn)
        embedding = self.embedding(seen.patches) if embed else None
        return Glance(seen.losses, embedding, prediction=self._next(seen, frames) if predict else None), state

    def _next(self, seen: Seen, frames: Tensor) -> Tensor:
        """The predictions of the next frames."""
        moved = frames
        if self.motion is not None and seen.costs is not None:
            moved = self.motion(seen.patches, seen.costs, frames)
        return self.next_frame(seen.patches, moved)

    @property
    def rows(self) -> int:
        """The number of rows of the surprise map."""
        return 1 if self.config.registers else self.config.side

    def _checked(self, frames: Tensor, state: ModelState | None, reset: Tensor | None) -> Tensor:
        """The frames as floats. Raises ShapeError for invalid arguments."""
        check_frames(frames, self.config.size, reset)
        if state is not None and not isinstance(state, ModelState):
            raise StateError(f"model: expected a ModelState, got {type(state).__name__}")
        return self.pixels(frames)

    def _search(
        self, frames: Tensor, state: ModelState | None, reset: Tensor | None
    ) -> tuple[Costs | None, Tensor | None, Past | tuple[()]]:
        """The costs of shifts, their features for the tokens, and the last frame; None without motion."""
        if self.motion is None:
            return None, None, ()
        past = self.motion.init_past(len(frames), self.config.size) if state is None else state.past
        if not isinstance(past, Past) or len(past.seen) != len(frames):
            raise StateError(f"model: expected the state of {len(frames)} rows of a model with motion")
        costs, past = self.motion.costs(frames, past, reset)
        return costs, self.motion.tokens(costs), past

    def pixels(self, frames: Tensor) -> Tensor:
        """Frames as floats in 0..1 with the type of the weights."""
        dtype = self.tokens.embed.weight.dtype
        return frames.to(dtype) / 255.0 if frames.dtype == torch.uint8 else frames.to(dtype)

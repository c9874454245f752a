"""One frame of a model as a module for export, with the state as input and output (`tttstream.io.exported`)."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from tttstream.errors import ConfigError
from tttstream.io import exported
from tttstream.io.exported import Step
from tttstream.models.base import SavedModel
from tttstream.models.features import FeatureModel
from tttstream.models.frame import FrameModel
from tttstream.models.masks import TargetModel
from tttstream.models.masks.networks import WHOLE
from tttstream.models.teach import CELL, TeachModel, windows
from tttstream.state import pack, unpack

SIDES = {TeachModel: (256, 448), TargetModel: (384, 384)}
"""Default height and width of the input picture of an exported model, by its class."""


def export(model: SavedModel, folder: str | os.PathLike[str], sides: tuple[int, int] | None = None) -> Path:
    """Write one frame of a model as step.pt2 (torch.export) and step.onnx, and its inputs and outputs as step.json.

    model: a FrameModel (`FrameStep`), FeatureModel (`FeatureStep`), TeachModel (`TeachStep`) or TargetModel
    (`TrackStep`), on the CPU. sides: height and width in pixels of the input picture of the last two, by default those
    of SIDES. Returns the folder. Raises ConfigError for another kind of model, for a memory that ONNX cannot express
    and for sides that do not fit; DependencyError without onnx.
    """
    steps: dict[type, Callable[..., Step]] = {
        FrameModel: FrameStep, FeatureModel: FeatureStep, TeachModel: TeachStep, TargetModel: TrackStep
    }  # fmt: skip
    kind = next((kind for kind in steps if isinstance(model, kind)), None)
    if kind is None or (sides is not None and kind not in SIDES):
        known = ", ".join(kind.__name__ for kind in steps)
        what = f"expected a {known}" if kind is None else "its pictures have one size"
        raise ConfigError(f"{type(model).__name__} cannot be exported so: {what}")
    if any(getattr(getattr(memory, "inner", None), "name", "") == "conv" for memory in model.modules()):
        raise ConfigError("memory 'ttt_conv' cannot be exported, ONNX has no gradient of a convolution")
    size = sides or SIDES.get(kind)
    step = steps[kind](model, *(size or ()))
    return exported.write(step, folder, "step", {"model": type(model).FORMAT, "config": model.description()})


def _beginning(model: FrameModel | FeatureModel) -> dict[str, Tensor]:
    """The inputs of the first frame of a stream."""
    size = model.config.size
    return {
        "state": pack(model.init_state(1)),
        "starts": torch.ones(1, dtype=torch.bool),
        "frame": torch.zeros(1, 3, size, size, dtype=torch.uint8),
    }


class FrameStep(Step):
    """One frame of a stream of a FrameModel.

    state [1, n], starts bool [1] (the stream begins here, its state does not count), frame uint8 [1, 3, size, size] ->
    prediction [1, 3, size, size] of the next frame in 0..1, embedding [1, dim], loss [1, N] of each token before it is
    learned, next_state [1, n].
    """

    OUTPUTS: ClassVar[tuple[str, ...]] = ("prediction", "embedding", "loss", "next_state")
    BATCHED: ClassVar[bool] = False

    def __init__(self, model: FrameModel) -> None:
        super().__init__()
        self.model = model

    def example(self) -> dict[str, Tensor]:
        return _beginning(self.model)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        state, starts, frame = inputs
        before = unpack(torch.where(starts[:, None], 0.0, state), self.model.init_state(1))
        output, after = self.model(frame[:, None], before)
        if output.losses is None:
            raise ConfigError("a model whose memory has no inner loss cannot be exported")
        return output.prediction[:, 0], output.embedding[:, 0], output.losses.before[:, 0], pack(after)


class FeatureStep(Step):
    """One frame of a stream of a FeatureModel.

    state [1, n], starts bool [1] (the stream begins here, its state does not count), frame uint8 [1, 3, size, size] ->
    embedding [1, C], loss [1, N] of each feature before it is learned, next_state [1, n].
    """

    OUTPUTS: ClassVar[tuple[str, ...]] = ("embedding", "loss", "next_state")
    BATCHED: ClassVar[bool] = False

    def __init__(self, model: FeatureModel) -> None:
        super().__init__()
        self.model, self.encoder = model, model.encoder

    def example(self) -> dict[str, Tensor]:
        return _beginning(self.model)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state, starts, frame = inputs
        before = unpack(torch.where(starts[:, None], 0.0, state), self.model.init_state(1))
        seen, after = self.model(frame[:, None], before)
        assert seen.embedding is not None
        assert seen.losses is not None
        return seen.embedding[:, 0], seen.losses.before[:, 0], pack(after)


class TrackStep(Step):
    """One frame of one object that a TargetModel follows, in a window of fixed size.

    state [1, n], picture uint8 [1, 3, height, width] (the window, scaled to these sides), mask [1, 1, height, width] in
    0..1, given bool [1] (mask shows the object here; it must be true in the first frame, otherwise mask does not
    count), window [1, 4] (its top, left, bottom and right in short sides of the whole frame, from its middle) -> odds
    [1, 1, height, width] (log-odds; above 0 on the object), confidence [1], box [1, 4] of the object where it was
    learned last (units of `window`), missed [1] frames since, next_state [1, n].

    As in a MaskStream with `crop`, an object that is not found is searched for near its box, farther away in each
    frame; but only inside of the window, which the caller chooses (`tttstream.streams.windows`).
    """

    OUTPUTS: ClassVar[tuple[str, ...]] = ("odds", "confidence", "box", "missed", "next_state")
    BATCHED: ClassVar[bool] = False

    def __init__(self, model: TargetModel, height: int, width: int) -> None:
        super().__init__()
        if min(height, width) < WHOLE or height % WHOLE or width % WHOLE:
            raise ConfigError(f"export: sides are {height} and {width} pixels, expected multiples of {WHOLE}")
        self.model, self.sides = model, (height, width)
        with torch.no_grad():
            self(*self.example().values())  # constants that depend on the sides are made before the export

    def example(self) -> dict[str, Tensor]:
        return {
            "state": pack(self.model.init_state(1)),
            "picture": torch.zeros(1, 3, *self.sides, dtype=torch.uint8),
            "mask": torch.zeros(1, 1, *self.sides),
            "given": torch.ones(1, dtype=torch.bool),
            "window": torch.tensor([[-0.5, -0.5, 0.5, 0.5]]),
        }

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        state, picture, mask, given, window = inputs
        said, after = self.model(
            picture[:, None],
            unpack(state, self.model.init_state(1)),
            masks=mask[:, None],
            given=given[:, None, None],
            view=window[:, None],
        )
        assert said.fit is not None
        return said.logits[:, 0, 1:], said.fit[:, 0, 0].sigmoid(), after.box[:, 0], after.missed[:, 0], pack(after)


class TeachStep(Step):
    """One picture of a TeachModel: it is searched for all taught things, then learned if it has a label.

    state [1, n], picture uint8 [1, 3, height, width] (the whole frame, scaled to these sides), label int64 [1] (-1 for
    a query only), box [1, 4] of the example (left, top, right, bottom as shares of the sides) -> evidence [1, L] for
    each label in the best of all windows (log-odds of "in view" less the model's `search`), boxes [1, L, 4] of these
    windows, next_state [1, n].
    """

    OUTPUTS: ClassVar[tuple[str, ...]] = ("evidence", "boxes", "next_state")
    BATCHED: ClassVar[bool] = False

    def __init__(self, model: TeachModel, height: int, width: int) -> None:
        super().__init__()
        if min(height, width) < CELL or height % CELL or width % CELL:
            raise ConfigError(f"export: sides are {height} and {width} pixels, expected multiples of {CELL}")
        self.model, self.encoder, self.sides = model, model.encoder, (height, width)
        self.register_buffer("windows", windows(height, width), persistent=False)

    windows: Tensor

    def example(self) -> dict[str, Tensor]:
        return {
            "state": pack(self.model.init_state(1)),
            "picture": torch.zeros(1, 3, *self.sides, dtype=torch.uint8),
            "label": torch.full((1,), -1),
            "box": torch.tensor([[0.0, 0.0, 1.0, 1.0]]),
        }

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        state, picture, label, box = inputs
        memory = self.model.memory
        before = unpack(state, self.model.init_state(1))
        maps = self.encoder(picture / 255)
        keys = torch.cat([self.model.everywhere(maps, *self.sides), self.model.keys(maps, box)])
        evidence, at = memory.evidence(before, keys[None, :-1])[0].max(0)
        told = (torch.arange(memory.labels) == label).to(keys.dtype)[None]
        after = memory.bind(before, keys[-1:], told)
        return evidence[None], self.windows[at][None], pack(after)

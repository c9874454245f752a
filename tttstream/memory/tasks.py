"""Inner tasks: which pairs of key and value the inner model of a TTT layer learns (arXiv 2407.04620, section 2.3).

Letters: B rows, T tokens, H heads, D head width, K tokens of a mini-batch (of a frame in frame mode).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tttstream.errors import ConfigError
from tttstream.memory.positions import age, latest


class Task(nn.Module):
    """Makes the input of the inner model from the training view. The inner model learns to map it to the label view.

    Called as (k [B, T, H, D], place [B, T] of every token in its mini-batch, kept [B, self.kept, H * D], reset,
    lengths) -> (keys [B, T, H, D], whether a token is learned [B, T] or None for all, the next kept).

    kept: tokens that the state holds for the task.
    plain: whether keys are the training view itself.
    """

    kept: int = 0
    plain: bool = False

    def __init__(self, tokens: int, heads: int, width: int, unit: int = 1) -> None:
        """tokens: K. unit: tokens that stand side by side, 1 in token mode, K in frame mode."""
        super().__init__()
        self.tokens, self.heads, self.width, self.unit = tokens, heads, width, unit

    def forward(
        self, k: Tensor, place: Tensor, kept: Tensor, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        raise NotImplementedError(f"{type(self).__name__} must define forward")


class Reconstruction(Task):
    """From the training view of a token to the label view of the same token, the paper's task and the default."""

    plain = True

    def forward(
        self, k: Tensor, place: Tensor, kept: Tensor, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        return k, None, kept


class Denoising(Task):
    """From a noisy training view to the clean label view: k + level * rms(k) * noise.

    The noise N(0, 1) of each place in the mini-batch is drawn when the layer is made and saved with it, so a stream can
    be cut, resumed and repeated.
    """

    def __init__(self, tokens: int, heads: int, width: int, unit: int = 1, level: float = 0.3) -> None:
        super().__init__(tokens, heads, width, unit)
        if not level > 0.0:
            raise ConfigError(f"Denoising: level must be more than 0, got {level}")
        self.level = level
        self.noise: Tensor
        self.register_buffer("noise", torch.randn(tokens, heads, width))

    def forward(
        self, k: Tensor, place: Tensor, kept: Tensor, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        rms = (k.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return k + self.level * rms * self.noise.to(k.dtype)[place], None, kept


class Masking(Task):
    """From a training view with some numbers set to 0 to the whole label view. share: of the numbers of each head.

    Which ones is drawn for each place in the mini-batch when the layer is made, and saved with it.
    """

    def __init__(self, tokens: int, heads: int, width: int, unit: int = 1, share: float = 0.25) -> None:
        super().__init__(tokens, heads, width, unit)
        if not 0.0 < share < 1.0:
            raise ConfigError(f"Masking: share must be between 0 and 1, got {share}")
        hidden = max(1, round(share * width))
        self.mask: Tensor
        self.register_buffer("mask", torch.rand(tokens, heads, width).argsort(-1) < hidden)

    def forward(
        self, k: Tensor, place: Tensor, kept: Tensor, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        return torch.where(self.mask[place], 0.0, k), None, kept


class NextValue(Task):
    """From the training view of a token to the label view of the next one; in frame mode, of the same token of the next
    frame. The state keeps the last training view. A token after a reset, or after a training view of zeros, is not
    learned: its rate is 0."""

    def __init__(self, tokens: int, heads: int, width: int, unit: int = 1) -> None:
        super().__init__(tokens, heads, width, unit)
        self.kept = unit

    def forward(
        self, k: Tensor, place: Tensor, kept: Tensor, reset: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        tokens = k.shape[1]
        past = torch.cat([kept.to(k.dtype), k.flatten(2)], dim=1)
        before = past[:, :tokens]
        if reset is not None:
            since, seen = age(reset)
            before = torch.where((seen & (since < self.unit))[..., None], 0.0, before)
        after = latest(past, self.unit, reset, lengths).to(kept.dtype)
        return before.view_as(k), (before != 0.0).any(-1), after


TASKS: dict[str, Callable[..., Task]] = {
    "reconstruction": Reconstruction,
    "denoising": Denoising,
    "masking": Masking,
    "next": NextValue,
}
"""The tasks by name; called with (tokens, heads, width, unit), see `Task`."""


def make_task(task: str | Callable[..., Task], tokens: int, heads: int, width: int, unit: int) -> Task:
    """The task with this name, or the result of the function that is given in place of a name."""
    if isinstance(task, str):
        if task not in TASKS:
            raise ConfigError(f"TTTLayer: there is no inner task {task!r}: expected one of {', '.join(TASKS)}")
        task = TASKS[task]
    return task(tokens, heads, width, unit)

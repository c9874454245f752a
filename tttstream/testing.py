"""Helpers to test a memory: unroll it over pieces of a stream, compare values and states, generate scenes.

The laws of this project use them; they are also for tests of new memories.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tttstream.inner import CATALOGUE as INNER_MODELS
from tttstream.memory import Memory, build, names
from tttstream_kernels import RMS, Muon, Update
from tttstream_kernels.testing import TOLERANCE

SMALLEST = 1e-2  # least scale of a comparison, also if all values are smaller


def unroll(
    memory: Memory,
    x: Tensor,
    splits: Sequence[int],
    state: Any = None,
    reset: Tensor | None = None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Any]:
    """Run a memory over the stream x [B, T, D] in pieces of `splits` tokens (their sum is T).

    Returns y [B, T, D] and the final state, which must equal those of one call (law 2).
    """
    if sum(splits) != x.shape[1]:
        raise ValueError(f"expected splits that add up to {x.shape[1]} tokens, got {list(splits)}")
    outputs, start = [], 0
    for size in splits:
        piece = slice(start, start + size)
        y, state = memory(
            x[:, piece],
            state,
            reset=None if reset is None else reset[:, piece],
            lengths=None if lengths is None else (lengths - start).clamp(0, size),
        )
        outputs.append(y)
        start += size
    return torch.cat(outputs, 1), state


def tensors(value: Any) -> list[tuple[str, Tensor]]:
    """(name, tensor) of everything in a tensor, a state, or nested sequences of them."""
    if isinstance(value, Tensor):
        return [("", value)]
    if value is None:
        return []
    keys = getattr(value, "_fields", range(len(value)))
    pairs = zip(keys, tuple(iter(value)), strict=True)
    return [(f"{key}.{name}".rstrip("."), leaf) for key, item in pairs for name, leaf in tensors(item)]


def assert_close(actual: Any, expected: Any, tolerance: float | None = None) -> None:
    """Compare tensors, states, or sequences of them: `tolerance` times the largest value of each expected tensor.

    The tolerance is that of the expected type unless given. NaN equals NaN.
    """
    left, right = tensors(actual), tensors(expected)
    assert [name for name, _ in left] == [name for name, _ in right], f"{left} against {right}"
    for (name, a), (_, b) in zip(left, right, strict=True):
        bound = TOLERANCE.get(b.dtype, 0.0) if tolerance is None else tolerance
        largest = float(b.detach().double().nan_to_num(0, 0, 0).abs().amax()) if b.numel() else 0.0
        torch.testing.assert_close(
            a,
            b,
            rtol=0,
            atol=bound * max(largest, SMALLEST),
            equal_nan=True,
            msg=lambda text, name=name: f"{name or 'tensor'}: {text}",  # type: ignore[misc]
        )


def gradients(memory: Memory, outputs: Any, inputs: Iterable[Tensor], seed: int = 0) -> list[Tensor]:
    """Gradients of a fixed random projection of `outputs` (a tensor, state, or sequence) w.r.t. inputs and parameters.

    Inputs without influence have a gradient of zeros.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64)
    for _, leaf in tensors(outputs):
        weight = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        total = total + (leaf.double().cpu() * weight).sum()
    wanted = [*inputs, *memory.parameters()]
    found = torch.autograd.grad(total, wanted, allow_unused=True)
    return [torch.zeros_like(z) if g is None else g for z, g in zip(wanted, found, strict=True)]


@dataclass(frozen=True)
class Case:
    """A small memory by name, and the requirements on its streams.

    unit: tokens of a frame if the memory works on whole frames, else 1: lengths and positions of resets are multiples
    of it.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    unit: int = 1
    dim: int = 16
    heads: int = 2

    def __str__(self) -> str:
        return "-".join([self.name, *(f"{key}={value}" for key, value in self.options.items())])

    def memory(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Memory:
        """The memory, with every parameter moved from its initial value, so that tests do not use a special point."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            memory = build(self.name, dim=self.dim, heads=self.heads, **self.options)
            with torch.no_grad():
                for parameter in memory.parameters():
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return memory.to(dtype)

    def stream(self, rows: int, units: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
        """Random tokens [rows, units * unit, dim]."""
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(rows, units * self.unit, self.dim, generator=generator, dtype=torch.float64).to(dtype)

    def resets(self, rows: int, units: int, at: Iterable[tuple[int, int]]) -> Tensor:
        """A reset mask [rows, units * unit], true at the first token of the given (row, unit)s."""
        mask = torch.zeros(rows, units * self.unit, dtype=torch.bool)
        for row, unit in at:
            mask[row, unit * self.unit] = True
        return mask


_GRID = {"grid": (2, 3)}
_SMALL: dict[str, list[tuple[dict[str, Any], int]]] = {
    "ttt_linear": [
        ({"mini_batch": 4}, 1),
        ({"mini_batch": 4, "conv": 3, "gate": True}, 1),
        ({"mini_batch": 4, "update": Update(momentum=0.5, direction=RMS())}, 1),
        ({"mini_batch": 4, "task": "next", "conv": 3}, 1),
        ({"task": "next", "causal": "frame", **_GRID}, 6),
        ({"causal": "frame", **_GRID}, 6),
    ],
    "ttt_mlp": [
        ({"mini_batch": 4}, 1),
        ({"mini_batch": 4, "update": Update(forget=0.01, step="normalised")}, 1),
        ({"mini_batch": 4, "update": Update(forget=0.01, direction=Muon())}, 1),
        ({"mini_batch": 4, "update": Update(forget=0.01, margin=0.8)}, 1),
        ({"mini_batch": 4, "task": "denoising"}, 1),
        ({"mini_batch": 4, "task": "masking", "unit_qk": True}, 1),
        ({"causal": "frame", **_GRID}, 6),
    ],
    "ttt_conv": [(_GRID, 6), ({"update": Update(step="normalised"), **_GRID}, 6)],
    "kernel_delta": [({"features": 10}, 1)],
    "gated_delta": [({}, 1), ({"decay": "channel", "reach": 2.0, "conv": 0}, 1)],
    "mixed": [({"options": {"ttt_mlp": {"mini_batch": 4}}}, 1)],
    "ttt_nested": [({"block": 4}, 1)],
    "ttt_slots": [({"block": 4, "slots": 5}, 1)],
    "mamba2": [({"state": 6}, 1)],
    "rwkv7": [({"rank": 4}, 1)],
    "window": [({"window": 5}, 1)],
    "lstm": [({}, 1), ({"layers": 2}, 1)],
}


def cases() -> list[Case]:
    """Every memory of `build` in every mode, in a small size."""
    frames = {f"ttt_{name}": [(_GRID, 6)] for name, model in INNER_MODELS.items() if model.frame_only}
    small = {**frames, **_SMALL}
    return [Case(name, options, unit) for name in names() for options, unit in small.get(name, [({}, 1)])]


SCENES = ("subspace", "prototypes", "mixture")


def scene(kind: str, number: int, *, dim: int, rows: int, tokens: int, part: int = 0) -> Tensor:
    """Tokens of one scene of an endless stream, [rows, tokens, dim] with mean 0 and variance 1 a token.

    kind: "subspace" (a new random four-dimensional subspace for each scene), "prototypes" (eight new tokens, repeated
    with a little noise) or "mixture" (a new mean and a new covariance). number: the scene depends only on it. part:
    selects other tokens of the same scene, to measure recall.
    """
    world = torch.Generator().manual_seed(1000 * number)
    sample = torch.Generator().manual_seed(1000 * number + 1 + part)
    if kind == "subspace":
        basis = torch.linalg.qr(torch.randn(rows, dim, 4, generator=world))[0].mT
        x = torch.randn(rows, tokens, 4, generator=sample) @ basis
    elif kind == "prototypes":
        usual = torch.randn(rows, 8, dim, generator=world)
        which = torch.randint(8, (rows, tokens, 1), generator=sample).expand(-1, -1, dim)
        x = usual.gather(1, which) + 0.1 * torch.randn(rows, tokens, dim, generator=sample)
    elif kind == "mixture":
        mean, spread = (torch.randn(rows, n, dim, generator=world) for n in (1, dim))
        x = mean + torch.randn(rows, tokens, dim, generator=sample) @ spread / dim**0.5
    else:
        raise ValueError(f"unknown kind of scene {kind!r}: expected one of {', '.join(SCENES)}")
    return torch.nn.functional.layer_norm(x, (dim,))


def task(number: int, *, width: int, rows: int, tokens: int, part: int = 0) -> tuple[Tensor, Tensor]:
    """Keys and values of a scene that is independent of all others, both [rows, tokens, 1, width].

    Keys are in a new random four-dimensional subspace; values are a new linear map of them, which a linear inner model
    can learn without error; the loss at chance is `width`. number, part: as in `scene`.
    """
    world = torch.Generator().manual_seed(1000 * number)
    sample = torch.Generator().manual_seed(1000 * number + 1 + part)
    basis = torch.linalg.qr(torch.randn(rows, width, 4, generator=world))[0].mT
    rule = torch.randn(rows, width, width, generator=world)
    k = torch.nn.functional.layer_norm(torch.randn(rows, tokens, 4, generator=sample) @ basis, (width,))
    v = k + torch.nn.functional.layer_norm(k @ rule, (width,))
    return k[:, :, None], v[:, :, None]

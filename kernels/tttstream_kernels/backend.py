"""Which backend runs a call: what the Triton kernels cover, what this machine can run, and what a caller asked for."""

import logging
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch

from tttstream_kernels.errors import BackendError, ConfigError
from tttstream_kernels.inner import Inner
from tttstream_kernels.update import Update

_LOG = logging.getLogger("tttstream_kernels")

Backend = Literal["auto", "definition", "torch", "triton"]
BACKENDS: tuple[Backend, ...] = ("auto", "definition", "torch", "triton")

KERNELS: dict[str, tuple[str, ...]] = {"token": ("linear", "mlp"), "frame": ("linear", "mlp", "conv")}
"""The inner models that have Triton kernels, by mode."""
OPTIONS = ("momentum", "columns", "step='normalised'", "direction", "margin")
"""The fields of an `Update` that have no Triton kernel."""
WIDTHS = (16, 32, 64, 128)
MINI_BATCHES = (16, 32, 64)
CAPABILITY = (8, 0)
"""The first generation of GPUs with the matrix types of the kernels (bfloat16, tf32)."""
SHARED = 160 * 1024
"""Bytes that a program of the widest heads shares at most, in float32; an A100 has 163 KB for one, an RTX 4090 99."""


def triton_unavailable(
    inner: Inner,
    causal: str | None = None,
    *,
    update: Update | None = None,
    width: int = 64,
    mini_batch: int = 16,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> str | None:
    """Why the Triton backend cannot run such a call here; None if it can.

    causal: the inner model's own mode unless given. update: the plain step unless given. width: of a head. mini_batch:
    K. dtype: of the state. device: the GPU where there is one, else the CPU, unless given.
    """
    causal = ("token" if inner.token_causal else "frame") if causal is None else causal
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    missing = _no_kernel(inner, causal, Update() if update is None else update, width, mini_batch, dtype)
    return missing if missing is not None else _cannot_run(torch.device(device), width)


FRAMES, CHUNKS, STEP = "frame by frame", "mini-batch by mini-batch", "one token"


class Route(NamedTuple):
    """The implementation of a call. backend: its name. why: the reason. form: the loop of the torch backend."""

    backend: Literal["definition", "torch", "triton"]
    why: str
    form: str

    def __str__(self) -> str:
        return f"{self.backend} ({self.why}), {self.form}"


def route(
    backend: str,
    inner: Inner,
    causal: str | None = None,
    *,
    tokens: int = 1,
    device: torch.device | str | None = None,
    **call: Any,
) -> Route:
    """Choose the implementation of a call, and write it to the log `tttstream_kernels` at level DEBUG.

    "auto" is triton on a GPU where a kernel exists, else torch. An explicit "triton" that cannot run raises with the
    reason. tokens: T of the call. The other arguments are those of `triton_unavailable`.
    """
    causal = causal or ("token" if inner.token_causal else "frame")
    chosen, why = _backend(backend, inner, causal, device, call)
    if chosen != "torch":
        form = "a kernel" if chosen == "triton" else "token by token"
    elif causal == "frame":
        form = FRAMES
    else:
        form = STEP if tokens == 1 else CHUNKS
    way = Route(chosen, why, form)
    if not torch.compiler.is_compiling() and _LOG.isEnabledFor(logging.DEBUG):
        _LOG.debug("ttt %s, %s mode, %d tokens: %s", inner.name, causal, tokens, way)
    return way


def choose_backend(
    backend: str, inner: Inner, causal: str | None = None, **call: Any
) -> Literal["definition", "torch", "triton"]:
    """The backend that a call takes. Arguments as those of `route`."""
    return route(backend, inner, causal, **call).backend


def _backend(
    backend: str, inner: Inner, causal: str, device: torch.device | str | None, call: dict[str, Any]
) -> tuple[Literal["definition", "torch", "triton"], str]:
    """The backend of a call, and the reason. call: further arguments of `triton_unavailable`."""
    if backend not in BACKENDS:
        raise ConfigError(f"unknown backend {backend!r}: expected one of {', '.join(BACKENDS)}")
    if backend in ("definition", "torch"):
        return backend, "asked for"
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if backend == "auto" and torch.device(device).type != "cuda":
        return "torch", "auto takes Triton on CUDA devices only"
    reason = triton_unavailable(inner, causal, device=device, **call)
    if reason is None:
        return "triton", "asked for" if backend == "triton" else "a kernel covers the call"
    if backend == "triton":
        raise BackendError(f"backend='triton' cannot run: {reason}; use backend='auto' or 'torch'")
    return "torch", reason


def triton_coverage() -> list[str]:
    """A few lines of text: the calls that the Triton kernels run, and those that they do not."""
    modes = "; ".join(f"{causal} mode: {', '.join(names)}" for causal, names in KERNELS.items())
    return [
        modes,
        f"heads {_listed(WIDTHS)} wide, mini-batches of {_listed(MINI_BATCHES)} tokens",
        f"{WIDTHS[-1]} wide on GPUs whose programs share {SHARED // 1024} KB (A100, H100, H200, not RTX)",
        "float32, bfloat16 and float16 tokens, a float32 state",
        f"none with update.{', update.'.join(OPTIONS)}, nor for gradients of gradients",
    ]


def _no_kernel(
    inner: Inner, causal: str, update: Update, width: int, mini_batch: int, dtype: torch.dtype
) -> str | None:
    if inner.name not in KERNELS[causal]:
        return f"there is no Triton kernel for the {inner.name} inner model with causal={causal!r}"
    has_direction = update.direction is not None
    uses = (update.has_momentum, update.columns, update.normalised, has_direction, update.has_margin)
    for name, used in zip(OPTIONS, uses, strict=True):
        if used:
            return f"there is no Triton kernel with update.{name}"
    if width not in WIDTHS:
        return f"heads are {width} wide, and the Triton kernels are for {_listed(WIDTHS)}"
    if causal == "token" and mini_batch not in MINI_BATCHES:
        return f"mini_batch is {mini_batch}, and the Triton kernels are for {_listed(MINI_BATCHES)}"
    if dtype == torch.float64:
        return "the state is float64, and the Triton kernels keep it in float32"
    return None


def _listed(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"


def _cannot_run(device: torch.device, width: int) -> str | None:
    """Why no Triton kernel for heads of this width runs on tensors of this device."""
    if find_spec("triton") is None:
        return "triton is not installed"
    from tttstream_kernels.norm_triton import INTERPRETED

    if INTERPRETED:
        return None
    if device.type != "cuda":
        return f"the tensors are on {device}, not on CUDA (TRITON_INTERPRET=1 runs the kernels in the interpreter)"
    have = torch.cuda.get_device_capability(device)
    if have < CAPABILITY:
        return (
            f"the GPU has compute capability {have[0]}.{have[1]}, and the kernels need {CAPABILITY[0]}.{CAPABILITY[1]}"
        )
    from tttstream_kernels.launch_triton import shared_memory

    shared = shared_memory(device)
    if width > 64 and shared < SHARED:
        return f"heads {width} wide take {SHARED} bytes of shared memory, and the GPU has {shared} for a program"
    return None


# What torch.compiler.assume_constant_result does; calling it would import the compiler with this package.
setattr(_cannot_run, "_dynamo_marked_constant", True)  # noqa: B010

"""Test-time-training ops on tensors: pure functions (tokens, state) -> (outputs, state), with one meaning per name."""

from tttstream_kernels import definition
from tttstream_kernels.backend import BACKENDS, choose_backend, triton_unavailable
from tttstream_kernels.direction import RMS, Direction, Muon
from tttstream_kernels.errors import BackendError, ConfigError, ShapeError, TTTStreamError
from tttstream_kernels.inner import MLP, Conv, Inner, Linear, SwiGLU, SwiGLUDot
from tttstream_kernels.norm import EPS, normalise
from tttstream_kernels.ops import init_state, ttt
from tttstream_kernels.read import read
from tttstream_kernels.state import InnerState, Loss
from tttstream_kernels.update import Update

__all__ = [
    "BACKENDS",
    "EPS",
    "MLP",
    "RMS",
    "BackendError",
    "ConfigError",
    "Conv",
    "Direction",
    "Inner",
    "InnerState",
    "Linear",
    "Loss",
    "Muon",
    "ShapeError",
    "SwiGLU",
    "SwiGLUDot",
    "TTTStreamError",
    "Update",
    "choose_backend",
    "definition",
    "init_state",
    "normalise",
    "read",
    "triton_unavailable",
    "ttt",
]

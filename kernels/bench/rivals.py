"""The ops of other packages, if they are installed, and of torch, with which the TTT ops are compared."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from contestants import WIDTH, Case, Contestant, Tokens, Unable, Work, captured
from measure import Call
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

MAMBA_STATE, MAMBA_CHUNK = 128, 256
"""Defaults of Mamba-2: the size of the state of a head, and the tokens of a chunk."""
CACHED = 8192
"""Tokens in the cache that a step of attention reads."""


def needed(module: str, install: str, device: torch.device) -> None:
    """Raise Unable if a package is not installed, or if there is no GPU and the package needs one."""
    if find_spec(module) is None:
        raise Unable(f"not installed ({install})")
    if device.type != "cuda":
        raise Unable("it needs a GPU")


@dataclass
class Fla(Contestant):
    """An op of flash-linear-attention. build: (the op, streams of a case) -> (forward, what gradients are taken of)."""

    module: str
    function: str
    build: Callable[[Any, Tokens], tuple[Callable[[], Tensor], list[Tensor]]]

    def prepare(self, tokens: Tokens) -> Call:
        """See Contestant."""
        if tokens.case.what == "step":
            raise Unable("it takes whole chunks, not single tokens")
        needed("fla", "pip install flash-linear-attention", tokens.device)
        op = getattr(import_module(self.module), self.function, None)
        if op is None:
            raise Unable(f"{self.module} has no {self.function}")
        return tokens.timed(*self.build(op, tokens))


def ttt_linear(op: Any, tokens: Tokens) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """TTT-Linear with one rate a chunk: chunks of 16 tokens, an initial state that is learned, a final state."""
    case, device = tokens.case, tokens.device
    q, k, v = tokens.q, tokens.k, tokens.v
    eta = (tokens.rate[..., None] / WIDTH).to(tokens.dtype)
    gamma = torch.ones(case.heads, WIDTH, dtype=tokens.dtype, device=device)
    beta = torch.zeros(case.heads, WIDTH, dtype=tokens.dtype, device=device)
    weights = 0.02 * torch.randn(case.rows, case.heads, WIDTH, WIDTH, device=device)
    bias = torch.zeros(case.rows, case.heads, 1, WIDTH, device=device)
    wanted = [x.requires_grad_(tokens.learning) for x in (q, k, v, gamma, beta, eta, weights, bias)]

    def forward() -> Tensor:
        y: Tensor = op(
            q, k, v, gamma, beta, eta, scale=1.0, chunk_size=16, initial_state=weights, initial_state_bias=bias,
            output_final_state=True,
        )[0]  # fmt: skip
        return y

    return forward, wanted


def gated_delta(op: Any, tokens: Tokens) -> tuple[Callable[[], Tensor], list[Tensor]]:
    """The gated delta rule: keys of length one, a decay and a rate for each token and head, a final state."""
    q, v = tokens.q, tokens.v
    k = F.normalize(tokens.k.detach().float(), dim=-1).to(tokens.dtype)
    decay = F.logsigmoid(torch.randn_like(tokens.rate) + 3)
    rate = tokens.rate.detach().to(tokens.dtype)
    wanted = [x.requires_grad_(tokens.learning) for x in (q, k, v, decay, rate)]

    def forward() -> Tensor:
        y: Tensor = op(q, k, v, decay, rate, output_final_state=True)[0]
        return y

    return forward, wanted


class Mamba2(Contestant):
    """The scan of Mamba-2 (mamba-ssm), one group, heads of 64 with a state of 128."""

    def prepare(self, tokens: Tokens) -> Call:
        """See Contestant."""
        case, device = tokens.case, tokens.device
        if case.what == "step":
            raise Unable("it takes whole chunks, not single tokens")
        needed("mamba_ssm", "pip install --no-build-isolation mamba-ssm", device)
        scan = mamba_scan()
        dt = (0.1 * tokens.rate.detach()).to(tokens.dtype)
        a = -torch.rand(case.heads, device=device) - 0.5
        b, c = (tokens.random(case.rows, case.tokens, 1, MAMBA_STATE) for _ in range(2))
        wanted = [x.requires_grad_(tokens.learning) for x in (tokens.v, dt, a, b, c)]

        def forward() -> Tensor:
            y: Tensor = scan(tokens.v, dt, a, b, c, MAMBA_CHUNK, return_final_states=True)[0]
            return y

        return tokens.timed(forward, wanted)


def mamba_scan() -> Any:
    """The scan of mamba-ssm, which is written in Triton; the rest of the package needs compiled CUDA extensions."""
    if "mamba_ssm" not in sys.modules and find_spec("selective_scan_cuda") is None:
        spec = find_spec("mamba_ssm")
        assert spec is not None
        package = ModuleType("mamba_ssm")
        package.__path__ = list(spec.submodule_search_locations or [])
        package.__spec__ = spec
        sys.modules["mamba_ssm"] = package
    return import_module("mamba_ssm.ops.triton.ssd_combined").mamba_chunk_scan_combined


class Attention(Contestant):
    """Causal scaled_dot_product_attention with its flash kernels. A step reads a cache of 8,192 tokens."""

    def prepare(self, tokens: Tokens) -> Call:
        """See Contestant."""
        q, k, v = (x.transpose(1, 2) for x in (tokens.q, tokens.k, tokens.v))
        if tokens.case.what != "step":

            def forward() -> Tensor:
                with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
                return y.transpose(1, 2)

            return tokens.timed(forward, [tokens.q, tokens.k, tokens.v])
        case = tokens.case
        keys, values = (tokens.random(case.rows, case.heads, CACHED, WIDTH) for _ in range(2))

        def step() -> Tensor:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return F.scaled_dot_product_attention(q, keys, values)

        call = torch.no_grad()(step)
        return captured(call) if tokens.device.type == "cuda" else call

    def work(self, case: Case, dtype: torch.dtype) -> Work:
        """Two masked products of T × T / 2, five more backward; q, k, v, outputs and their gradients once."""
        cells, stream = case.rows * case.heads, WIDTH * dtype.itemsize
        if case.what == "step":
            return Work(cells * 2.0 * CACHED * stream, cells * 4.0 * CACHED * WIDTH)
        learning = case.what == "forward+backward"
        computed = 2.0 * case.tokens**2 * WIDTH * (3.5 if learning else 1)
        return Work(cells * case.tokens * stream * (11.0 if learning else 4), cells * computed)

    def predicted(self, tokens: int, milliseconds: float, more: int) -> float:
        """See Contestant: the time of attention grows with the square of the tokens."""
        return milliseconds * (more / tokens) ** 2


class LSTM(Contestant):
    """nn.LSTM as wide as all heads together (cuDNN on a GPU); unlike the others it includes its projections."""

    def prepare(self, tokens: Tokens) -> Call:
        """See Contestant."""
        case, dim = tokens.case, tokens.case.heads * WIDTH
        network = nn.LSTM(dim, dim, batch_first=True, device=tokens.device, dtype=tokens.dtype)
        x = tokens.v.flatten(2).detach().requires_grad_(tokens.learning)
        if case.what != "step":
            return tokens.timed(lambda: network(x)[0], [x, *network.parameters()])
        held = [torch.zeros(1, case.rows, dim, device=tokens.device, dtype=tokens.dtype) for _ in range(2)]

        def step() -> Tensor:
            y, new = network(x, (held[0], held[1]))
            for old, part in zip(held, new, strict=True):
                old.copy_(part)
            return y

        call = torch.no_grad()(step)
        return captured(call) if tokens.device.type == "cuda" else call


def rivals(device: torch.device) -> list[Contestant]:
    """All of them, in the order of the table."""
    ttt, delta = "fla.ops.ttt", "fla.ops.gated_delta_rule"
    return [
        Fla("fla chunk_ttt_linear", "fla-ttt", ttt, "chunk_ttt_linear", ttt_linear),
        Fla("fla fused_chunk_ttt_linear", "fla-ttt", ttt, "fused_chunk_ttt_linear", ttt_linear),
        Fla("fla chunk_gated_delta_rule", "gated-delta", delta, "chunk_gated_delta_rule", gated_delta),
        Mamba2("Mamba-2 scan", "mamba"),
        Attention("flash attention", "attention"),
        LSTM("LSTM (cuDNN)" if device.type == "cuda" else "LSTM", "lstm"),
    ]

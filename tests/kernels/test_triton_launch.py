"""Every kernel is launched in one place: on the device of its tensors, and with an error that a user understands."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tttstream_kernels import MLP, BackendError, Conv, Inner, Linear, choose_backend, ttt

pytest.importorskip("triton", reason="triton is not installed")

from triton import OutOfResources

from tttstream_kernels.blocks import block_of
from tttstream_kernels.frame_triton import launch_options
from tttstream_kernels.launch_triton import launch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
MODES: list[tuple[Inner, str, int]] = [
    (Linear(), "token", 16), (MLP(), "token", 16), (Linear(), "frame", 4), (MLP(), "frame", 4), (Conv(2, 2), "frame", 4)
]  # fmt: skip


class Kernel:
    """Stands for a kernel: keeps what it is launched with."""

    def __init__(self, error: Exception | None = None) -> None:
        self.grid: Any = None
        self.given: Any = None
        self.error = error

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        self.grid = grid
        return self

    def __call__(self, *arguments: Any, **constants: Any) -> None:
        if self.error is not None:
            raise self.error
        self.given = arguments, constants


def arguments(inner: Inner, tokens: int, device: str) -> list[Tensor]:
    streams = [torch.randn(2, tokens, 1, 16, device=device, requires_grad=True) for _ in range(3)]
    weights = [0.1 * torch.randn(1, inner.size(16), device=device), torch.ones(1, 16, device=device)]
    return [*streams, torch.rand(2, tokens, 1, device=device), *weights, torch.zeros(1, 16, device=device)]


def test_no_kernel_is_launched_elsewhere(root: Path) -> None:
    """`kernel[grid](...)` stands in one file only."""
    found = {}
    for path in sorted((root / "kernels" / "tttstream_kernels").glob("*.py")):
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        found[path.name] = sum(isinstance(call.func, ast.Subscript) for call in calls)
    assert {name: count for name, count in found.items() if count} == {"launch_triton.py": 1}


def test_a_kernel_gets_its_cells_and_arguments() -> None:
    kernel, x = Kernel(), torch.zeros(2)
    launch(kernel, 7, x, (x, 3), 3, D=16)
    assert kernel.grid == (7,)
    assert kernel.given == (((x, 3), 3), {"D": 16})


@pytest.mark.parametrize(("inner", "causal", "size"), MODES, ids=lambda value: getattr(value, "name", value))
def test_every_op_runs_on_the_device_of_its_tensors(
    inner: Inner, causal: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forward, backward and, in token mode, the step, each under a guard for a tensor of the call."""
    guarded: list[tuple[torch.Size, torch.device]] = []

    @contextmanager
    def device_of(x: Tensor) -> Iterator[None]:
        guarded.append((x.shape, x.device))
        yield

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    given = arguments(inner, size, DEVICE)
    y, _, _ = ttt(inner, *given, mini_batch=size, causal=causal, backend="triton")
    y.sum().backward()
    with torch.no_grad():
        ttt(inner, *(x[:, : 1 if causal == "token" else size] for x in given[:4]), *given[4:],
            mini_batch=size, causal=causal, backend="triton")  # fmt: skip
    whole = (2, size, 1, 16)
    assert [shape for shape, _ in guarded] == [whole, whole, (2, 1, 1, 16) if causal == "token" else whole]
    assert {device.type for _, device in guarded} == {DEVICE}


def test_too_little_shared_memory_raises_a_backend_error() -> None:
    kernel = Kernel(OutOfResources(150_000, 101_376, "shared memory"))
    with pytest.raises(
        BackendError, match="needs 150000 bytes of shared memory, and this GPU has 101376: use narrower"
    ):
        launch(kernel, 1, torch.zeros(2))


def test_gpus_with_less_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wide heads go to the reference, and mini-batches in smaller blocks."""
    properties = SimpleNamespace(shared_memory_per_block_optin=101_376)
    monkeypatch.setattr("tttstream_kernels.norm_triton.INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 9))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    for causal in ("token", "frame"):
        assert choose_backend("auto", Linear(), causal, width=64, device="cuda") == "triton"
        assert choose_backend("auto", Linear(), causal, width=128, device="cuda") == "torch"
        with pytest.raises(
            BackendError, match="heads 128 wide take 163840 bytes of shared memory, and the GPU has 101376"
        ):
            choose_backend("triton", Linear(), causal, width=128, device="cuda")
    properties.shared_memory_per_block_optin = 166_912
    assert choose_backend("auto", Linear(), width=128, device="cuda") == "triton"
    sizes = [(inner, width) for inner in ("linear", "mlp") for width in (32, 64, 128)]
    assert [block_of(*size, 64, 101_376) for size in sizes] == [16] * 6
    assert [block_of(*size, 64, 166_912) for size in sizes] == [64, 64, 16, 64, 32, 16]
    assert block_of("linear", 64, 16, 166_912) == 16
    tiles = [launch_options("mlp", "backward", 64, 196, torch.float32, shared) for shared in (101_376, 166_912)]
    assert [options["CHUNK"] for options in tiles] == [16, 32]


@pytest.mark.gpu
@pytest.mark.parametrize(("inner", "causal", "size"), MODES, ids=lambda value: getattr(value, "name", value))
def test_another_device_than_the_current_one(inner: Inner, causal: str, size: int) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU only")
    given = arguments(inner, size, "cuda:0")
    results = []
    for device in ("cuda:0", "cuda:1"):
        copies = [x.detach().to(device).requires_grad_() for x in given]
        y, _, _ = ttt(inner, *copies, mini_batch=size, causal=causal, backend="triton")
        y.square().sum().backward()
        assert y.device == torch.device(device)
        results.append([y.cpu(), *(x.grad.cpu() for x in copies if x.grad is not None)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one)

"""Layers and models on Triton read nothing of a GPU on the host: they never wait for it, and run in CUDA graphs.

Fake tensors say that they are on a GPU but hold no numbers, so whatever reads one raises.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from tttstream import TTTLayer
from tttstream.models.frame import FrameModel, ModelConfig
from tttstream_kernels.testing import TOLERANCE

pytest.importorskip("triton", reason="triton is not installed")

from tttstream_kernels.blocks import blocks
from tttstream_kernels.norm_triton import INTERPRETED

pytestmark = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="without a GPU the kernels need TRITON_INTERPRET=1"
)
LAYERS: dict[str, dict[str, Any]] = {
    "linear": {"inner": "linear", "conv": 4, "gate": True},
    "mlp": {"inner": "mlp", "unit_qk": True},
    "linear-frame": {"inner": "linear", "causal": "frame", "grid": (2, 2)},
    "mlp-frame": {"inner": "mlp", "causal": "frame", "grid": (2, 2)},
    "conv-frame": {"inner": "conv", "causal": "frame", "grid": (2, 2), "registers": 1},
}
layers = pytest.mark.parametrize("options", LAYERS.values(), ids=LAYERS)


def masks(rows: int, tokens: int, size: int, device: str) -> dict[str, Tensor | None]:
    """A reset at a mini-batch's start, and lengths."""
    reset = torch.zeros(rows, tokens, dtype=torch.bool, device=device)
    reset[0, -size] = True
    return {"reset": reset, "lengths": torch.full((rows,), tokens, device=device)}


def test_a_read_of_a_value_on_the_host_raises() -> None:
    """The torch backend plans on the host, so these tests detect such a read."""
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad(), pytest.raises(DataDependentOutputException):
        TTTLayer(32, 2, backend="torch")(torch.randn(2, 20, 32))


@layers
@pytest.mark.parametrize("learn", [True, False], ids=["learns", "reads"])
def test_a_layer_reads_no_value_on_the_host(options: dict[str, Any], learn: bool) -> None:
    with FakeTensorMode(), torch.device("cuda"):
        layer = TTTLayer(32, 2, backend="triton", **options)
        one = 1 if layer.causal == "token" else layer.tokens
        state = None
        for tokens in (2 * layer.tokens, one):  # with gradients, as training has it
            given = masks(2, tokens, one, "cuda")
            y, state, loss = layer(torch.randn(2, tokens, 32), state, **given, return_loss=True, learn=learn)
            assert y.device.type == loss.after.device.type == "cuda"
        with torch.no_grad():  # and without, as a stream does
            _, state = layer(torch.randn(2, one, 32), state, **masks(2, one, one, "cuda"), learn=learn)
            _, state = layer(torch.randn(2, one, 32), state, learn=learn)


@layers
def test_the_backward_pass_reads_no_value_on_the_host(options: dict[str, Any]) -> None:
    """On fake tensors of the CPU, since autograd needs a GPU. Without lengths, which are read on the CPU."""
    with FakeTensorMode():
        layer = TTTLayer(32, 2, backend="triton", **options)
        reset = masks(2, 2 * layer.tokens, 1, "cpu")["reset"] if layer.causal == "token" else None
        y, state, loss = layer(torch.randn(2, 2 * layer.tokens, 32), None, reset, return_loss=True)
        (y.sum() + state.delta.sum() + loss.before.sum() + loss.after.sum()).backward()
        assert all(p.grad is not None for p in layer.parameters() if p.requires_grad)


@pytest.mark.parametrize("config", [{}, {"registers": 3}, {"memory": "ttt_conv", "motion": 2, "surprise": 1}], ids=str)
def test_a_model_reads_no_value_on_the_host(config: dict[str, Any]) -> None:
    with FakeTensorMode(), torch.device("cuda"):
        config = {"size": 16, "patch": 8, "dim": 32, "depth": 2, "heads": 2, **config}
        model = FrameModel(ModelConfig(**config, options={"backend": "triton"}))
        state, reset = None, torch.zeros(2, 1, dtype=torch.bool)
        for now in (None, reset, reset):
            output, state = model(torch.rand(2, 1, 3, 16, 16), state, now)
        with torch.no_grad():
            output, state = model(torch.rand(2, 1, 3, 16, 16), state, reset)
        assert output.embedding.device.type == "cuda"


def test_the_layout_of_the_blocks_of_a_row() -> None:
    """The part of the op outside its kernel."""
    with FakeTensorMode(), torch.device("cuda"):
        phase, lengths = torch.zeros(3, dtype=torch.int32), torch.ones(3, dtype=torch.long)
        reset = torch.zeros(3, 40, dtype=torch.bool)
        for given in ((None, None), (lengths, None), (None, reset), (lengths, reset)):
            assert blocks(phase, *given, 40, 16, 16, 32).end.device.type == "cuda"


@pytest.mark.parametrize("mask", ["reset", "lengths"])
def test_the_gpu_detects_incomplete_frames(mask: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the host, which does not wait."""
    asked: list[str] = []
    monkeypatch.setattr(torch, "_assert_async", lambda met, message: asked.append(message))
    with FakeTensorMode(), torch.device("cuda"), torch.no_grad():
        layer = TTTLayer(32, 2, causal="frame", grid=(2, 2), backend="triton")
        layer(torch.randn(2, 8, 32), **{mask: masks(2, 8, 3, "cuda")[mask]})
    assert len(asked) == 1
    assert "every 4 tokens" in asked[0] or "multiples of 4" in asked[0]


@pytest.mark.gpu
@layers
def test_no_call_synchronises_with_the_gpu(options: dict[str, Any]) -> None:
    """The same where CUDA itself raises at a synchronisation; the results are checked too."""
    torch.manual_seed(0)
    layer = TTTLayer(32, 2, backend="triton", **options).cuda()
    x = torch.randn(2, 2 * layer.tokens, 32, device="cuda")
    given = masks(2, 2 * layer.tokens, layer.tokens, "cuda")
    layer(x, **given)[0].sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        y, state, loss = layer(x, **given, return_loss=True)
        (y.sum() + loss.after.sum()).backward()
        with torch.no_grad():
            again, _ = layer(x, state.detach())
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert again.isfinite().all()
    layer.backend = "torch"
    expected, _ = layer(x, **given)
    torch.testing.assert_close(y, expected, rtol=0, atol=TOLERANCE[torch.float32] * 50)

"""Names of one release ago: each works, and warns of its new name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tttstream import TTTLayer, state
from tttstream_kernels import Linear, Update, choose_backend, init_state, ttt
from tttstream_kernels.testing import TOLERANCE


def test_longest_is_max_norm() -> None:
    with pytest.warns(DeprecationWarning, match="max_norm"):
        update = Update(forget=0.1, longest=2.0)
    assert update == Update(forget=0.1, max_norm=2.0)
    with pytest.warns(DeprecationWarning, match="max_norm"):
        assert update.longest == 2.0


def test_the_reference_is_torch() -> None:
    with pytest.warns(DeprecationWarning, match="torch"):
        assert choose_backend("reference", Linear()) == "torch"
    x = torch.randn(3, 1, 4, 2, 8).double()
    given = [*x, torch.rand(1, 4, 2).double(), torch.randn(2, 72).double(), *torch.randn(2, 2, 8).double()]
    expected = ttt(Linear(), *given, mini_batch=4, backend="torch")[0]
    with pytest.warns(DeprecationWarning, match="torch"):
        assert torch.equal(ttt(Linear(), *given, mini_batch=4, backend="reference")[0], expected)
    defined = ttt(Linear(), *given, mini_batch=4, backend="definition")[0]
    torch.testing.assert_close(defined, expected, rtol=0, atol=TOLERANCE[torch.float64])


def test_pending_is_grad_sum() -> None:
    inner = init_state(Linear(), 1, 2, 8, Update(), "token", torch.zeros(1))
    layer = TTTLayer(16, 2).init_state(1)
    for held in (inner, layer):
        with pytest.warns(DeprecationWarning, match="grad_sum"):
            assert held.pending is held.grad_sum


def test_states_and_weights_of_then_are_read(tmp_path: Path) -> None:
    update = Update(max_norm=torch.nn.Parameter(torch.tensor([2.0, 3.0])))
    layer, other = (TTTLayer(16, 2, mini_batch=4, update=update) for _ in range(2))
    held = layer(torch.randn(1, 6, 16))[1].detach()
    state.save(held, tmp_path / "now")
    tensors = {("pending" if name == "grad_sum" else name): x for name, x in load_file(tmp_path / "now").items()}
    assert "pending" in tensors
    save_file(tensors, tmp_path / "then", metadata={"format": state.FORMAT})
    for a, b in zip(state.load(tmp_path / "then", layer), held, strict=True):
        assert torch.equal(a, b)
    weights = layer.state_dict()
    weights["longest"] = weights.pop("max_norm") + 1.0
    other.load_state_dict(weights)
    assert other.update.max_norm.tolist() == [3.0, 4.0]

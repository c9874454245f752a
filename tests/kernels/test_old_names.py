"""States and weights that were saved under the names of 0.1 are read."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tttstream import TTTLayer, state
from tttstream_kernels import Update


def test_states_and_weights_with_old_names_load(tmp_path: Path) -> None:
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

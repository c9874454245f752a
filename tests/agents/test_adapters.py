"""What all adapters share: an absent library is an error that names the extra, and the example of how to write one."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tttstream.errors import DependencyError


@pytest.mark.parametrize(
    ("adapter", "package"), [("sb3", "sb3_contrib"), ("torchrl", "torchrl.data"), ("rllib", "ray.rllib.core.columns")]
)
@pytest.mark.filterwarnings("ignore")  # TorchRL and Ray warn of themselves when they are imported
def test_without_the_library_the_extra_is_named(adapter: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, f"tttstream_agents.{adapter}", raising=False)
    with pytest.raises(DependencyError, match=rf"pip install 'tttstream\[{adapter}\]'"):
        importlib.import_module(f"tttstream_agents.{adapter}")


def test_the_example_of_an_adapter_acts_as_it_evaluates(root: Path) -> None:
    text = (root / "CONTRIBUTING.md").read_text(encoding="utf-8").split("### An adapter to")[1]
    module: dict[str, Any] = {}
    exec(text.split("```python\n")[1].split("```")[0], module)
    torch.manual_seed(0)
    memory = module["FlatMemory"](3, dim=16, heads=1)
    obs, starts = torch.randn(20, 2, 3), torch.rand(20, 2) < 0.2
    whole, end = memory(obs, memory.initial_state(2), starts)
    flat, steps = memory.initial_state(2), []
    for t in range(20):
        features, flat = memory(obs[t : t + 1], flat, starts[t : t + 1])
        steps.append(features)
    torch.testing.assert_close(torch.cat(steps), whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(flat, end, atol=1e-4, rtol=1e-4)

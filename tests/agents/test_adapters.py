"""What all adapters share: an absent library gives an error that names the extra."""

from __future__ import annotations

import importlib
import sys

import pytest

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

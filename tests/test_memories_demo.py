"""demos/memories.py and demos/short_long.py: names of memories and variants, and equal recipes for all."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tttstream_kernels import RMS, Muon


@pytest.fixture
def demos(root: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a demo by name."""
    monkeypatch.syspath_prepend(str(root / "demos"))
    yield importlib.import_module
    for name in ("memories", "short_long", "runs"):
        sys.modules.pop(name, None)


def test_every_memory_answers(demos: Any) -> None:
    memories = demos("memories")
    torch.manual_seed(0)
    stream = memories.Worlds(2, 0).go(5)
    for name in memories.NAMES:
        classes, seen, counts, state = memories.Network(name, 16)(stream)
        assert classes.shape == (2, 5, memories.VALUES), name
        assert seen.shape == counts.shape == (2, 5)
        assert state.rows == 2


def test_variants_change_one_thing(demos: Any) -> None:
    memories = demos("memories")
    plain = memories.make("ttt_linear", 16)
    changed = {name: memories.make(name, 16) for name in memories.VARIANTS}
    for name, layer in changed.items():
        same = layer.update._replace(**{field: getattr(plain.update, field) for field in memories.VARIANTS[name][1]})
        assert layer.tokens != plain.tokens or same == plain.update, name
    assert isinstance(changed["ttt_linear_muon"].update.direction, Muon)
    assert isinstance(changed["ttt_linear_rms"].update.direction, RMS)
    assert changed["ttt_linear_64_muon"].tokens == 64
    assert type(changed["ttt_linear_next"].task).__name__ == "NextValue"


def test_recipes_see_the_same_number_of_tokens(demos: Any) -> None:
    recipes = demos("short_long").RECIPES
    tokens = {name: sum(part.steps * part.rows * part.length for part in parts) for name, parts in recipes.items()}
    assert set(tokens.values()) == {1_024_000}

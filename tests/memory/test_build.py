"""Memories by name."""

import pytest
import torch

from tttstream import TTTLayer
from tttstream.inner import CATALOGUE
from tttstream.memory import (
    GRU,
    LSTM,
    RWKV7,
    Additive,
    Attention,
    Delta,
    GatedDelta,
    KernelDelta,
    Mamba2,
    Memory,
    Mesa,
    Mixed,
    MixedHeads,
    Nested,
    Slots,
    Window,
    build,
    names,
)

GRID = {f"ttt_{name}": {"grid": (2, 2)} for name, model in CATALOGUE.items() if model.frame_only}


@pytest.mark.parametrize("name", names())
def test_every_name_builds_a_memory(name: str) -> None:
    memory = build(name, dim=16, heads=2, **GRID.get(name, {}))
    assert isinstance(memory, Memory)
    assert memory.dim == 16
    assert memory.bounded == (name != "attention")
    assert isinstance(memory.init_state(1), memory.state_type)
    assert memory.state_dict().keys() == dict(memory.named_parameters()).keys(), "a memory holds parameters only"


def test_names_belong_to_classes() -> None:
    classes = {name: type(build(name, dim=16, heads=2, **GRID.get(name, {}))) for name in names()}
    ttt = dict.fromkeys(("ttt_linear", "ttt_mlp", "ttt_conv", "ttt_swiglu"), TTTLayer)
    rules = {
        "additive": Additive,
        "delta": Delta,
        "kernel_delta": KernelDelta,
        "gated_delta": GatedDelta,
        "ttt": MixedHeads,
        "mixed": Mixed,
        "ttt_nested": Nested,
        "ttt_slots": Slots,
    }
    rules |= {"mesa": Mesa, "mamba2": Mamba2, "rwkv7": RWKV7}
    assert classes == {**ttt, **rules, "attention": Attention, "window": Window, "lstm": LSTM, "gru": GRU}


def test_options_reach_the_class() -> None:
    window = build("window", dim=16, heads=2, window=9)
    assert isinstance(window, Window)
    assert window.window == 9
    lstm = build("lstm", dim=16, layers=3)
    assert isinstance(lstm, LSTM)
    assert lstm.init_state(2).hidden.shape == (2, 3, 16)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("name", names())
def test_a_memory_built_without_values_loads_them(name: str, assign: bool) -> None:
    """Memories built on the device "meta" get their weights by loading them, and their constants are restored."""
    options = GRID.get(name, {})
    torch.manual_seed(0)
    memory, x = build(name, dim=16, heads=2, **options), torch.randn(1, 8, 16)
    with torch.device("meta"):
        empty = build(name, dim=16, heads=2, **options)
    if not assign:
        empty.to_empty(device="cpu")
    empty.load_state_dict(memory.state_dict(), assign=assign)
    assert torch.equal(empty(x)[0], memory(x)[0])

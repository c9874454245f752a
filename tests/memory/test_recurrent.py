"""LSTM and GRU memories against torch's layers stepped token by token, and the cost of resets."""

import pytest
import torch
from torch import nn

from tttstream.memory import GRU, LSTM
from tttstream.testing import assert_close


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_outputs_and_states_equal_torchs_layers_token_by_token(kind: type[LSTM] | type[GRU], layers: int) -> None:
    torch.manual_seed(layers)
    memory = kind(8, layers=layers).double()
    x = torch.randn(4, 20, 8, dtype=torch.float64)
    reset = torch.rand(4, 20) < 0.2
    lengths = torch.tensor([20, 13, 0, 7])
    y, state = memory(x, reset=reset, lengths=lengths)
    for row in range(4):
        hidden = None
        for t in range(int(lengths[row])):
            out, hidden = memory.core(x[row : row + 1, t : t + 1], None if reset[row, t] else hidden)
            assert_close(y[row, t], out[0, 0])
        if hidden is not None:
            leaves = hidden if isinstance(hidden, tuple) else (hidden,)
            assert_close(list(state[row]), [leaf.transpose(0, 1) for leaf in leaves])
        else:
            assert all(leaf.eq(0).all() for leaf in state[row])


@pytest.mark.parametrize(("kind", "layer"), [(LSTM, nn.LSTM), (GRU, nn.GRU)])
def test_the_layer_runs_once_with_any_resets(
    kind: type[LSTM] | type[GRU], layer: type[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = kind(8)
    tokens = []
    forward = layer.forward

    def counted(self: nn.Module, x: torch.Tensor, *rest: object) -> object:
        data = x.data if isinstance(x, nn.utils.rnn.PackedSequence) else x
        tokens.append(data.numel() // 8)
        return forward(self, x, *rest)

    monkeypatch.setattr(layer, "forward", counted)
    x = torch.randn(4, 50, 8)
    memory(x)
    memory(x, reset=torch.rand(4, 50) < 0.3)
    memory(x, reset=torch.rand(4, 50) < 0.3, lengths=torch.tensor([50, 20, 0, 1]))
    assert tokens == [200, 200, 71], "each token once, nothing padded"


@pytest.mark.parametrize("kind", [LSTM, GRU])
def test_a_reset_at_the_start_needs_no_pieces(kind: type[LSTM] | type[GRU], monkeypatch: pytest.MonkeyPatch) -> None:
    """The only place where RL rollouts reset: it must not cost more than a plain call."""
    memory = kind(8)
    monkeypatch.setattr(memory, "_run_pieces", None)
    _, state = memory(torch.randn(3, 5, 8))
    reset = torch.zeros(3, 6, dtype=torch.bool)
    reset[1, 0] = True
    x = torch.randn(3, 6, 8)
    y, _ = memory(x, state, reset)
    assert_close(y[1], memory(x[1:2])[0][0])
    memory(x[:, :1], state, reset[:, :1])

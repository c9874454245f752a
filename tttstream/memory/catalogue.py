"""The memories by name: the one list that `build`, `tttstream info`, the agents, the configs and the laws read."""

from functools import partial
from typing import Any

from tttstream.inner import CATALOGUE as INNER_MODELS
from tttstream.inner import InnerModel
from tttstream.memory.attention import Attention, Window
from tttstream.memory.heads import MixedHeads
from tttstream.memory.mamba2 import Mamba2
from tttstream.memory.matrix import Additive, Delta, GatedDelta, KernelDelta
from tttstream.memory.mesa import Mesa
from tttstream.memory.mixed import Mixed
from tttstream.memory.nested import Nested
from tttstream.memory.recurrent import GRU, LSTM
from tttstream.memory.registry import CATALOGUE, Entry, build, names, takes
from tttstream.memory.rwkv7 import RWKV7
from tttstream.memory.slots import Slots
from tttstream.memory.ttt import TTTLayer

__all__ = ["CATALOGUE", "Entry", "build", "names", "takes"]


def _ttt(name: str, model: InnerModel) -> Entry:
    mode: dict[str, Any] = {"causal": "frame"} if model.frame_only else {}
    return Entry(partial(TTTLayer, inner=name, **mode), model.about or "")


CATALOGUE |= {
    **{f"ttt_{name}": _ttt(name, model) for name, model in INNER_MODELS.items() if model.about is not None},
    "ttt": Entry(MixedHeads, "mixed heads: additive, delta and gated delta in one recurrence"),
    "mixed": Entry(Mixed, "memories of several kinds side by side: ttt_mlp, delta, additive"),
    "ttt_nested": Entry(Nested, "a delta rule whose start is learned by an outer learner, block by block"),
    "ttt_slots": Entry(Slots, "attention over a bounded set of slots whose keys and values are learned"),
    "additive": Entry(Additive, "linear attention without a norm: sums that count"),
    "delta": Entry(Delta, "the delta rule, steps up to 2"),
    "kernel_delta": Entry(
        KernelDelta, "the delta rule on random Fourier features: many more pairs than the delta rule"
    ),
    "gated_delta": Entry(GatedDelta, "the delta rule with a decay a head or a channel"),
    "mesa": Entry(Mesa, "ridge regression of all that was seen, solved for every query"),
    "mamba2": Entry(Mamba2, "the state space layer of Mamba-2"),
    "rwkv7": Entry(RWKV7, "the time mixing of RWKV-7, a generalised delta rule"),
    "attention": Entry(Attention, "softmax attention over everything; its state grows"),
    "window": Entry(Window, "softmax attention over the last tokens"),
    "lstm": Entry(LSTM, "torch.nn.LSTM"),
    "gru": Entry(GRU, "torch.nn.GRU"),
}

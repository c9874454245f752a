"""Matrix memories against their published recurrences, written out token by token for one row, in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tttstream.memory import Memory, Mixed, MixedHeads, build
from tttstream.memory.recurrence import LEAST, Token, recurrence
from tttstream.testing import Case, assert_close, gradients

DIM, HEADS = 12, 2
WIDTH = DIM // HEADS
Literal = Callable[..., tuple[Tensor, ...]]
"""(memory, x [T, dim], matrix [H, Dk, Dv], window [taps - 1, channels]) -> (y [T, dim], matrix, window)."""


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def softplus(x: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(x))


def unit(x: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).sum() + 1e-6)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / torch.sqrt((x * x).mean() + 1e-6) * weight


def convolved(conv: Any, window: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    """One token p [channels] through a causal convolution over it and the tokens before it; the next window."""
    if conv is None:
        return p, window
    taps = torch.cat([window, p[None]])
    return silu((conv.weight[0] * taps).sum(0) + conv.bias[0]), taps[1:]


def rows(rule: Callable[..., tuple[Tensor, Tensor]], read: Callable[..., Tensor]) -> Literal:
    """A memory with q, k and v from one convolved projection: rule(memory, head, S, q, k, v, x) -> (S, o), then
    read(memory, o [H, D], x)."""

    def literal(memory: Any, x: Tensor, matrix: Tensor, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = []
        heads = list(matrix)
        for token in x:
            p, window = convolved(memory.conv, window, memory.project.weight @ token)
            q, k, v = p.view(3, memory.heads, -1)
            o = []
            for h in range(memory.heads):
                heads[h], answer = rule(memory, h, heads[h], unit(q[h]), unit(k[h]), v[h], token)
                o.append(answer)
            out.append(memory.out.weight @ read(memory, torch.stack(o), token))
        return torch.stack(out), torch.stack(heads), window

    return literal


def add(memory: Any, h: int, s: Tensor, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    s = s + torch.outer(k, v)
    return s, q @ s


def beta(memory: Any, h: int, x: Tensor) -> Tensor:
    return memory.reach * sigmoid(memory.rate.weight[h] @ x + memory.rate.bias[h])


def correct(memory: Any, h: int, s: Tensor, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    s = s - beta(memory, h, x) * torch.outer(k, k @ s - v)
    return s, q @ s


def by_features(memory: Any, h: int, s: Tensor, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    at, asked = (torch.cat([torch.cos(z @ memory.waves[h]), torch.sin(z @ memory.waves[h])]) for z in (k, q))
    s = s - beta(memory, h, x) / (at @ at) * torch.outer(at, at @ s - v)
    return s, asked @ s


def fade(memory: Any, h: int, s: Tensor, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    decay = memory.decay
    raw = decay.rate.weight[h] @ x + decay.rate.bias[h]
    return correct(memory, h, torch.exp(-decay.scale[h].exp() * softplus(raw)) * s, q, k, v, x)


def fade_channels(memory: Any, h: int, s: Tensor, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    decay = memory.decay
    raw = decay.up.weight @ decay.down.weight @ x + decay.up.bias
    alpha = torch.exp(LEAST * sigmoid(raw.view(HEADS, WIDTH)[h]))
    return correct(memory, h, torch.diag(alpha) @ s, q, k, v, x)


def by_head(memory: Any, h: int, s: Tensor, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Additive with a first value of 1, delta, delta, gated delta."""
    if h == 0:
        v = torch.cat([torch.ones(1, dtype=v.dtype), v[1:]])
        return add(memory, h, s, q, 0.5 * beta(memory, h, x) * k, v, x)
    if h < 3:
        return correct(memory, h, s, q, k, v, x)
    decay = memory.decay
    raw = decay.rate.weight[0] @ x + decay.rate.bias[0]
    return correct(memory, h, torch.exp(-decay.scale[0].exp() * softplus(raw)) * s, q, k, v, x)


def ridge(memory: Any, h: int, s: Tensor, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    weight = sigmoid(memory.rate.weight[h] @ x + memory.rate.bias[h])
    raw = memory.decay.rate.weight[h] @ x + memory.decay.rate.bias[h]
    s = torch.exp(-memory.decay.scale[h].exp() * softplus(raw)) * s + weight * torch.outer(k, torch.cat([v, k]))
    values, squares = s.chunk(2, 1)
    return s, torch.linalg.solve(
        0.5 * (squares + squares.mT) + torch.diag(0.25 + softplus(memory.ridge[h])), q
    ) @ values


def nested(memory: Any, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    """A block at a time: the delta rule, then the step of the outer learner."""
    inner, start, phase, window = state
    place, out = int(phase), []
    for token in x:
        y, inner, window = RULES["delta"][2](memory, token[None], inner, window)
        out.append(y[0])
        place += 1
        if place == memory.block:
            place = 0
            start = start + sigmoid(memory.outer)[:, None, None] * (inner - start)
            inner = start
    return torch.stack(out), inner, start, torch.tensor(float(place)).double(), window


def slots(memory: Any, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    """A token at a time: the delta rule on attention weights of length 1; after a block the keys of the slots move."""
    values, keys, sums, phase, window = state
    place, out, shift, gathered = int(phase), [], list(keys), list(sums)

    def write(memory: Any, h: int, s: Tensor, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        read = []
        for z in (q, k):
            powers = torch.exp(memory.sharp[h].exp() * ((memory.start[h] + shift[h]) @ z))
            read.append(powers / powers.sum())
        rate = beta(memory, h, x)
        gathered[h] = gathered[h] + 0.5 * rate * torch.outer(read[1], torch.cat([k, torch.ones(1).double()]))
        s = s + rate * torch.outer(unit(read[1]), v - unit(read[1]) @ s)
        return s, unit(read[0]) @ s

    for token in x:
        y, values, window = rows(write, normed)(memory, token[None], values, window)
        out.append(y[0])
        place += 1
        if place == memory.block:
            place = 0
            for h in range(HEADS):
                means, weight = gathered[h][:, :-1] / gathered[h][:, -1:], gathered[h][:, -1:]
                rho = sigmoid(memory.outer[h]) * weight / (1.0 + weight)
                shift[h] = shift[h] + rho * (means - memory.start[h] - shift[h])
                gathered[h] = torch.zeros_like(gathered[h])
    now = values, torch.stack(shift), torch.stack(gathered), torch.tensor(float(place)).double(), window
    return torch.stack(out), *now


def mamba2(memory: Any, x: Tensor, matrix: Tensor, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    inner, state = 2 * DIM, 6
    out = []
    heads = list(matrix)
    for token in x:
        p = memory.project.weight @ token
        gate, step = p[:inner], softplus(p[-HEADS:] + memory.bias)
        p, window = convolved(memory.conv, window, p[inner:-HEADS])
        value, b, c = p[:inner].view(HEADS, -1), p[inner : inner + state], p[inner + state :]
        y = []
        for h in range(HEADS):
            decay = torch.exp(-memory.scale[h].exp() * step[h])
            heads[h] = decay * heads[h] + step[h] * torch.outer(b, value[h])
            y.append(c @ heads[h] + memory.skip[h] * value[h])
        out.append(memory.out.weight @ rms(torch.cat(y) * silu(gate), memory.norm.weight))
    return torch.stack(out), torch.stack(heads), window


def rwkv7(memory: Any, x: Tensor, matrix: Tensor, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As in the paper, whose state has the values as its rows."""
    out, before = [], window[0]
    heads = [one.mT for one in matrix]

    def small(net: Any, z: Tensor, inner: Callable[[Tensor], Tensor]) -> Tensor:
        y = net.up.weight @ inner(net.down.weight @ z)
        return y if net.up.bias is None else y + net.up.bias

    for token in x:
        r, w, k, v, a, g = (token + (before - token) * mix for mix in memory.mix)
        before = token
        r, k, v = memory.receptance.weight @ r, memory.key.weight @ k, memory.value.weight @ v
        w = torch.exp(-torch.exp(torch.tensor(-0.5).double()) * sigmoid(small(memory.decay, w, torch.tanh)))
        a = sigmoid(small(memory.rate, a, lambda z: z))
        gate = small(memory.gate, g, sigmoid)
        removed = (k * memory.remove).view(HEADS, WIDTH)
        k = k * (1 + (a - 1) * memory.keep)
        o = []
        for h, part in enumerate(torch.arange(DIM).view(HEADS, WIDTH)):
            one = unit(removed[h])
            heads[h] = heads[h] @ (torch.diag(w[part]) - torch.outer(one, a[part] * one)) + torch.outer(
                v[part], k[part]
            )
            read = heads[h] @ r[part]
            normal = (read - read.mean()) / torch.sqrt(read.var(unbiased=False) + 64e-5)
            own = (r[part] * memory.bonus[h] * k[part]).sum() * v[part]
            o.append(normal * memory.norm.weight[part] + memory.norm.bias[part] + own)
        out.append(memory.out.weight @ (torch.cat(o) * gate))
    return torch.stack(out), torch.stack([one.mT for one in heads]), before[None]


def plain(memory: Any, o: Tensor, x: Tensor) -> Tensor:
    return o.flatten()


def normed(memory: Any, o: Tensor, x: Tensor) -> Tensor:
    return torch.cat([rms(one, memory.norm.weight) for one in o])


def gated(memory: Any, o: Tensor, x: Tensor) -> Tensor:
    return normed(memory, o, x) * silu(memory.gate.weight @ x)


def by_head_read(memory: Any, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
    """What the additive head reads is put out normalised, and as a sum in all channels."""
    seen: list[Tensor] = []

    def read(memory: Any, o: Tensor, x: Tensor) -> Tensor:
        seen.append(o[0])
        return normed(memory, o, x)

    y, matrix, window = rows(by_head, read)(memory, x, *state)
    total = torch.stack([(one * memory.total[0]).sum() for one in seen])
    return y + total[:, None], matrix, window


RULES: dict[str, tuple[str, dict[str, Any], Literal]] = {
    "additive": ("additive", {}, rows(add, plain)),
    "additive-raw": ("additive", {"conv": 0}, rows(add, plain)),
    "delta": ("delta", {}, rows(correct, normed)),
    "delta-half": ("delta", {"reach": 1.0, "conv": 2}, rows(correct, normed)),
    "kernel_delta": ("kernel_delta", {}, rows(by_features, plain)),
    "kernel_delta-few": ("kernel_delta", {"features": 4, "sharp": 0.7, "conv": 0}, rows(by_features, plain)),
    "gated_delta": ("gated_delta", {}, rows(fade, gated)),
    "mesa": ("mesa", {}, rows(ridge, normed)),
    "ttt_nested": ("ttt_nested", {"block": 6}, nested),
    "ttt_slots": ("ttt_slots", {"block": 6, "slots": 5}, slots),
    "mamba2": ("mamba2", {"state": 6}, mamba2),
    "rwkv7": ("rwkv7", {"rank": 4}, rwkv7),
    "ttt": ("ttt", {}, by_head_read),
    "ttt-raw": ("ttt", {"conv": 0}, by_head_read),
    "gated_delta-channel": ("gated_delta", {"decay": "channel", "reach": 2.0}, rows(fade_channels, gated)),
}
every_rule = pytest.mark.parametrize("name", RULES)


def made(name: str) -> tuple[Memory, Literal]:
    kind, options, literal = RULES[name]
    return Case(kind, options, dim=DIM, heads=HEADS).memory(), literal


@every_rule
@pytest.mark.parametrize("tokens", [1, 2, 17, 70])
def test_outputs_state_and_gradients_equal_the_literal_recurrence(name: str, tokens: int) -> None:
    """Outputs, state, and gradients with respect to tokens, parameters and the state before."""
    memory, literal = made(name)
    x = torch.randn(2, tokens, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    before = torch.randn(2, 9, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    old = memory(before)[1].detach().map(lambda leaf: leaf.requires_grad_())
    results = []
    for way in ("memory", "literal"):
        if way == "memory":
            y, state = memory(x, old)
        else:
            parts = [literal(memory, *one) for one in zip(x, *old, strict=True)]
            y, *held = (torch.stack(part) for part in zip(*parts, strict=True))
            state = type(old)(*held)
        results.append([y, state, gradients(memory, [y, state], [x, *old.tensors()])])
    assert_close(results[0], results[1])


@every_rule
def test_a_fresh_state_equals_the_literal_recurrence(name: str) -> None:
    memory, literal = made(name)
    x = torch.randn(1, 40, DIM, dtype=torch.float64)
    y, state = memory(x)
    fresh = memory.init_state(1)
    expected = literal(memory, x[0], *(leaf[0] for leaf in fresh.tensors()))
    assert_close([y[0], *(leaf[0] for leaf in state.tensors())], list(expected))


@pytest.mark.parametrize("heads", [1, 3, 4])
def test_mixed_are_memories_side_by_side(heads: int) -> None:
    """Heads are dealt out in turn, and one of each rule is there in any case."""
    options = {"ttt_mlp": {"mini_batch": 4, "rotary": False}}
    memory = Case("mixed", {"options": options}, dim=12, heads=heads).memory()
    assert isinstance(memory, Mixed)
    assert memory.sizes == {1: [12, 12, 12], 3: [4, 4, 4], 4: [6, 3, 3]}[heads]
    x = torch.randn(2, 11, 12, dtype=torch.float64)
    y, state = memory(x)
    shares = torch.split(x @ memory.into.weight.mT, memory.sizes, -1)
    told = [part(share) for part, share in zip(memory.parts, shares, strict=True)]
    assert_close(y, torch.cat([one for one, _ in told], -1) @ memory.out.weight.mT)
    assert_close(state.parts, tuple(new for _, new in told))


def test_mixed_heads_count_and_a_norm_after_them_hides_it() -> None:
    """Three items are counted exactly over 3,000 tokens, in the mean of the channels; a LayerNorm gives what it gives
    for a thousand times the sums, so what the other heads read is not swamped."""
    memory = build("ttt", dim=12, heads=4, conv=0).double()
    assert isinstance(memory, MixedHeads)
    item = torch.randint(3, (1, 3000), generator=torch.Generator().manual_seed(0))
    x = torch.randn(1, 3000, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    x[..., :3] = torch.nn.functional.one_hot(item, 3)
    with torch.no_grad():
        memory.project.weight[[0, 1, 2, 12, 13, 14]] = 0.0  # q and k of the first head
        for place in range(3):
            memory.project.weight[[place, 12 + place], place] = 1.0
        memory.rate.weight[0] = 0.0
        memory.total.copy_(torch.tensor([[2.0, 0.0, 0.0]]))  # the step size is a half
        state = memory(x)[1]
        memory.out.weight.zero_()
        counted = memory(x)[0][0]
    seen = torch.nn.functional.one_hot(item[0], 3).cumsum(0).gather(1, item[0, :, None])
    torch.testing.assert_close(counted, seen.double().expand(-1, 12), rtol=1e-5, atol=0)  # keys have length 1 - 5e-7

    norm = torch.nn.functional.layer_norm
    more = state._replace(matrix=torch.cat([1000 * state.matrix[:, :1], state.matrix[:, 1:]], 1))
    memory = build("ttt", dim=12, heads=4, conv=0).double()
    few, many = (memory(x[:, :1], one)[0].detach() for one in (state, more))
    assert float((many - few).abs().mean()) > 1000
    torch.testing.assert_close(norm(many, (12,)), norm(few, (12,)), rtol=0, atol=0.02)


@pytest.mark.parametrize("wide", [False, True], ids=["number", "channel"])
def test_the_strongest_decay_stays_in_range(wide: bool) -> None:
    """Chunks in float32 agree with single tokens where everything fades by exp(LEAST) a token, and no gradient is lost
    (a number a head may fade faster yet)."""
    generator = torch.Generator().manual_seed(0)
    size = (1, 100, 1, 8)
    q, k, v = (torch.randn(size, generator=generator) for _ in range(3))
    decay = torch.full((1, 100, 1, 8 if wide else 1), LEAST if wide else -200.0).requires_grad_()
    k = torch.nn.functional.normalize(k, dim=-1).requires_grad_()
    state = torch.randn(1, 1, 8, 8, generator=generator)
    o, end = recurrence(Token(q, k, v, decay, read=k), state)
    (o.square().sum() + end.square().sum()).backward()
    assert decay.grad is not None
    assert decay.grad.isfinite().all()
    singly = []
    with torch.no_grad():
        for t in range(100):
            part = slice(t, t + 1)
            one, state = recurrence(Token(q[:, part], k[:, part], v[:, part], decay[:, part], read=k[:, part]), state)
            singly.append(one)
    assert_close([o.detach(), end.detach()], [torch.cat(singly, 1), state])


def test_an_additive_memory_counts() -> None:
    """The k-th write of a value is read k times as large; the delta rule, whose step ends the error, reads it once."""
    k = torch.zeros(1, 50, 1, 4, dtype=torch.float64)
    k[..., 0] = 1.0
    v = torch.ones(1, 50, 1, 1, dtype=torch.float64)
    state = torch.zeros(1, 1, 4, 1, dtype=torch.float64)
    counted, _ = recurrence(Token(k, k, v), state)
    assert_close(counted.flatten(), torch.arange(1.0, 51.0).double())
    corrected, _ = recurrence(Token(k, k, v, read=k), state)
    assert_close(corrected.flatten(), torch.ones(50).double())


def test_how_far_float32_counts() -> None:
    """Ones are counted up to 2^24 = 16,777,216, token by token no further; in chunks of even size the sum continues,
    but an odd number is no longer told from its neighbours."""
    one = torch.ones(1, 1, 1, 1)
    state = torch.full((1, 1, 1, 1), 2.0**24 - 2)
    seen = []
    for _ in range(4):
        o, state = recurrence(Token(one, one, one), state)
        seen.append(float(o))
    assert seen == [2.0**24 - 1, 2.0**24, 2.0**24, 2.0**24]
    many = torch.ones(1, 64, 1, 1)
    _, state = recurrence(Token(many, many, many), state)
    assert float(state) == 2.0**24 + 64
    assert build("additive", dim=4).adds_up


@pytest.mark.gpu
@every_rule
def test_on_a_gpu(name: str) -> None:
    """The same outputs and state as on the CPU, in float64, with rows that are reset and cut short."""
    memory, _ = made(name)
    x = torch.randn(3, 70, DIM, dtype=torch.float64)
    reset = torch.rand(3, 70) < 0.05
    lengths = torch.tensor([70, 33, 0])
    expected = memory(x, reset=reset, lengths=lengths)
    y, state = memory.to("cuda")(x.cuda(), reset=reset.cuda(), lengths=lengths.cuda())
    assert_close([y.cpu(), state.to("cpu")], list(expected))

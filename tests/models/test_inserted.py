"""Memories inserted into networks of frames: nothing changes at first, and the laws of streams hold."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import SwinTransformer, VisionTransformer
from torchvision.models.resnet import BasicBlock, ResNet

import tttstream
from tttstream import models, state
from tttstream.errors import CheckpointError, ConfigError, ShapeError, StateError
from tttstream.models.inserted import Inserted, insert, load
from tttstream.testing import assert_close

AT = {"vit": "encoder.layers.*", "swin": ["features.1.*", "features.3.*"], "cnn": ["layer2.*", "layer4"]}
WAYS = [
    ("ttt_mlp", "mean"), ("ttt_mlp", "sequence"), ("ttt_linear", "position"), ("ttt_conv", "sequence"),
    ("gated_delta", "mean"), ("gru", "position"), ("window", "sequence"),
]  # fmt: skip
GRID = [("vit", *way) for way in WAYS] + [
    (kind, *way) for kind in ("swin", "cnn") for way in (WAYS[0], WAYS[3], WAYS[5])
]
NARROW = {"ttt_mlp": {"mini_batch": 4}, "window": {"window": 20}}


def network(kind: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if kind == "vit":
            net: nn.Module = VisionTransformer(16, 4, 2, 2, 16, 32, num_classes=5)
            nn.init.normal_(net.heads[0].weight)  # torchvision starts it at zero
        elif kind == "swin":
            net = SwinTransformer([4, 4], 16, [1, 1], [1, 2], [2, 2], num_classes=5)
        else:
            net = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)
    return net.eval().to(dtype)


def inserted(
    kind: str, memory: str = "ttt_mlp", tokens: str = "mean", dtype: torch.dtype = torch.float64, moved: bool = True
) -> Inserted:
    """moved: every parameter of the memories off its start, so that the gates are open."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        options = NARROW.get(memory, {}) if tokens != "sequence" or memory == "window" else {}
        model = insert(
            network(kind, dtype),
            AT[kind],
            memory,
            dim=8,
            heads=2,
            tokens=tokens,
            example=frames(1, 1, dtype)[0],
            **options,
        )
        with torch.no_grad():
            for parameter in model.memories.parameters() if moved else ():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def frames(rows: int, count: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, count, 3, 16, 16, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize(("kind", "memory", "tokens"), GRID)
def test_output_is_unchanged_at_first(kind: str, memory: str, tokens: str) -> None:
    x = frames(2, 3, torch.float32)
    model = inserted(kind, memory, tokens, torch.float32, moved=False)
    with torch.no_grad():
        y, after = model(x)
        plain = network(kind)(x.flatten(0, 1)).unflatten(0, (2, 3))
        opened = inserted(kind, memory, tokens, torch.float32)(x)[0]
        alone = model.network(x[0])
    assert torch.equal(y, plain)
    assert_close(model(x)[0], plain, 1e-5)  # with gradients torch's attention uses another implementation
    assert not torch.equal(opened, plain)  # and an open gate does change it
    assert after.rows == 2
    fresh = model.init_state(2)
    assert all(not leaf.any() for leaf in fresh.tensors())
    assert [leaf.shape for leaf in after.tensors()] == [leaf.shape for leaf in fresh.tensors()]
    assert_close(alone, plain[0], 1e-5)  # the network by itself is unchanged


@pytest.mark.parametrize(("kind", "memory", "tokens"), GRID)
def test_law2_any_partition(kind: str, memory: str, tokens: str) -> None:
    model, x = inserted(kind, memory, tokens), frames(2, 7)
    reset = torch.zeros(2, 7, dtype=torch.bool)
    reset[1, 3] = True
    lengths = torch.tensor([7, 5])
    whole, last = model(x, reset=reset, lengths=lengths)
    outputs, now, start = [], None, 0
    for size in (1, 3, 1, 2):
        piece = slice(start, start + size)
        y, now = model(x[:, piece], now, reset[:, piece], (lengths - start).clamp(0, size))
        outputs.append(y)
        start += size
    assert_close(torch.cat(outputs, 1), whole, 1e-10)
    assert_close(now, last, 1e-10)
    assert not whole[1, 5:].any()


def test_law2_gradients() -> None:
    model, x = inserted("vit", "ttt_mlp", "sequence"), frames(1, 4)

    def gradients(*sizes: int) -> list[Tensor]:
        now, total = None, torch.zeros((), dtype=torch.float64)
        for piece in x.split(sizes, 1):
            y, now = model(piece, now)
            total = total + (y * torch.arange(5)).sum()
        return list(torch.autograd.grad(total, [p for p in model.parameters() if p.requires_grad], allow_unused=True))

    for split, whole in zip(gradients(1, 2, 1), gradients(4), strict=True):
        assert (split is None) == (whole is None)
        if whole is not None:
            assert_close(split, whole, 1e-9)


@pytest.mark.parametrize(("kind", "memory", "tokens"), GRID)
def test_law3_reset_and_isolation(kind: str, memory: str, tokens: str) -> None:
    model, x = inserted(kind, memory, tokens), frames(3, 6)
    reset = torch.zeros(3, 6, dtype=torch.bool)
    reset[0, 3] = reset[1, 2] = True
    clean, states = model(x, reset=reset)
    alone, of_alone = model(x[:1, 3:])
    assert_close(clean[:1, 3:], alone, 1e-10)  # after a reset, beside other rows: as alone
    assert_close(states[0], of_alone, 1e-10)
    bad = x.clone()
    bad[1, 1] = torch.nan
    y, after = model(bad, reset=reset)
    assert y[1, 1].isnan().any()
    for row in (0, 2):
        assert_close(y[row], clean[row], 1e-10)
    assert_close(y[1, :1], clean[1, :1], 1e-10)
    assert_close(y[1, 2:], clean[1, 2:], 1e-10)
    assert_close(after, states, 1e-10)
    padded = x.clone()
    padded[2, 4:] = torch.nan
    lengths = torch.tensor([6, 6, 4])
    y, after = model(padded, reset=reset, lengths=lengths)
    short, of_short = model(x[2:, :4])
    assert_close(y[2:, :4], short, 1e-10)
    assert_close(after[2], of_short, 1e-10)
    _, same = model(x, after, lengths=torch.tensor([0, 0, 0]))
    assert_close(same, after, 0.0)


@pytest.mark.parametrize(("memory", "tokens"), WAYS)
def test_law4_constant_memory(memory: str, tokens: str) -> None:
    model = inserted("vit", memory, tokens, torch.float32)
    sizes, now = set(), None
    with torch.no_grad():
        for number in range(6):
            _, now = model(frames(1, 9, torch.float32, number), now)
            sizes.add(now.nbytes)
    assert sizes == {model.init_state(1).nbytes}
    flat = state.pack(now)
    assert_close(state.unpack(flat, model), now, 0.0)


@pytest.mark.parametrize(
    ("memory", "tokens"), [("ttt_mlp", "mean"), ("ttt_linear", "sequence"), ("gated_delta", "mean")]
)
def test_law6_the_state_stays_bounded(memory: str, tokens: str) -> None:
    """Forty scenes of 25 frames: the state of the last is as large as that of the first, and its frames still count."""
    model = inserted("vit", memory, tokens, torch.float32)
    now, largest, moved = None, [], []
    with torch.no_grad():
        for scene in range(40):
            x = frames(1, 1, torch.float32, scene) + 0.3 * frames(1, 25, torch.float32, 1000 + scene)
            before = now
            y, now = model(x, now)
            largest.append(max(float(leaf.abs().max()) for leaf in now.places[0].tensors() if leaf.numel()))
            moved.append(float((y - model(x, before, learn=False)[0]).abs().mean()) if memory[:3] == "ttt" else 1.0)
    assert all(leaf.isfinite().all() for leaf in now.tensors())
    assert max(largest[-10:]) < 3 * max(largest[:10])
    assert min(moved[-10:]) > 0.3 * min(moved[:10]) > 0.0


@pytest.mark.parametrize(("memory", "tokens"), WAYS)
def test_law7_restart(memory: str, tokens: str, tmp_path: pytest.TempPathFactory) -> None:
    model, x = inserted("cnn", memory, tokens, torch.float32), frames(1, 6, torch.float32)
    with torch.no_grad():
        _, half = model(x[:, :3])
        state.save(half, tmp_path / "state.safetensors")
        model.save(tmp_path / "model")
        goes_on, last = model(x[:, 3:], half)
        again = load(tmp_path / "model", network("cnn"))
        assert again.fingerprint() == model.fingerprint()
        y, end = again(x[:, 3:], state.load(tmp_path / "state.safetensors", again))
    assert torch.equal(y, goes_on)
    assert_close(end, last, 0.0)
    with pytest.raises(StateError):
        state.load(tmp_path / "state.safetensors", inserted("cnn", "lstm", tokens, torch.float32))


def test_only_the_memories_are_trained() -> None:
    model = inserted("cnn", "gru", moved=False, dtype=torch.float32).train()
    assert not any(p.requires_grad for p in model.network.parameters())
    assert not model.network.training
    assert model.memories.training
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    for _ in range(2):  # the first step opens the gates; the second reaches the weights behind them
        optimizer.zero_grad()
        model(frames(2, 3, torch.float32))[0].square().sum().backward()
        optimizer.step()
    assert all(torch.equal(value, before[name]) for name, value in model.network.state_dict().items())
    assert all(p.grad is not None and p.grad.any() for p in model.places[-1].memory.parameters())
    whole = insert(
        network("cnn"), "layer4", "gru", dim=8, heads=1, frozen=False, example=frames(1, 1, torch.float32)[0]
    )
    assert whole.train().network.training
    assert all(p.requires_grad for p in whole.network.parameters())


def test_a_network_trained_with_its_memories_is_saved_completely(tmp_path: pytest.TempPathFactory) -> None:
    x = frames(1, 2, torch.float32)
    model = insert(network("vit"), "encoder.ln", "lstm", dim=8, frozen=False, example=x[0]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1).add_(0.01)
    model.save(tmp_path / "m")
    assert torch.equal(load(tmp_path / "m", network("vit"))(x)[0], model(x)[0])


def test_another_network_is_refused(tmp_path: pytest.TempPathFactory) -> None:
    inserted("cnn", dtype=torch.float32).save(tmp_path / "m")
    other = network("cnn")
    with torch.no_grad():
        other.fc.bias.add_(1e-3)
    with pytest.raises(CheckpointError, match="another network: its weights are others"):
        load(tmp_path / "m", other)
    with pytest.raises(CheckpointError, match=r"it has no module layer2\.0"):
        load(tmp_path / "m", network("vit"))
    with pytest.raises(CheckpointError, match=r"inserted\.load\(folder, network\)"):
        models.load(tmp_path / "m")


def test_copies_and_threads_are_independent() -> None:
    import threading

    model, x = inserted("cnn"), frames(4, 5)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.memories.parameters():
            parameter.mul_(0.5)
    with torch.no_grad():
        expected = [model(row[None])[0] for row in x]
        assert not torch.equal(twin(x[:1])[0], expected[0])
        assert torch.equal(pickle.loads(pickle.dumps(model))(x[:1])[0], expected[0])
        found: list[Tensor | None] = [None] * 4

        def watch(row: int) -> None:
            with torch.no_grad():
                state, outputs = None, []
                for _ in range(4):
                    state, outputs = None, []
                    for frame in x[row][None].split(1, 1):
                        y, state = model(frame, state)
                        outputs.append(y)
                found[row] = torch.cat(outputs, 1)

        threads = [threading.Thread(target=watch, args=(row,)) for row in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for y, true in zip(found, expected, strict=True):
        assert_close(y, true, 1e-10)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # of the compiler itself
def test_compiled() -> None:
    """Two calls, the second from the state of the first, and the gradients through both."""
    net, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()), frames(1, 3, torch.float32)
    model = insert(net, "1", "gru", dim=4, example=x[0])
    nn.init.ones_(model.places[0].alpha)

    def run(call: Any) -> tuple[Tensor, list[Tensor]]:
        first, state = call(x)
        second, _ = call(x.flip(1), state)
        y = torch.cat([first, second], 1)
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        return y.detach(), list(torch.autograd.grad(y.square().mean(), trained))

    y, gradients = run(torch.compile(model, backend="aot_eager"))
    true, expected = run(model)
    assert not torch.equal(y[:, :3], net(x[0])[None])
    assert_close(y, true, 1e-6)
    for gradient, right in zip(gradients, expected, strict=True):
        assert_close(gradient, right, 1e-6)


class Odd(nn.Module):
    """frozen: not called. twice: called twice. pair: gives two tensors. Its output is a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict({name: nn.Conv2d(3, 3, 1) for name in ("first", "twice", "idle")})
        self.pair, self.mean = nn.LSTM(3, 3, batch_first=True), nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> dict[str, Tensor | None]:
        x = self.body["twice"](self.body["twice"](self.body["first"](x)))
        y, _ = self.pair(x.flatten(2).mT)
        return {"map": x, "mean": self.mean(x).flatten(1), "last": y[:, -1], "nothing": None}


def test_outputs_that_are_trees() -> None:
    odd = Odd()
    y, _ = insert(odd, "body.first", "gru", dim=4)(torch.randn(2, 3, 3, 8, 8))
    assert {name: None if leaf is None else tuple(leaf.shape) for name, leaf in y.items()} == {
        "map": (2, 3, 3, 8, 8), "mean": (2, 3, 3), "last": (2, 3, 3), "nothing": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("at", "message"),
    [
        ("bodi.first", r"no module fits 'bodi\.first': it has body\.first"),
        ("body", r"body does not run in a pass of the network"),
        ("body.idle", r"body\.idle does not run"),
        ("body.twice", r"body\.twice runs 2 times"),
        ("pair", r"pair gives tuple of 1 frames, expected one tensor"),
        ("mean", r"mean gives \[1, 3, 1, 1\]"),
        (["body.first", "nose.*"], r"no module fits 'nose\.\*'"),
    ],
)
def test_places_that_take_no_memory(at: str, message: str) -> None:
    if at == "mean":  # one pixel: found all the same
        assert insert(Odd(), at, "gru", dim=4).places[0].shape.axis == 1
        return
    with pytest.raises(ConfigError, match=message):
        insert(Odd(), at, "gru", dim=4)


def test_options_that_do_not_fit() -> None:
    cnn, x = network("cnn"), frames(1, 1, torch.float32)[0]
    with pytest.raises(ConfigError, match="there is no memory 'gruu'"):
        insert(cnn, "layer1", "gruu", example=x)
    with pytest.raises(ConfigError, match="expected one of mean, sequence, position"):
        insert(cnn, "layer1", "gru", tokens="all", example=x)
    with pytest.raises(ConfigError, match='tokens="sequence" gives it whole frames'):
        insert(cnn, "layer1", "ttt_conv", example=x)
    with pytest.raises(ConfigError, match="does not take frames of"):
        insert(network("vit"), "encoder.ln", example=x[..., :12])
    with pytest.raises(ConfigError, match="has one already"):
        insert(cnn, "layer1", "ttt_mlp", example=x, insert=0.1)
    square = nn.Sequential(nn.Conv2d(3, 8, 1))
    with pytest.raises(ConfigError, match="where its channels are is not clear"):
        insert(square, "0", "gru", example=torch.zeros(1, 3, 8, 8))
    assert insert(square, "0", "gru", example=torch.zeros(1, 3, 8, 8), channels="first").places[0].shape.axis == 1
    model = insert(cnn, "layer4", "ttt_mlp", dim=8, heads=2, tokens="position", example=x)
    with pytest.raises(ShapeError, match="and 1 tokens, as the frames had"):
        model(torch.zeros(1, 1, 3, 64, 64))
    with pytest.raises(ShapeError, match="rows, frames"):
        model(x[0])
    with pytest.raises(StateError, match="the state has 2 rows, frames have 1"):
        model(x[None], model.init_state(2))


def test_channels_are_measured_on_the_example() -> None:
    x = (
        torch.randn(50, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        * torch.tensor([2.0, 1.0, 0.0])[:, None, None]
    )
    x = x + torch.tensor([5.0, 0.0, 0.0])[:, None, None]
    net = nn.Sequential(nn.Identity(), nn.Flatten())
    place = insert(net, "0", "gru", dim=4, example=x).places[0]
    torch.testing.assert_close(place.mean, torch.tensor([5.0, 0.0, 0.0]), atol=0.1, rtol=0)
    size = 0.1 * float(x.square().mean().sqrt())
    torch.testing.assert_close(place.deviation, torch.tensor([2.0, 1.0, 0.0]) + size, atol=0.1, rtol=0)
    with pytest.raises(ConfigError, match="0 gives numbers that are not finite"):
        insert(net, "0", "gru", dim=4, example=torch.full((1, 3, 8, 8), torch.nan))


def test_public_name() -> None:
    assert tttstream.insert is insert


def test_in_the_encoder() -> None:
    """The encoder returns a tuple of maps; its stages are named by numbers."""
    from tttstream import encoders

    encoder, x = encoders.load(weights="none", strides=(16, 32)), torch.rand(2, 2, 3, 64, 64)
    model = insert(encoder, "model.[67].*", "ttt_linear", dim=8, heads=2, example=x[0])
    assert [place.name for place in model.places] == [*(f"model.6.{n}" for n in range(4)), "model.7.0"]
    with torch.no_grad():
        maps, _ = model(x)
        for y, plain in zip(maps, encoder(x.flatten(0, 1)), strict=True):
            assert torch.equal(y.flatten(0, 1), plain)

"""`insert`: puts memories behind modules of a network."""

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from tttstream.errors import ConfigError
from tttstream.io import weights
from tttstream.models.inserted.layouts import CHANNELS, shape_of
from tttstream.models.inserted.model import Inserted, InsertedConfig

NEAR = 6  # number of names in an error
SIDE = 224  # default side of the example frames, for a network without `image_size`


def insert(
    network: nn.Module,
    at: str | Sequence[str],
    memory: str = "ttt_mlp",
    *,
    dim: int = 128,
    heads: int = 4,
    tokens: str = "mean",
    frozen: bool = True,
    example: Tensor | None = None,
    channels: str | None = None,
    **options: Any,
) -> Inserted:
    """Put gated memories into a network of frames. Before training its output is exactly unchanged.

    Args:
        network: any module of frames [n, …] whose outputs for a frame do not depend on the others in evaluation mode.
        at: the names of the modules after which memories are put: a pattern with *, ? and [abc] for each part between
            dots ("encoder.layers.*" is each layer, not its parts), or a list of patterns. Each module must return a
            tensor of vectors [n, C], tokens [n, N, C] or maps [n, C, H, W] or [n, H, W, C].
        memory: a name of `tttstream.memory.names()`. dim, heads: its width and heads. Learned projections map to this
        width and back. options: its other options. tokens: how a memory reads a frame. "mean": one token, the mean over
        positions; the output is added to all
            positions. "sequence": all tokens one after another, or whole frames for memories in frame mode. "position":
            each position by itself over time, with its own state.
        frozen: keep the network fixed and in evaluation mode; only the memories are trained. example: square frames [n,
        …] for the network, real ones if possible. The mean and the deviation of each channel of a module's output are
        measured on them. By default noise of 1 × 3 × 224 × 224 (or its `image_size`). channels: "first" or "last" in
        maps, if the layout is not clear from the example.

    Returns:
        the network as a network of streams; see `Inserted`. The network itself is not copied.

    Raises:
        ConfigError: no module has the name, or the module does not run, runs twice, or returns something else.
    """
    if channels is not None and channels not in CHANNELS:
        raise ConfigError(f'insert: channels is {channels!r}, expected "first" or "last"')
    names = _matched(network, [at] if isinstance(at, str) else list(at))
    if example is None:
        side = getattr(network, "image_size", SIDE)
        like = next(network.parameters(), torch.zeros(()))
        noise = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
        example = noise.to(like.device, like.dtype)
    given = _given(network, names, example)
    places = {name: shape_of(output, name, channels) for name, output in given.items()}
    known = weights.fingerprint(network, {}) if frozen else ""
    config = InsertedConfig(memory, dim, heads, tokens, places, tuple(example.shape[1:]), frozen, known, options)
    model = Inserted(network, config)
    for place in model.places:
        place.measure(given[place.name])
    return model


def _matched(network: nn.Module, patterns: list[str]) -> list[str]:
    """The names of the modules that match the patterns. Raises ConfigError for a pattern without a match."""
    names = [name for name, _ in network.named_modules() if name]
    found: list[str] = []
    for pattern in patterns:
        fitting = [name for name in names if _fits(name, pattern)]
        if not fitting:
            raise ConfigError(f"insert: no module fits {pattern!r}: {_near(pattern, names)}")
        found += fitting
    return list(dict.fromkeys(found))


def _fits(name: str, pattern: str) -> bool:
    words, wanted = name.split("."), pattern.split(".")
    return len(words) == len(wanted) and all(fnmatchcase(*pair) for pair in zip(words, wanted, strict=True))


def _near(pattern: str, names: list[str]) -> str:
    """A list of names similar to a pattern, for the end of an error."""
    if not names:
        return "the network has no modules in it"
    near = difflib.get_close_matches(pattern, names, NEAR, 0.5)
    near += [name for name in names if name.count(".") == pattern.count(".") and name not in near]
    return f"it has {', '.join((near or names)[:NEAR])}{' …' * (len(names) > NEAR)}"


def _given(network: nn.Module, names: list[str], example: Tensor) -> dict[str, Tensor]:
    """The output of each module, in the order in which they run."""
    given: list[tuple[str, Any]] = []
    hooks = [
        network.get_submodule(name).register_forward_hook(
            lambda _m, _i, output, name=name: given.append((name, output))
        )
        for name in names
    ]
    modes = [(module, module.training) for module in network.modules()]
    try:
        with torch.no_grad():
            network.eval()(example)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        what = " ".join(str(error).split())[:200]
        raise ConfigError(
            f"insert: the network does not take frames of {list(example.shape)} ({what}): give an example=[n, …] that "
            "it takes"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode
    ran = [name for name, _ in given]
    for name in names:
        if ran.count(name) != 1:
            how = "does not run" if name not in ran else f"runs {ran.count(name)} times"
            raise ConfigError(f"insert: {name} {how} in a pass of the network: {_near(name, sorted({*ran} - {name}))}")
    for name, output in given:
        if not isinstance(output, Tensor) or not output.is_floating_point() or output.shape[:1] != example.shape[:1]:
            came = f"{list(output.shape)} {output.dtype}" if isinstance(output, Tensor) else type(output).__name__
            others = [other for other, _ in network.named_modules() if other and other != name]
            raise ConfigError(
                f"insert: {name} gives {came} of {len(example)} frames, expected one tensor [n, …] of floats: "
                f"{_near(name, others)}"
            )
    return dict(given)

"""Times TTT layers on the CPU and compares them with torch.nn.GRUCell and the official PyTorch layer in one run.

    python kernels/bench/cpu.py [--official PATH/ttt.py] [--compile] [--quick] [--out docs/results/cpu-ops.md]

The official layer needs a checkout of its repository (--official). Every round calls each layer once, in a new order,
so that the load and the cold caches are the same for all. The tables show medians over the rounds, and medians of the
ratios of single rounds. Steps are also timed in tight loops with warm caches, many steps of one layer in a row.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.util
import platform
import random
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tttstream import TTTLayer
from tttstream_kernels import Update

DIM, HEADS, TOKENS = 192, 3, 512
Calls = dict[str, Callable[[], object]]


def measure(calls: Calls, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call in each round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for warm in range(-3, rounds):
        for name in random.sample(list(calls), len(calls)):
            start = time.perf_counter()
            calls[name]()
            if warm >= 0:
                times[name].append(1e3 * (time.perf_counter() - start))
    return times


def measure_loops(calls: Calls, rounds: int, steps: int) -> dict[str, float]:
    """Milliseconds of one call of each layer in a loop of `steps` calls, in thread time: the fastest of the rounds.

    In each round the layers take turns.
    """
    quickest = dict.fromkeys(calls, float("inf"))
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.thread_time()
            for _ in range(steps):
                call()
            quickest[name] = min(quickest[name], 1e3 * (time.thread_time() - start) / steps)
    return quickest


def loop_table(title: str, times: dict[str, dict[str, float]]) -> str:
    """Markdown: for each way of measuring, milliseconds and times the GRUCell."""
    lines = [f"## {title}", "", "| |" + "".join(f" {way}, ms | times a GRUCell |" for way in times)]
    lines.append("| --- |" + " ---: | ---: |" * len(times))
    for row in next(iter(times.values())):
        cells = [f"{own[row]:.3f} | {own[row] / own['GRUCell']:.2f}" for own in times.values()]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def table(title: str, times: dict[str, list[float]], against: dict[str, list[str]]) -> str:
    """Markdown: median and fastest time of each row; for each column of `against`, a row's time over that of the
    row that it is compared with ("linear" rows with the official linear layer, and so on)."""
    columns = [name for name, rivals in against.items() if any(rival in times for rival in rivals)]
    lines = [f"## {title}", "", "| | median, ms | fastest, ms |" + "".join(f" {name} |" for name in columns)]
    lines.append("| --- | ---: | ---: |" + " ---: |" * len(columns))
    for row, own in times.items():
        cells = [row, f"{statistics.median(own):.3f}", f"{min(own):.3f}"]
        for column in columns:
            rivals = [name for name in against[column] if name in times and kind(name) in (kind(row), "gru")]
            ratio = [a / b for a, b in zip(own, times[rivals[0]], strict=True)] if rivals else []
            cells.append(f"{statistics.median(ratio):.2f}" if ratio else "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def kind(row: str) -> str:
    """The kind of model, from the first word of the row's name: gru, linear, mlp or conv."""
    return next(word for word in ("gru", "linear", "mlp", "conv") if word in row.lower())


def without_graph(call: Callable[[], object]) -> Callable[[], object]:
    """The call under no_grad."""
    return torch.no_grad()(call)


def backward(module: nn.Module, call: Callable[[], Any]) -> Callable[[], None]:
    """Forward, and backward to every parameter."""

    def both() -> None:
        module.zero_grad()
        y = call()
        (y[0] if isinstance(y, tuple) else y).sum().backward()

    return both


def stepping(layer: Callable[..., Any], state: Any, x: Tensor) -> Callable[[], None]:
    """A call that learns one token and keeps the state for the next call."""
    held = [state]

    def step() -> None:
        held[0] = layer(x, held[0])[1]

    return step


def recurring(cell: nn.Module, x: Tensor) -> Callable[[], None]:
    """A call that reads one token and keeps the hidden vector for the next call."""
    held = [torch.zeros_like(x)]

    def step() -> None:
        held[0] = cell(x, held[0])

    return step


class Official:
    """The official PyTorch layers, from the path of their file (which needs `transformers` to be installed)."""

    def __init__(self, path: Path) -> None:
        spec = importlib.util.spec_from_file_location("official_ttt", path)
        if spec is None or spec.loader is None:
            sys.exit(f"{path} is not a Python file: give the path of ttt.py in a checkout of the official release")
        self.module = importlib.util.module_from_spec(spec)
        try:
            spec.loader.exec_module(self.module)
        except ImportError as error:
            sys.exit(f"the official layer cannot be imported ({error}): install what it needs, or leave out --official")

    def layer(self, inner: str) -> tuple[nn.Module, Any]:
        """(the layer, its configuration)."""
        config = self.module.TTTConfig(
            hidden_size=DIM, num_attention_heads=HEADS, num_hidden_layers=1, mini_batch_size=16, ttt_layer_type=inner
        )
        return {"linear": self.module.TTTLinear, "mlp": self.module.TTTMLP}[inner](config, layer_idx=0), config

    def step(self, inner: str, x: Tensor) -> Callable[[], None]:
        """One token after another with the official cache."""
        layer, config = self.layer(inner)
        block = types.SimpleNamespace(seq_modeling_block=layer)
        model = types.SimpleNamespace(config=config, layers=[block], device=torch.device("cpu"))
        cache = self.module.TTTCache(model, 1)

        def step() -> None:
            position = torch.tensor([[cache.seqlen_offset]])
            layer(x, position_ids=position, cache_params=cache)
            cache.seqlen_offset += 1

        return step


def layers() -> dict[str, TTTLayer]:
    """The layers of the first tables: with their default update and with the paper's."""
    made = {}
    for inner in ("linear", "mlp"):
        made[f"{inner}, default update"] = TTTLayer(DIM, HEADS, inner)
        made[f"{inner}, the paper's update"] = TTTLayer(DIM, HEADS, inner, base_lr=1.0, update=Update())
    return made


def steps(official: Official | None, compiled: bool, rounds: int) -> str:
    x = torch.randn(1, 1, DIM)
    calls: Calls = {"GRUCell": recurring(nn.GRUCell(DIM, DIM), x[0])}
    for name, layer in layers().items():
        calls[name] = stepping(layer, layer.init_state(1), x)
        if compiled and "default" in name:
            calls[f"{name}, compiled"] = stepping(torch.compile(layer, fullgraph=True), layer.init_state(1), x)
    for inner in ("linear", "mlp") if official is not None else ():
        assert official is not None
        calls[f"official {inner}"] = official.step(inner, x)
    what = f"one token, width {DIM}, {HEADS} heads, batch 1"
    cold = table(
        f"A step: {what}, no gradients",
        measure({name: without_graph(call) for name, call in calls.items()}, rounds),
        {"times a GRUCell": ["GRUCell"], "share of official": ["official linear", "official mlp"]},
    )
    tight = {}
    for context in (torch.no_grad, torch.inference_mode):
        torch.compiler.reset()  # otherwise each call checks the guards of the other context too
        with context():
            measure_loops(calls, 2, 16)  # to warm up, compilers included
            tight[context.__name__] = measure_loops(calls, max(5, rounds // 50), 160)
    return cold + "\n" + loop_table(f"The same step in a tight loop: {what}", tight)


def stretches(official: Official | None, rounds: int) -> str:
    x, positions = torch.randn(1, TOKENS, DIM), torch.arange(TOKENS)[None]
    runs: dict[str, tuple[nn.Module, Callable[[], Any]]] = {}
    for name, layer in layers().items():
        runs[name] = layer, functools.partial(layer, x)
    for inner in ("linear", "mlp") if official is not None else ():
        assert official is not None
        theirs = official.layer(inner)[0]
        runs[f"official {inner}"] = theirs, functools.partial(theirs, x, position_ids=positions)
    against = {"share of official": ["official linear", "official mlp"]}
    forward = measure({name: without_graph(call) for name, (_, call) in runs.items()}, rounds)
    both = measure({name: backward(module, call) for name, (module, call) in runs.items()}, rounds)
    what = f"{TOKENS} tokens, width {DIM}, {HEADS} heads, batch 1, mini-batches of 16"
    return (
        table(f"Forward of {what}", forward, against) + "\n" + table(f"Forward and backward of {what}", both, against)
    )


def frames(rounds: int) -> str:
    parts = []
    for side in (8, 16):
        calls: Calls = {}
        for dim in (128, 192):
            x = torch.randn(1, side * side, dim)
            for inner in ("linear", "mlp", "conv"):
                layer = TTTLayer(dim, dim // 64, inner, causal="frame", grid=(side, side))
                call = functools.partial(layer, x, layer.init_state(1))
                calls[f"{inner}, width {dim}, forward"] = without_graph(call)
                calls[f"{inner}, width {dim}, forward and backward"] = backward(layer, call)
        parts.append(table(f"A frame of {side * side} tokens, heads of 64, batch 1", measure(calls, rounds), {}))
    return "\n".join(parts)


def header(arguments: argparse.Namespace) -> str:
    command = "python kernels/bench/cpu.py" + (" --official PATH/ttt.py" if arguments.official else "")
    command += "".join(f" --{flag}" for flag in ("compile", "quick") if getattr(arguments, flag))
    return (
        f"# TTT layers on a CPU\n\n`{command}`, {datetime.date.today()}, {processor()}, {arguments.threads} thread(s), "
        f"torch {torch.__version__}, Python {platform.python_version()}, float32.\n\n"
        "Each round calls every row once, in a new order, so that the caches contain data of the other rows, as for a "
        "layer in a network. Ratios are medians of the ratios of single rounds. A tight loop calls "
        "`y, state = layer(x, state)` 160 times in a row, or `h = cell(x, h)` for the GRUCell: the fastest of many "
        "loops, in thread time.\n"
    )


def processor() -> str:
    """The name of the processor, if the system reports it."""
    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return names[0].split(":", 1)[1].strip() if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--official", type=Path, help="ttt.py of a checkout of the official PyTorch release")
    parser.add_argument("--compile", action="store_true", help="also time the step under torch.compile")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (1)")
    parser.add_argument("--out", type=Path, help="write the tables there as well")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    random.seed(0)
    share = 10 if arguments.quick else 1
    official = Official(arguments.official) if arguments.official else None
    parts = [
        header(arguments),
        steps(official, arguments.compile, 2000 // share),
        stretches(official, 40 // share),
        frames(60 // share),
    ]
    text = "\n".join(parts)
    print(text)
    if arguments.out is not None:
        temporary = arguments.out.with_name(arguments.out.name + ".part")
        temporary.write_text(text)
        temporary.replace(arguments.out)


if __name__ == "__main__":
    main()

"""`tttstream bench`: time, memory and state of every memory along a stream, and the dual and the primal form."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tttstream.cli import arguments
from tttstream.cli.numbers import whole
from tttstream.errors import ConfigError

if TYPE_CHECKING:
    from tttstream.evaluation.speed import Cost, Dual

LEAST = 1024

EPILOG = """\
Every memory reads one stream of up to --tokens tokens. After 1k, 4k, 16k … of them three calls are timed, each the
fastest of several: 512 tokens (prefill), a frame of 64 tokens, and one token; the sizes of the state and of the process
are measured. A memory whose stream takes more than --limit seconds stops there, for example full attention. On a CPU
the times are thread times of one thread, so other processes affect them little. Then one call of a TTT layer is timed
in its dual form, in the primal form, which computes the weights of every token, and token by token. The command writes
bench.md, bench.png and bench.json to DIR.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `tttstream bench`."""
    parser.add_argument("--memories", metavar="NAME", nargs="+", help="memories by name (default: all)")
    parser.add_argument(
        "--tokens", metavar="N", type=whole, default=2**20, help="the longest stream (default: 1048576)"
    )
    parser.add_argument("--dim", metavar="D", type=whole, default=192, help="width of a token (default: 192)")
    parser.add_argument("--heads", metavar="H", type=whole, default=4, help="heads of a memory (default: 4)")
    parser.add_argument("--limit", metavar="S", type=float, default=60.0, help="seconds for one memory (default: 60)")
    parser.add_argument("--add", action="store_true", help="keep what DIR/bench.json holds of other memories")
    parser.add_argument("--device", metavar="NAME", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument("--out", metavar="DIR", type=arguments.path, default=Path("bench"), help="default: bench")


def run(args: argparse.Namespace) -> int:
    """Measure, and write the three files. Returns the exit code."""
    import json
    from time import strftime

    import torch
    from tqdm import tqdm

    from tttstream.evaluation import speed
    from tttstream.io.outputs import OutputFolder, TextFile
    from tttstream.memory import names

    chosen = list(args.memories or names())
    unknown = sorted(set(chosen) - set(names()))
    if unknown:
        raise ConfigError(f"--memories: there is no memory {', '.join(unknown)}: expected some of {', '.join(names())}")
    if args.tokens < LEAST:
        raise ConfigError(f"--tokens must be at least {LEAST}, got {args.tokens}")
    if args.device not in ("cpu", "cuda") or (args.device == "cuda" and not torch.cuda.is_available()):
        raise ConfigError(f"--device {args.device}: expected cpu, or cuda where there is one")
    if not args.limit > 0:
        raise ConfigError(f"--limit must be above 0 seconds, got {args.limit}")
    device = torch.device(args.device)
    what = f"width {args.dim}, {args.heads} heads, {device.type}"
    before = earlier(args.out / "bench.json", what, chosen) if args.add else Earlier([], [])
    lengths = [LEAST * 4**k for k in range(args.tokens.bit_length()) if LEAST * 4**k <= args.tokens]
    for name in chosen:
        speed.make(name, args.dim, args.heads)  # an invalid width raises before anything is measured
    torch.set_num_threads(1)
    folder = OutputFolder(args.out)
    found = before.costs
    for name in (bar := tqdm(chosen, "memories", disable=None)):
        bar.set_postfix_str(name)
        found += speed.costs(name, lengths, args.dim, args.heads, device, args.limit)
    duals = list(speed.dual_against_primal(LEAST, args.dim, args.heads, 16, device))
    if args.add:
        found.sort(key=lambda c: names().index(c.memory))
    about = f"{what}, torch {torch.__version__}, {strftime('%Y-%m-%d')}"
    command = f"tttstream bench --tokens {args.tokens} --dim {args.dim} --heads {args.heads} --limit {args.limit:g}"
    runs = [*before.runs, {"about": about, "command": command, "memories": chosen}]
    records: dict[str, Any] = {
        "runs": runs, "costs": [c._asdict() for c in found], "dual": [d._asdict() for d in duals]
    }  # fmt: skip
    for name, text in (("bench.json", json.dumps(records, indent=1) + "\n"), ("bench.md", table(found, duals, runs))):
        with TextFile(folder.path / name) as file:
            file.write(text)
    draw(found, about, folder.path / "bench.png")
    folder.release()
    print(f"{len(chosen)} memories: {folder.path / 'bench.md'}, bench.png, bench.json")
    return 0


class Earlier(NamedTuple):
    """The results of earlier runs in a file, except those of the memories that are measured now."""

    costs: list[Cost]
    runs: list[dict[str, Any]]


def earlier(path: Path, what: str, chosen: list[str]) -> Earlier:
    """Read bench.json. what: width, heads and device, which must be equal. Raises ConfigError if they are not, or if
    the file cannot be read."""
    import json

    from tttstream.evaluation.speed import Cost
    from tttstream.memory import names

    try:
        records = json.loads(path.read_text())
        costs = [Cost(**cost) for cost in records["costs"]]
        all_of_them = list(dict.fromkeys(c.memory for c in costs))
        runs = records.get("runs") or [{**{k: records[k] for k in ("about", "command")}, "memories": all_of_them}]
        other = [run["about"] for run in runs if not run["about"].startswith(f"{what},")]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"--add: {path} is no report of this command: {error}") from error
    if other:
        raise ConfigError(f"--add: {path} is of {other[0]}, this run of {what}")
    for run in runs:
        run["memories"] = [name for name in run["memories"] if name not in chosen and name in names()]
    kept = {name for run in runs for name in run["memories"]}
    return Earlier([c for c in costs if c.memory in kept], [run for run in runs if run["memories"]])


def table(found: list[Cost], duals: list[Dual], runs: list[dict[str, Any]]) -> str:
    """The report, in Markdown."""
    lines = ["# What a memory costs", "", f"One stream, {runs[-1]['about']}. Made by `{runs[-1]['command']}`.", ""]
    for run in runs[:-1]:
        lines += [f"Of an earlier run ({run['about']}; `{run['command']}`): {', '.join(run['memories'])}.", ""]
    lines += [
        "| memory | tokens seen | prefill, ms a token | a frame of 64, ms | a step, ms | state, kB | process, MB more |"
    ]
    lines += ["| --- | --- | --- | --- | --- | --- | --- |"]
    for c in found:
        step = "whole frames" if c.step is None else f"{c.step:.3f}"
        numbers = f"{c.prefill:.4f} | {c.frame:.2f} | {step} | {c.state / 1e3:.1f} | {c.grown:.0f}"
        lines.append(f"| {c.memory} | {c.tokens} | {numbers} |")
    lines += [
        "",
        "## Dual against primal form",
        "",
        "| inner model | pass | dual, ms a token | primal | ratio | token by token |",
    ]
    lines += ["| --- | --- | --- | --- | --- | --- |"]
    for d in duals:
        way = "forward and backward" if d.backward else "forward"
        singly = "" if d.singly is None else f"{d.singly:.4f}"
        ratio = d.primal / d.dual
        lines.append(f"| {d.inner} | {way} | {d.dual:.4f} | {d.primal:.4f} | {ratio:.1f} | {singly} |")
    return "\n".join(lines) + "\n"


def draw(found: list[Cost], about: str, path: Path) -> None:
    """Plot prefill, step and state over the number of tokens."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.5), layout="constrained")
    axes = figure.subplots(1, 3)
    for place, name in enumerate(dict.fromkeys(c.memory for c in found)):
        mine = [c for c in found if c.memory == name]
        style: dict[str, Any] = {"label": name, "color": f"C{place % 10}", "ls": ("-", "--")[place // 10 % 2]}
        lengths = [c.tokens for c in mine]
        axes[0].plot(lengths, [c.prefill for c in mine], **style)
        stepped = [c for c in mine if c.step is not None]
        axes[1].plot([c.tokens for c in stepped], [c.step for c in stepped], **style)
        axes[2].plot(lengths, [c.state / 1e3 for c in mine], **style)
    titles = ("prefill, ms a token", "a step, ms", "state, kB")
    for axis, title in zip(axes, titles, strict=True):
        axis.set(xscale="log", yscale="log", xlabel="tokens seen", title=title)
        axis.grid(alpha=0.3)
    if found:
        axes[2].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.suptitle(about)
    FigureCanvasAgg(figure).print_png(path)

"""Times the TTT ops on every backend and the ops of other packages in one run, and writes a table and JSON.

    python kernels/bench/run.py [--device cuda|cpu] [--quick] [--out docs/results/kernels-h200.md]

The rows of a line-up are timed together: forward, forward and backward, or a step, with one number of tokens. Each
line-up is written when it is complete. After --minutes the run stops, and --resume continues it if the device, the
versions, the code and the other options are the same. kernels/bench/README.md says how to install the other packages.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import hashlib
import json
import platform
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from contestants import Case, Contestant, Op, Tokens, Unable, difference
from cpu import processor
from measure import Call, Stopwatch, ceilings
from report import Report, markdown, save
from rivals import rivals
from targets import OURS, targets
from tqdm import tqdm

import tttstream_kernels

WHATS = ("forward", "forward+backward", "step")
LENGTHS = [1 << power for power in range(10, 18)]
PACKAGES = ("torch", "triton", "flash-linear-attention", "fla-core", "mamba-ssm")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark. Exit codes: 1 if a row of this package failed, 2 for a mistake of the user, 75 if a row broke
    the CUDA context (continue with --resume)."""
    words = sys.argv[1:] if argv is None else list(argv)
    arguments = parse(words)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("run.py: error: there is no CUDA device here: --device cpu times the reference", file=sys.stderr)
        return 2
    torch.set_num_threads(arguments.threads)
    random.seed(0)
    report = begin(arguments, words, device)
    bench = Bench(arguments, device, report)
    try:
        bench.run()
    except Aborted as error:
        print(f"run.py: error: {error}: --resume continues without this row", file=sys.stderr)
        return 75
    print(markdown(report))
    if bench.broken:
        print(f"run.py: error: {', '.join(sorted(set(bench.broken)))} failed", file=sys.stderr)
    return 1 if bench.broken else 0


def parse(words: Sequence[str]) -> argparse.Namespace:
    """The arguments, with the defaults that depend on the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cuda = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if cuda else "cpu")
    parser.add_argument("--quick", action="store_true", help="two lengths and few rounds: under 50 s on two cores")
    parser.add_argument("--what", nargs="+", choices=WHATS, default=list(WHATS))
    parser.add_argument("--tokens", nargs="+", type=int, help="tokens of a row (1k to 128k; on a CPU 1k and 4k)")
    parser.add_argument("--rows", type=int, help="rows (16; on a CPU 1)")
    parser.add_argument("--heads", type=int, help="heads of 64 (16, more on a large GPU; on a CPU 4)")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="only rows with one of these words in their names")
    parser.add_argument(
        "--compile-tokens", type=int, help="compile calls of up to N tokens (1: only steps; with --quick none)"
    )
    parser.add_argument("--slowest", type=float, default=2.0, help="seconds a call may take at most (2)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after the current line-up")
    parser.add_argument("--resume", action="store_true", help="continue the run in the file of --out")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch on a CPU (1)")
    parser.add_argument("--out", type=Path, help="file of the table, written as .md and .json")
    arguments = parser.parse_args(words)
    gpu = arguments.device == "cuda"
    if arguments.tokens is None:
        quick, full = ([1024, 16384], LENGTHS) if gpu else ([512, 1024], [1024, 4096])
        arguments.tokens = quick if arguments.quick else full
    if any(tokens < 256 or tokens % 256 for tokens in arguments.tokens):
        parser.error("--tokens: whole frames of 256 tokens are needed")
    if arguments.compile_tokens is None:
        arguments.compile_tokens = 0 if arguments.quick else 1
    if arguments.rows is None:
        arguments.rows = 16 if gpu else 1
    if arguments.heads is None:
        arguments.heads = 16 if gpu else 4
        if gpu and torch.cuda.is_available():
            processors = torch.cuda.get_device_properties(0).multi_processor_count
            arguments.heads = max(arguments.heads, -(-processors // arguments.rows))
    return arguments


def begin(arguments: argparse.Namespace, words: Sequence[str], device: torch.device) -> Report:
    """A new report, or with --resume the existing one if it is from the same run."""
    gpu = device.type == "cuda"
    report: Report = {
        "command": shlex.join(["python", "kernels/bench/run.py", *_public(words)]),
        "date": str(datetime.date.today()),
        "device": torch.cuda.get_device_name(device) if gpu else f"{processor()}, {arguments.threads} thread(s)",
        "cuda": gpu,
        "versions": versions(gpu),
        "sources": fingerprint(),
        "settings": {
            "what": arguments.what,
            "tokens": arguments.tokens,
            "rows": arguments.rows,
            "heads": arguments.heads,
            "step_rows": 16 if gpu else 1,
            "step_heads": 32 if gpu else arguments.heads,
            "dtype": "bfloat16" if gpu else "float32",
            "only": arguments.only,
            "compile_tokens": arguments.compile_tokens,
        },
        "ceilings": {},
        "differences": {},
        "aborted": {},
        "cases": [],
        "targets": [],
        "unfinished": 0,
    }
    held = arguments.out.with_suffix(".json") if arguments.resume and arguments.out is not None else None
    if held is None or not held.is_file():
        return report
    old: Report = json.loads(held.read_text())
    changed = [name for name in ("device", "versions", "sources", "settings") if old.get(name) != report[name]]
    if changed:
        print(f"{held} has another {', '.join(changed)}: starting a new run", file=sys.stderr)
        return report
    return report | old


def _public(words: Sequence[str]) -> list[str]:
    """The arguments that affect the figures."""
    kept, skip = [], False
    for word in words:
        if not skip and word.partition("=")[0] not in ("--out", "--minutes", "--resume"):
            kept.append(word)
        skip = not skip and word in ("--out", "--minutes")
    return kept


def versions(gpu: bool) -> dict[str, str]:
    """Versions of Python, torch, Triton and the other installed packages, of CUDA, cuDNN and the driver."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if gpu:
        found["CUDA"] = str(torch.version.cuda)
        found["cuDNN"] = str(torch.backends.cudnn.version())
    return found


def fingerprint() -> str:
    """A hash of the code of the kernels: one table has figures of one version only."""
    digest = hashlib.sha256()
    for path in sorted(Path(tttstream_kernels.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def contestants(device: torch.device, what: str, compile_tokens: int) -> list[Contestant]:
    """All rows of a line-up."""
    found: list[Contestant] = []
    for family, name in OURS.items():
        for captured in (False, True) if what == "step" else (False,):
            for way in ("reference", "compiled", "triton"):
                label = f"{name}, {way}, graph" if captured else f"{name}, {way}"
                found.append(Op(label, family, way, captured, compile_tokens))
    return found + rivals(device)


class Aborted(Exception):
    """A row broke the CUDA context, so nothing more can run in this process; the message names the row."""


class Bench:
    """One run. broken: rows of this package that failed for another reason than memory."""

    def __init__(self, arguments: argparse.Namespace, device: torch.device, report: Report) -> None:
        self.arguments, self.device, self.report = arguments, device, report
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.watch = Stopwatch(device)
        self.broken: list[str] = []
        self.paces: dict[tuple[str, str], tuple[int, float]] = {}
        """(what, name) → (tokens, milliseconds) of the longest case so far."""
        for case in report["cases"]:
            for row in case["rows"]:
                if "ms" in row:
                    self.paces[case["what"], row["name"]] = case["tokens"], row["ms"]

    def run(self) -> None:
        """Time the missing line-ups until the time is over."""
        arguments, report = self.arguments, self.report
        begun = time.monotonic()
        measured = ceilings(self.watch, self.dtype)
        report["ceilings"] = report["ceilings"] or measured
        self.broken += [name for name in report["aborted"] if name.startswith(tuple(OURS.values()))]
        self._compare()
        done = {(case["what"], case["tokens"]) for case in report["cases"]}
        cases = [case for case in self._cases() if (case.what, case.tokens) not in done]
        report["unfinished"] = len(cases)
        with tqdm(total=len(cases), unit=" line-ups", dynamic_ncols=True, disable=None) as bar:
            for case in cases:
                title = "a step" if case.what == "step" else f"{case.what} of {case.tokens:,} tokens"
                bar.set_description(title)
                if bar.disable:
                    print(f"{title} ({report['unfinished']} line-ups to go)", file=sys.stderr, flush=True)
                rows = self.line_up(case, measured, bar.set_postfix_str)
                report["cases"].append({**case._asdict(), "ceilings": measured, "rows": rows})
                report["unfinished"] -= 1
                self._write()
                bar.update()
                if time.monotonic() - begun > 60 * arguments.minutes:
                    break
        self._write()

    def _write(self) -> None:
        report = self.report
        missing = "no GPU" if not report["cuda"] else "not all of its rows could be timed (see the tables)"
        report["cases"].sort(key=lambda case: (WHATS.index(case["what"]), case["tokens"]))
        report["targets"] = [target._asdict() for target in targets(report["cases"], missing)]
        if self.arguments.out is not None:
            save(report, self.arguments.out)

    def _cases(self) -> list[Case]:
        settings = self.report["settings"]
        found = [Case("step", 1, settings["step_rows"], settings["step_heads"])] if "step" in settings["what"] else []
        for tokens in sorted(settings["tokens"]):
            for what in ("forward", "forward+backward"):
                if what in settings["what"]:
                    found.append(Case(what, tokens, settings["rows"], settings["heads"]))
        return found

    def _compare(self) -> None:
        """Compare the results of the kernels with the torch backend, before timing."""
        if self.device.type != "cuda" or self.report["differences"]:
            return
        for family, name in OURS.items():
            if self._wanted(f"{name}, triton") and f"{name}, triton" not in self.report["aborted"]:
                found = self._attempt(f"{name}, triton", partial(difference, family, self.device, self.dtype))
                if isinstance(found, float):
                    self.report["differences"][name] = found

    def _wanted(self, name: str) -> bool:
        only = self.arguments.only
        return only is None or any(word.lower() in name.lower() for word in only)

    def line_up(self, case: Case, measured: dict[str, float], say: Callable[[str], object]) -> list[dict[str, Any]]:
        """Time all contestants of a case together; one row for each."""
        field = [c for c in contestants(self.device, case.what, self.arguments.compile_tokens) if self._wanted(c.name)]
        rows: dict[str, dict[str, Any]] = {}
        calls: dict[str, Call] = {}
        counts: dict[str, int] = {}
        tokens = self._attempt("", lambda: Tokens(self._frame(case), self.device, self.dtype))
        single = self._attempt("", lambda: Tokens(case, self.device, self.dtype)) if case.what == "step" else tokens
        for one in field:
            say(one.name)
            streams = tokens if getattr(one, "family", "") == "conv" else single
            found = streams if isinstance(streams, str) else self._ready(one, streams)
            rows[one.name] = {"name": one.name}
            if isinstance(found, str):
                rows[one.name]["reason"] = found
                continue
            calls[one.name], rows[one.name]["memory_mb"], once = found
            counts[one.name] = self._rounds(once)
        say("rounds")
        times = self.watch.rounds(calls, counts)
        for one in field:
            if one.name in times:
                self._fill(rows[one.name], one, case, times[one.name], measured)
        calls.clear()
        torch.compiler.reset()
        self._forget()
        return list(rows.values())

    @staticmethod
    def _frame(case: Case) -> Case:
        """The case; for a step in frame mode with a frame of tokens."""
        return case._replace(tokens=256) if case.what == "step" else case

    def _rounds(self, once: float) -> int:
        """The number of rounds for a call of this duration."""
        most, budget = (10, 150.0) if self.arguments.quick else (50, 1000.0)
        return max(3, min(most, int(budget / max(once, 1e-3))))

    def _ready(self, one: Contestant, tokens: Tokens) -> tuple[Call, float | None, float] | str:
        """(the warm call, its memory, its milliseconds), or the reason why it cannot run."""
        case = tokens.case
        if one.name in self.report["aborted"]:
            return str(self.report["aborted"][one.name])
        limit = 1e3 * self.arguments.slowest
        known = self.paces.get((case.what, one.name))
        if known is not None and one.predicted(*known, case.tokens) > limit:
            return f"left out: a call would take more than {self.arguments.slowest:g} s (--slowest)"

        def warm() -> tuple[Call, float | None, float]:
            call = one.prepare(tokens)
            call()
            memory = self.watch.memory(call)
            return call, None if case.what == "step" else memory, self.watch.time(call)

        found: tuple[Call, float | None, float] | str = self._attempt(one.name, warm)
        if isinstance(found, tuple):
            self.paces[case.what, one.name] = case.tokens, found[2]
        return found

    def _attempt(self, name: str, job: Callable[[], Any]) -> Any:
        """The result of the job, or the reason why it failed: a row must not end the run."""
        try:
            return job()
        except Unable as error:
            return str(error)
        except torch.cuda.OutOfMemoryError:
            self._forget()
            return "out of memory"
        except Exception as error:  # the reason is printed in the table
            reason = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
            if not self._alive():
                self.report["aborted"][name] = reason
                self._write()
                raise Aborted(f"{name} broke the GPU's context: {reason}") from error
            self._forget()
            if name.startswith(tuple(OURS.values())):
                self.broken.append(name)
            return reason

    def _alive(self) -> bool:
        """Whether the CUDA context still works: an illegal memory access breaks it permanently."""
        try:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        except RuntimeError:
            return False
        return True

    def _forget(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _fill(
        self, row: dict[str, Any], one: Contestant, case: Case, times: list[float], measured: dict[str, float]
    ) -> None:
        row |= {"ms": statistics.median(times), "quickest": min(times), "rounds": len(times)}
        work = one.work(self._frame(case) if one.family == "conv" else case, self.dtype)
        if work is not None:
            floor, bound = work.floor(measured)
            row |= {"share": floor / row["ms"], "bound": bound, "floor_ms": floor}


if __name__ == "__main__":
    sys.exit(main())

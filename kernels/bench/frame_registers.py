"""Compiles the Triton kernels of frame mode without a GPU, and prints their registers and shared memory.

    python kernels/bench/frame_registers.py --inner linear mlp conv --width 64 --type bfloat16 [--losses] [--json]

Registers, stack (spilled registers) and shared memory limit the number of programs on a multiprocessor. Compiling a
kernel takes seconds to minutes.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tttstream_kernels import frame_triton
from tttstream_kernels.frame_kernels_triton import (
    MODELS,
    Gradients,
    Learned,
    Model,
    Results,
    Room,
    Upstream,
    backward,
    forward,
)
from tttstream_kernels.token_parts_triton import Streams

CAPABILITY = 90
REGISTERS, SHARED = 65536, 227 * 1024
"""The limits of a multiprocessor (CUDA C++ Programming Guide, table of compute capabilities)."""
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
WHOLE = ("heads", "tokens", "n", "group", "kept")


def signature(way: str, dtype: torch.dtype, summed: bool) -> dict[str, Any]:
    """The types of the arguments of a kernel, in their order, including all optional ones."""
    tokens, gradients = f"*{NAMES[dtype]}", "*fp32" if summed else f"*{NAMES[dtype]}"

    def pointers(kind: Any, **types: str) -> Any:
        return kind(*(types.get(name, "*fp32") for name in kind._fields))

    def all_of(kind: Any, first: str) -> Any:
        return pointers(kind, p_q=first, p_k=first, p_v=first, p_y=tokens)

    groups = {"model": Model(*["constexpr"] * len(Model._fields)), "streams": all_of(Streams, tokens)}
    groups |= {"learned": pointers(Learned)}
    if way == "forward":
        groups |= {"results": all_of(Results, tokens), "p_delta": "*fp32", "p_eta": "*fp32", "p_phase": "*fp32"}
    else:
        groups |= {"up": all_of(Upstream, tokens), "down": all_of(Gradients, gradients), "room": pointers(Room)}
        groups |= {"p_eta": "*fp32"}
    numbers: dict[str, Any] = dict.fromkeys(WHOLE, "i32") | dict.fromkeys(("sq", "sk", "sv"), ("i32", "i32", "i32"))
    return groups | {"p_reset": "*i1", "p_lengths": "*i64"} | numbers


def compiled(inner: str, way: str, width: int, tokens: int, dtype: torch.dtype, losses: bool) -> dict[str, Any]:
    """The resources of one kernel, compiled with the launch options of `frame_triton`."""
    kernel: Any = {"forward": forward, "backward": backward}[way]
    options = frame_triton.launch_options(inner, way, width, tokens, dtype)
    given = frame_triton.constants(inner, way, width, tokens, (8, 8), dtype) | {"LOSS": losses, "RESTORE": False}
    given |= {"KEEP": True} if way == "forward" else {}
    warps, stages = given.pop("num_warps"), given.pop("num_stages")
    types = signature(way, dtype, losses or inner != "linear") | dict.fromkeys(given, "constexpr")
    assert set(types) == set(kernel.arg_names)
    types = {name: types[name] for name in kernel.arg_names}
    fixed: dict[Any, Any] = {(0, i): function for i, function in enumerate(MODELS[inner])}
    fixed |= {(kernel.arg_names.index(name),): value for name, value in given.items()}
    paths = [(i, *rest) for i, kind in enumerate(types.values()) for rest in _pointers(kind)]
    source = ASTSource(kernel, types, fixed, {path: [["tt.divisibility", 16]] for path in paths})
    binary = triton.compile(
        source, target=GPUTarget("cuda", CAPABILITY, 32), options={"num_warps": warps, "num_stages": stages}
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary.asm["cubin"])
        tool = triton.knobs.nvidia.cuobjdump.path
        usage = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))  # type: ignore[index]
    shared = binary.metadata.shared
    options = {name: options[name] for name in ("TILE", "CHUNK") if name in options}
    held = min(REGISTERS // (registers * 32 * warps), SHARED // (shared + 1024))
    return {
        "inner": inner, "way": way, "D": width, "type": NAMES[dtype], "losses": losses, **options, "warps": warps,
        "registers": registers, "stack": stack, "shared": shared, "programs": held,
    }  # fmt: skip


def _pointers(kind: Any) -> list[tuple[int, ...]]:
    """The positions of the pointers in an argument."""
    if isinstance(kind, str):
        return [()] if kind.startswith("*") else []
    return [(i,) for i, one in enumerate(kind) if one.startswith("*")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inner", nargs="+", default=list(frame_triton.SCRATCH), choices=list(frame_triton.SCRATCH))
    parser.add_argument("--way", nargs="+", default=["forward", "backward"], choices=["forward", "backward"])
    parser.add_argument("--width", nargs="+", type=int, default=[64])
    parser.add_argument("--type", nargs="+", default=["bfloat16"], choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--tokens", type=int, default=196, help="tokens of a frame")
    parser.add_argument("--losses", action="store_true", help="with the inner losses and their gradients")
    parser.add_argument("--json", action="store_true", help="one line of JSON for each kernel instead of a table")
    args = parser.parse_args()
    columns = ["inner", "way", "D", "type", "TILE", "CHUNK", "warps", "registers", "stack", "shared", "programs"]
    if not args.json:
        print("| " + " | ".join(columns) + " |\n|" + " --- |" * len(columns), flush=True)
    for inner in args.inner:
        for width in args.width:
            for dtype in args.type:
                for way in args.way:
                    found = compiled(inner, way, width, args.tokens, getattr(torch, dtype), args.losses)
                    cells = (str(found.get(column, "")) for column in columns)
                    print(json.dumps(found) if args.json else f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()

"""Compile the Triton kernels of frame mode for a GPU that need not be there, and print what they take of it.

    python kernels/bench/frame_registers.py --inner linear mlp conv --width 64 --type bfloat16 [--losses] [--json]

Registers, stack (where registers do not suffice) and shared memory are what limits how many programs a multiprocessor
holds. Compiling takes seconds to minutes a kernel.
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
from tttstream_kernels.token_parts_triton import numerics

CAPABILITY = 90
REGISTERS, SHARED = 65536, 227 * 1024
"""Of a multiprocessor of that generation (CUDA C++ Programming Guide, table of compute capabilities)."""
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
WHOLE = {"heads", "tokens", "n", "group", "kept"}


def signature(names: list[str], given: dict[str, Any], dtype: torch.dtype, summed: bool) -> dict[str, Any]:
    """Types of a kernel's arguments, all of the optional ones there."""
    streams = {"q", "k", "v", "y", "d_y"} | (set() if summed else {"d_q", "d_k", "d_v"})
    types: dict[str, Any] = {}
    for name in names:
        if name in given:
            types[name] = "constexpr"
        elif name in ("sq", "sk", "sv"):
            types[name] = ("i32", "i32", "i32")
        else:
            types[name] = "i32" if name in WHOLE else f"*{NAMES[dtype] if name in streams else 'fp32'}"
    return {**types, "reset": "*i1", "lengths": "*i64"}


def compiled(inner: str, way: str, width: int, tokens: int, dtype: torch.dtype, losses: bool) -> dict[str, Any]:
    """What one kernel takes, with the options that `frame_triton` launches it with."""
    kernel = frame_triton.KERNELS[inner, way]
    options = frame_triton.launch_options(inner, way, width, tokens, dtype)
    warps, stages = options.pop("num_warps"), options.pop("num_stages")
    given = {"D": width, "LOSS": losses, "RESTORE": False, "KEEP": True, "HEIGHT": 8, "WIDE": 8, **options}
    given |= numerics(dtype)
    names = kernel.arg_names
    given = {name: value for name, value in given.items() if name in names}
    types = signature(names, given, dtype, losses or inner != "linear")
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if str(types[name]).startswith("*")}
    source = ASTSource(kernel, types, given, aligned)
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
    held = min(REGISTERS // (registers * 32 * warps), SHARED // (shared + 1024))
    return {
        "inner": inner, "way": way, "D": width, "type": NAMES[dtype], "losses": losses, **options, "warps": warps,
        "registers": registers, "stack": stack, "shared": shared, "programs": held,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inner", nargs="+", default=list(frame_triton.SCRATCH), choices=list(frame_triton.SCRATCH))
    parser.add_argument("--way", nargs="+", default=["forward", "backward"], choices=["forward", "backward"])
    parser.add_argument("--width", nargs="+", type=int, default=[64])
    parser.add_argument("--type", nargs="+", default=["bfloat16"], choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--tokens", type=int, default=196, help="tokens of a frame")
    parser.add_argument("--losses", action="store_true", help="with the inner losses and their gradients")
    parser.add_argument("--json", action="store_true", help="a line of JSON a kernel in place of a table")
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

"""Prints registers, spills, shared memory and programs per multiprocessor of every token-mode kernel, without a GPU.

    python kernels/bench/token_registers.py [--quick] [--kernel linear.forward]

Triton compiles for compute capability 9.0 (H100, H200) on any machine; its ptxas reports the resources of a kernel.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

CAPABILITY = 90
REGISTERS, SHARED, WARPS, PROGRAMS = 65536, 227 * 1024, 64, 32
"""The limits of one multiprocessor: registers, bytes of shared memory, warps and programs at a time."""


class Use(NamedTuple):
    """Resources of a compiled kernel: registers and spilled bytes per thread, bytes of shared memory per program."""

    warps: int
    registers: int
    spilled: int
    shared: int

    @property
    def programs(self) -> int:
        """The number of programs that run on one multiprocessor at the same time."""
        rounded = -(-self.registers // 8) * 8 * 32 * self.warps
        return min(REGISTERS // rounded, SHARED // (self.shared + 1024), WARPS // self.warps, PROGRAMS)


def signature(kernel: Any, tokens: str, constants: dict[str, Any]) -> dict[str, Any]:
    """Types of the parameters of a kernel, in their order, for calls without resets and lengths, and with a limit of
    the norm."""
    from tttstream_kernels.token_parts_triton import Cuts, Gradients, Learned, Results, Room, Streams

    def pointers(kind: Any, *streams: str, none: tuple[str, ...] = ()) -> Any:
        names = dict.fromkeys(streams, f"*{tokens}") | dict.fromkeys(none, "constexpr")
        return kind(*(names.get(name, "*fp32") for name in kind._fields))

    known = {
        "streams": pointers(Streams, "p_q", "p_k", "p_v"),
        "learned": pointers(Learned, none=("p_forget",)),
        "results": pointers(Results, "p_y"),
        "cuts": pointers(Cuts, none=Cuts._fields),
        "gradients": pointers(Gradients, "p_q", "p_k", "p_v"),
        "room": pointers(Room),
        **dict.fromkeys(("sq", "sk", "sv"), ("i32", "i32", "i32")),
        **dict.fromkeys(("s_weights", "T", "H", "segments", "span"), "i32"),
        **dict.fromkeys(("p_reset", "p_lengths", *constants), "constexpr"),
        "p_eta": "*fp32",
        "p_phase": "*i32",
    }
    return {parameter.name: known[parameter.name] for parameter in kernel.params}


def step_signature(kernel: Any, constants: dict[str, Any]) -> dict[str, Any]:
    """Types of the parameters of the one-token step, without resets and lengths."""
    types = {}
    for parameter in kernel.params:
        name = parameter.name
        if name in constants or name in ("p_forget", "p_max_norm", "p_reset", "p_lengths"):
            types[name] = "constexpr"
        elif name.startswith("p_"):
            types[name] = "*bf16" if name in ("p_q", "p_k", "p_v", "p_y") else "*fp32"
        else:
            types[name] = "fp32" if name in ("forget", "max_norm") else "i32"
    return types


def paths(types: dict[str, Any]) -> Iterator[tuple[tuple[int, ...], str, str]]:
    """(path, name of the parameter, type) of every number and pointer."""
    for i, (name, kind) in enumerate(types.items()):
        if isinstance(kind, str):
            yield (i,), name, kind
        else:
            yield from (((i, j), name, one) for j, one in enumerate(kind))


def use(kernel: Any, types: dict[str, str], constants: dict[str, Any], options: dict[str, int]) -> Use:
    """Compile a kernel and read the report of ptxas."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    aligned = {
        path: [["tt.divisibility", 16]]
        for path, name, kind in paths(types)
        if kind.startswith("*")
        or name in ("H", "span", "sq", "sk", "sv", "s_weights")
        or name.endswith(("_row", "_head"))
    }
    constants = {path: constants.get(name) for path, name, kind in paths(types) if kind == "constexpr"}
    source = ASTSource(kernel, types, constexprs=constants, attrs=aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", CAPABILITY, 32), options=options)
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(compiled.asm["ptx"])
        file.flush()
        command = [str(ptxas), "-v", f"--gpu-name=sm_{CAPABILITY}a", file.name, "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers, spilled = (re.search(text, said) for text in (r"Used (\d+) registers", r"(\d+) bytes spill stores"))
    if registers is None or spilled is None:
        raise RuntimeError(f"ptxas did not report registers and spills: {said}")
    return Use(options["num_warps"], int(registers[1]), int(spilled[1]), compiled.metadata.shared)


def rows(wanted: str, quick: bool) -> Iterator[tuple[str, Use]]:
    """(name, use) of every kernel whose name contains `wanted`."""
    import torch

    from tttstream_kernels import MLP, Linear, step_triton, token_triton
    from tttstream_kernels.blocks import block_of, launch_options
    from tttstream_kernels.token_parts_triton import numerics

    sizes = [(64, 16)] if quick else [(64, 16), (64, 64), (128, 16), (128, 32), (16, 16)]
    types = [(torch.bfloat16, "bf16")] if quick else [(torch.bfloat16, "bf16"), (torch.float32, "fp32")]
    weights = {"linear": Linear(), "mlp": MLP()}
    for inner in weights:
        for way in ("forward", "backward"):
            for width, size in sizes:
                for dtype, short in types:
                    name = f"{inner}.{way} D={width} K={size} {short}"
                    if wanted not in name:
                        continue
                    block = block_of(inner, width, size, SHARED)
                    constants = {"D": width, "K": size, "BLOCK": block, "KEEP": True, "READS": 1, "RESTORE": False}
                    constants |= numerics(dtype)
                    kernel = token_triton.KERNELS[inner, way]
                    constants["P"] = weights[inner].size(width)
                    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
                    kinds = signature(kernel, short, constants)
                    yield name, use(kernel, kinds, constants, launch_options(inner, way, width, dtype))
        for width in dict(sizes):
            name = f"{inner}.step D={width}"
            if wanted in name:
                kernel = step_triton.step
                constants = {"D": width, "K": 16, "FORGET": True, "MAX_NORM": True, "RESTORE": False, "LOSS": True}
                constants["MLP"] = inner == "mlp"
                kinds = step_signature(kernel, constants)
                yield name, use(kernel, kinds, constants, {"num_warps": step_triton.warps(width)})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="D = 64, K = 16 and bfloat16 only")
    parser.add_argument("--kernel", default="", help="only kernels whose name contains this")
    given = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        print("error: TRITON_INTERPRET=1 compiles nothing: unset it", file=sys.stderr)
        return 2
    print("| kernel | warps | registers a thread | spilled bytes | shared memory, KB | programs |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, used in rows(given.kernel, given.quick):
        print(
            f"| {name} | {used.warps} | {used.registers} | {used.spilled} | {used.shared / 1024:.0f} "
            f"| {used.programs} |",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

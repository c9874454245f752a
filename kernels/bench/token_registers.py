"""Registers, spills, shared memory and programs a multiprocessor of every token-mode kernel, compiled without a GPU.

    python kernels/bench/token_registers.py [--quick] [--kernel linear.forward]

Triton compiles for compute capability 9.0 (H100, H200) on any machine; its own ptxas says what a kernel takes.
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
"""What one multiprocessor has: registers, bytes that programs may share, warps and programs at a time."""


class Use(NamedTuple):
    """What a compiled kernel takes. registers: a thread; spilled: bytes a thread; shared: bytes a program."""

    warps: int
    registers: int
    spilled: int
    shared: int

    @property
    def programs(self) -> int:
        """Programs that one multiprocessor runs side by side."""
        rounded = -(-self.registers // 8) * 8 * 32 * self.warps
        return min(REGISTERS // rounded, SHARED // (self.shared + 1024), WARPS // self.warps, PROGRAMS)


def signature(kernel: Any, tokens: str, absent: tuple[str, ...], constants: dict[str, Any]) -> dict[str, str]:
    """Type of every parameter of a kernel, by what it is called."""
    types = {}
    phase = "*i32" if "BLOCK" in constants else "*fp32"  # the step takes the state's own
    known = {"reset": "*i1", "lengths": "*i64", "phase": phase, "count": "*i32", "begins": "*i32", "first": "*i32"}
    for parameter in kernel.params:
        name = parameter.name
        if name in constants or name in absent:
            types[name] = "constexpr"
        elif name in ("q", "k", "v", "y", "d_y", "d_q", "d_k", "d_v"):
            types[name] = f"*{tokens}"
        elif name in ("T", "H", "segments", "span") or name.endswith(("_row", "_step", "_head")):
            types[name] = "i32"
        else:
            types[name] = "fp32" if name.endswith("_number") else known.get(name, "*fp32")
    return types


def use(kernel: Any, types: dict[str, str], constants: dict[str, Any], options: dict[str, int]) -> Use:
    """Compile a kernel and read what ptxas says about it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, kind) in enumerate(types.items())
        if kind.startswith("*") or name in ("H", "span") or name.endswith(("_row", "_step", "_head"))
    }
    constants = {name: constants.get(name) for name, kind in types.items() if kind == "constexpr"}
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
        raise RuntimeError(f"ptxas said nothing of registers and spills: {said}")
    return Use(options["num_warps"], int(registers[1]), int(spilled[1]), compiled.metadata.shared)


def rows(wanted: str, quick: bool) -> Iterator[tuple[str, Use]]:
    """(name, use) of every kernel whose name holds `wanted`."""
    import torch

    from tttstream_kernels import step_triton, token_triton
    from tttstream_kernels.blocks import block_of, launch_options
    from tttstream_kernels.token_parts_triton import numerics

    sizes = [(64, 16)] if quick else [(64, 16), (64, 64), (128, 16), (128, 32), (16, 16)]
    types = [(torch.bfloat16, "bf16")] if quick else [(torch.bfloat16, "bf16"), (torch.float32, "fp32")]
    for inner in ("linear", "mlp"):
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
                    absent = ("reset", "lengths", "count", "begins", "first", "forget")
                    kinds = signature(kernel, short, absent, constants)
                    yield name, use(kernel, kinds, constants, launch_options(inner, way, width, dtype))
        for width in dict(sizes):
            name = f"{inner}.step D={width}"
            if wanted in name:
                kernel = step_triton.KERNELS[inner]
                constants = {"D": width, "K": 16, "FORGET": True, "LONGEST": True, "RESTORE": False, "LOSS": True}
                kinds = signature(kernel, "bf16", ("forget", "longest", "reset", "lengths"), constants)
                yield name, use(kernel, kinds, constants, {"num_warps": step_triton.warps(width)})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="D = 64, K = 16 and bfloat16 only")
    parser.add_argument("--kernel", default="", help="only kernels whose name holds this")
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

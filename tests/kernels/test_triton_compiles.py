"""Every kernel of frame mode compiles for a GPU that is not there, and fits into one of its multiprocessors."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

knobs = pytest.importorskip("triton", reason="triton is not installed").knobs

TOOL = "kernels/bench/frame_registers.py"


def compiled(root: Path, *options: str) -> list[dict[str, Any]]:
    """The output of the tool, in a process of its own, where the kernels are compiled and not interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(root / TOOL), "--json", *options]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines()]


def check(found: dict[str, Any]) -> None:
    assert 0 < found["registers"] <= 255
    assert 0 < found["shared"] <= 227 * 1024
    assert found["programs"] >= 1


def tools() -> bool:
    """Whether triton came with the assembler; its wheels for Linux do."""
    return all(Path(getattr(knobs.nvidia, name).path).is_file() for name in ("ptxas", "cuobjdump"))


pytestmark = pytest.mark.skipif(not tools(), reason="this triton came without ptxas")


def test_the_smallest_sizes_compile(root: Path) -> None:
    found = compiled(root, "--width", "16", "--tokens", "16", "--way", "forward")
    assert [one["inner"] for one in found] == ["linear", "mlp", "conv"]
    for one in found:
        check(one)


@pytest.mark.soak
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("inner", ["linear", "mlp", "conv"])
def test_every_variant_compiles_within_the_limits_of_the_gpu(root: Path, inner: str, dtype: str) -> None:
    """With the losses, which need the most registers and shared memory."""
    for one in compiled(root, "--inner", inner, "--type", dtype, "--width", "16", "32", "64", "128", "--losses"):
        check(one)


def test_lengths_cause_no_recompilation(root: Path) -> None:
    """By default Triton compiles a kernel again for an argument that is 1 or a multiple of 16."""
    code = """
from tttstream_kernels import frame_kernels_triton as frame, step_triton, token_triton
for kernel in (frame.forward, frame.backward, *token_triton.KERNELS.values(), step_triton.step):
    for p in kernel.params:
        if p.name in ("T", "segments", "tokens", "group", "kept"):
            assert p.do_not_specialize, (kernel.fn, p.name)
        if p.name in ("p_eta", "p_phase", "p_lengths", "p_reset"):
            assert p.do_not_specialize_on_alignment, (kernel.fn, p.name)
print(kernel)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.startswith("JITFunction")

"""The kernels of token mode compile for a GPU that is not there, and fit into one of its multiprocessors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="triton is not installed")

PTXAS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
pytestmark = pytest.mark.skipif(not PTXAS.is_file(), reason="this triton came without ptxas")


def table(root: Path, *options: str) -> dict[str, list[int]]:
    """(warps, registers, spilled bytes, KB shared, programs) by kernel, from a process without the interpreter."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(root / "kernels" / "bench" / "token_registers.py"), *options]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    lines = [line.strip("| ").split(" | ") for line in run.stdout.splitlines()[2:]]
    return {name: [int(number) for number in numbers] for name, *numbers in lines}


def check(numbers: list[int]) -> None:
    _, registers, _, shared, programs = numbers
    assert 0 < registers <= 255
    assert shared <= 227
    assert programs >= 1


def test_the_linear_forward_pass_and_the_step(root: Path) -> None:
    forward = table(root, "--quick", "--kernel", "linear.forward")["linear.forward D=64 K=16 bf16"]
    check(forward)
    assert forward[2] == 0, "weights that spill are not in registers"
    assert forward[3] > 24, "the loop does not load ahead"
    assert forward[4] >= 2
    step = table(root, "--quick", "--kernel", "linear.step")["linear.step D=64"]
    check(step)
    assert step[2] == 0


@pytest.mark.soak
def test_every_variant_compiles_within_the_limits_of_the_gpu(root: Path) -> None:
    found = table(root)
    assert len(found) == 2 * (2 * 4 * 2 + 3)
    for numbers in found.values():
        check(numbers)

"""`tttstream info`: prints versions, devices, and whether Triton can run here, for bug reports."""

import argparse
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

# Each row lists the distributions that may contain the same package.
PACKAGES = (
    ("torch",),
    ("triton", "triton-windows", "pytorch-triton"),
    ("torchvision",),
    ("opencv-python", "opencv-contrib-python", "opencv-python-headless", "opencv-contrib-python-headless"),
    ("av",),
    ("decord", "decord2"),
    ("lightning",),
    ("gymnasium",),
    ("numpy",),
    ("scikit-image",),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no options."""


def installed(distributions: tuple[str, ...]) -> str:
    """Name and version of the first of these distributions that is installed."""
    for name in distributions:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return f"{distributions[0]} is not installed"


def devices() -> list[str]:
    """The devices that torch can use here, one line each."""
    import torch

    lines = [f"cpu: {platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        lines.append(
            f"cuda:{index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
            f"compute capability {properties.major}.{properties.minor}"
        )
    if torch.backends.mps.is_available():
        lines.append("mps")
    return lines


def triton_status() -> str:
    """Whether Triton kernels can run on this machine, and the reason."""
    import torch

    if find_spec("triton") is None:
        return f"no: triton is not installed (it has packages for Linux only; this is {platform.system()})"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "yes, in the interpreter (TRITON_INTERPRET=1): correct but slow, for tests"
    if torch.cuda.is_available():
        return "yes, on CUDA"
    return "no: torch sees no CUDA device (TRITON_INTERPRET=1 runs the kernels in the interpreter)"


def backends() -> list[str]:
    """One line for each inner model: the backend that `backend="auto"` selects here, and why it is not Triton."""
    import torch

    from tttstream.inner import CATALOGUE
    from tttstream_kernels.backend import route

    if not torch.cuda.is_available():
        way = route("auto", CATALOGUE["linear"].make(None), device="cpu")
        return [f"{way.backend}: {way.why}"]
    lines = []
    for inner in (model.make((16, 16)) for model in CATALOGUE.values()):
        for causal in ("token", "frame") if inner.token_causal else ("frame",):
            way = route("auto", inner, causal)
            lines.append(f"{inner.name}, {causal} mode: {way.backend} ({way.why})")
    return lines


def memories() -> list[str]:
    """The memories that can be built by name, one line each."""
    from tttstream.memory.catalogue import CATALOGUE

    return [f"{name}: {entry.about}" for name, entry in CATALOGUE.items()]


def run(args: argparse.Namespace) -> int:
    """Print the report."""
    from tttstream import __version__
    from tttstream_kernels.backend import triton_coverage

    rows = [
        ("tttstream", [__version__]),
        ("python", [f"{platform.python_version()} on {platform.platform()}", sys.executable]),
        ("packages", [installed(distributions) for distributions in PACKAGES]),
        ("devices", devices()),
        ("triton", [triton_status()]),
        ("kernels", triton_coverage()),
        ("auto takes", backends()),
        ("memories", memories()),
    ]
    for title, lines in rows:
        for index, line in enumerate(lines):
            print(f"{title if index == 0 else '':<12}{line}")
    return 0

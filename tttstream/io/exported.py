"""One step of a model as files for deployment: NAME.pt2 (torch.export), NAME.onnx, and their description NAME.json."""

import importlib
import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from tttstream.errors import DependencyError
from tttstream.io.outputs import OutputFolder, TextFile, saving

LARGEST_BATCH = 65_536


class Step(nn.Module):
    """A module for export: `forward(*inputs)` takes tensors in the order of `example` and returns those of OUTPUTS.

    A state is an input and an output as one packed matrix [B, n] (`tttstream.state.pack`), so that the user of the
    files passes one array. BATCHED: whether the first dimension of every tensor is free; otherwise it is that of
    `example`.
    """

    OUTPUTS: ClassVar[tuple[str, ...]]
    BATCHED: ClassVar[bool] = True

    def example(self) -> dict[str, Tensor]:
        """Inputs by name, with the exported shapes and types."""
        raise NotImplementedError


def write(step: Step, folder: str | os.PathLike[str], name: str, more: Mapping[str, Any] | None = None) -> Path:
    """Write name.pt2, name.onnx and name.json into a folder; more: further entries of name.json. Returns the folder.

    Raises DependencyError without onnx. Nothing is left behind by an export that fails.
    """
    for package in ("onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except ModuleNotFoundError as error:
            raise DependencyError(f"{package} is not installed: pip install 'tttstream[export]'") from error
    step.eval()
    example = step.example()
    made = OutputFolder(folder)
    try:
        batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
        shapes = (tuple({0: batch} for _ in example),) if step.BATCHED else None
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about deprecations inside torch and onnx
            program = torch.export.export(step, tuple(example.values()), dynamic_shapes=shapes)
            onnx: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=list(example), output_names=list(step.OUTPUTS),
                custom_translation_table=importlib.import_module("tttstream.io.onnx_ops").TRANSLATIONS,
            )  # fmt: skip
            outputs = step(*example.values())
            buffer = io.BytesIO()
            torch.export.save(program, buffer)
        for file, put in (
            (f"{name}.pt2", lambda path: path.write_bytes(buffer.getvalue())),
            (f"{name}.onnx", onnx.save),
        ):
            part = made.path / f".{file}.part"
            with saving(made.path / file):
                put(part)
                os.replace(part, made.path / file)
        values = {
            "inputs": {key: _described(x, step.BATCHED) for key, x in example.items()},
            "outputs": {key: _described(x, step.BATCHED) for key, x in zip(step.OUTPUTS, outputs, strict=True)},
            **(more or {}),
        }
        with (text := TextFile(made.path / f"{name}.json")):
            text.write_json(values)
    finally:
        made.discard()
    return made.path


def _described(x: Tensor, batched: bool) -> dict[str, Any]:
    first = ["batch"] if batched else [len(x)]
    return {"type": str(x.dtype).removeprefix("torch."), "shape": [*first, *x.shape[1:]]}

"""Operators of PyTorch that its exporter to ONNX lacks. Importing this module needs onnxscript."""
# mypy: ignore-errors
# onnxscript translates the body of a script to ONNX; its types are not those of Python.

from collections.abc import Callable
from typing import Any

import onnxscript
import torch
from onnxscript import FLOAT
from onnxscript import opset18 as op


@onnxscript.script()
def solved(a: FLOAT[...], b: FLOAT[...]) -> FLOAT[...]:
    """The x with a x = b, for positive definite matrices a [..., n, n] and b [..., n, m]: Gauss-Jordan elimination
    without pivots, which such matrices do not need."""
    both = op.Concat(a, b, axis=-1)
    count = op.Gather(op.Shape(a), -1)
    for k in range(count):
        at = op.Reshape(k, [1])
        line = op.Gather(both, at, axis=-2)
        line = op.Div(line, op.Gather(line, at, axis=-1))
        here = op.CastLike(op.Equal(op.Unsqueeze(op.Range(0, count, 1), [-1]), at), a)
        both = op.Sub(both, op.Mul(op.Sub(op.Gather(both, at, axis=-1), here), line))
    x = op.Slice(both, op.Reshape(count, [1]), [9223372036854775807], [-1])
    return x


def solve_ex(a: Any, b: Any, left: bool = True, check_errors: bool = False) -> tuple[Any, Any]:
    """`torch.linalg.solve_ex` for positive definite matrices; its second result, the flag of an error, is 0."""
    return solved(a, b), op.Constant(value_int=0)


TRANSLATIONS: dict[Any, Callable[..., Any]] = {torch.ops.aten.linalg_solve_ex.default: solve_ex}
"""For `torch.onnx.export(custom_translation_table=…)`."""

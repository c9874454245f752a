"""How kernels become torch ops, and the one way in which they are launched: on the device of their tensors, with an
error that says what to do."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any, get_type_hints

import torch
from torch import Tensor
from triton import OutOfResources

from tttstream_kernels.errors import BackendError

VARYING: dict[str, Any] = {
    "do_not_specialize": ["T", "segments", "tokens", "group", "kept"],
    "do_not_specialize_on_alignment": ["p_eta", "p_phase", "p_lengths", "p_reset"],
}
"""Arguments of kernels that change from call to call: a kernel is compiled once for all that they may be. Each is an
argument of its own: because Triton recompiles a kernel for each new value inside of a tuple."""
KINDS: dict[Any, str] = {
    Tensor: "Tensor", Tensor | None: "Tensor?", str: "str", int: "SymInt", bool: "bool", float: "float"
}  # fmt: skip
"""Types of an op's arguments, as its schema calls them."""


def operator(name: str, arguments: tuple[Any, ...], results: int, run: Any, room: Any) -> Any:
    """A torch op whose arguments are the fields of named tuples, one after the other.

    Args:
        name: with its namespace.
        arguments: classes of named tuples, whose annotations are the types.
        results: how many tensors the op gives.
        run: runs it, given one tuple of each class.
        room: gives tensors of the shapes, types and device of the results, given the same.
    """

    def grouped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            rest = iter(given)
            return function(*(group(*islice(rest, len(group._fields))) for group in arguments))

        return call

    fields = (f"{KINDS[kind]} {field}" for group in arguments for field, kind in get_type_hints(group).items())
    schema = f"({', '.join(fields)}) -> ({', '.join(['Tensor'] * results)})"
    op = torch.library.custom_op(name, grouped(run), mutates_args=(), schema=schema)
    op.register_fake(grouped(room))
    return op


def shared_memory(device: torch.device) -> int:
    """Bytes that the threads of one program can share; in the interpreter as many as on an H100."""
    if device.type != "cuda":
        return 227 * 1024
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)


def launch(kernel: Any, cells: int, device: Tensor, *arguments: Any, **constants: Any) -> None:
    """Run one program a cell, on the device of a tensor, whatever the current one is.

    Raises BackendError if the device has less shared memory than the kernel needs.
    """
    with torch.cuda.device_of(device):
        try:
            kernel[(cells,)](*arguments, **constants)
        except OutOfResources as error:
            raise BackendError(
                f"backend='triton' cannot run here: the kernel needs {error.required} bytes of {error.name}, and this "
                f"GPU has {error.limit}: use narrower heads, a smaller mini_batch or backend='torch'"
            ) from error

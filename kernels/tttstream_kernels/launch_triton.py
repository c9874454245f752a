"""The one way in which a kernel is launched: on the device of its tensors, with an error that says what to do."""

from __future__ import annotations

from typing import Any

import torch
from triton import OutOfResources

from tttstream_kernels.errors import BackendError

VARYING: dict[str, Any] = {
    "do_not_specialize": ["T", "segments", "tokens", "group", "kept"],
    "do_not_specialize_on_alignment": ["eta", "phase", "lengths", "reset"],
}
"""Arguments of kernels that change from call to call: a kernel is compiled once for all that they may be."""


def shared_memory(device: torch.device) -> int:
    """Bytes that the threads of one program can share; in the interpreter as many as on an H100."""
    if device.type != "cuda":
        return 227 * 1024
    properties: Any = torch.cuda.get_device_properties(device)
    return int(properties.shared_memory_per_block_optin)


def launch(kernel: Any, cells: int, *arguments: Any, **constants: Any) -> None:
    """Run one program a cell. The first argument is a tensor: its device counts, whatever the current one is.

    Raises BackendError where the device has less shared memory than the kernel needs.
    """
    with torch.cuda.device_of(arguments[0]):
        try:
            kernel[(cells,)](*arguments, **constants)
        except OutOfResources as error:
            raise BackendError(
                f"backend='triton' cannot run here: the kernel needs {error.required} bytes of {error.name}, and this "
                f"GPU has {error.limit}: use narrower heads, a smaller mini_batch or backend='torch'"
            ) from error

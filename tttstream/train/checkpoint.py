"""Checkpoints that are written completely or not at all, with clear errors."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from tttstream.errors import CheckpointError
from tttstream.io.outputs import saving

SPAWNED = ".temp.ckpt"  # the name of the file with which Lightning returns the weights of spawned ranks


class WholeFiles(TorchCheckpointIO):
    """Writes under a temporary name and renames, so that a full disk does not damage the last checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """See the class. Raises OutputError."""
        whole = Path(path)
        part = whole.with_name(f".{whole.name}.part")
        with saving(whole):
            whole.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(part, "wb") as file:
                    torch.save(checkpoint, file)
                os.replace(part, whole)
            except RuntimeError as error:  # torch reports errors of the file in this way
                raise _cause(error) from error
            finally:
                part.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As Lightning's. Raises CheckpointError for a file that is no checkpoint."""
        try:
            checkpoint = super().load_checkpoint(path, *args, **kwargs)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{path} cannot be read as a checkpoint: is it complete, and written by `tttstream fit`?"
            ) from error
        bare = os.path.basename(path) == SPAWNED
        if not isinstance(checkpoint, dict) or ("state_dict" not in checkpoint and not bare):
            raise CheckpointError(f"{path} is not a checkpoint of a run: give one that `tttstream fit` wrote")
        return checkpoint


def _cause(error: BaseException) -> BaseException:
    """The system's error behind another one, if there is one."""
    while not isinstance(error, OSError) and (error.__cause__ or error.__context__):
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return error

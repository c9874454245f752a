"""A model as a folder: config.json and model.safetensors, each complete or absent."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tttstream.errors import CheckpointError, OutputError
from tttstream.io.outputs import OutputFolder, saving


def write(
    model: nn.Module,
    config: dict[str, Any],
    format: str,
    folder: str | os.PathLike[str],
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model into a folder, each file under a temporary name first. dtype: of the weights in the file, by
    default their own."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path = Path(folder)
    weights = {name: w.detach().to("cpu", dtype or w.dtype).contiguous() for name, w in model.state_dict().items()}
    part, text = path / "model.safetensors.part", path / "config.json.part"
    with OutputFolder(path), saving(path):
        try:
            save_file(weights, part, metadata={"format": format})
            text.write_text(json.dumps({"format": format, **config}, indent=2) + "\n", encoding="utf-8")
            os.replace(part, path / "model.safetensors")
            os.replace(text, path / "config.json")
        except SafetensorError as error:
            raise OutputError(f"cannot write {part}: {error}") from error
        finally:
            part.unlink(missing_ok=True)
            text.unlink(missing_ok=True)


def fingerprint(model: nn.Module, config: dict[str, Any]) -> str:
    """A hash of a configuration and of all weights."""
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, weight in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read(folder: Path) -> dict[str, Any]:
    """The content of config.json in a folder, with the entry "format"."""
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"no model at {folder}: it has no config.json") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} is not the configuration of a model")
    return values


def fill(model: nn.Module, folder: Path) -> None:
    """Load the weights in a folder into a model, which they must fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / "model.safetensors"
    try:
        weights = load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"no weights at {path}") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    expected = {name: list(weight.shape) for name, weight in model.state_dict().items()}
    came = {name: list(weight.shape) for name, weight in weights.items()}
    if came != expected:
        wrong = sorted(name for name in {*came, *expected} if came.get(name) != expected.get(name))
        raise CheckpointError(f"{path} does not fit its config.json: {', '.join(wrong[:3])} …")
    model.load_state_dict(weights)

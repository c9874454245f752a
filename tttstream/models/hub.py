"""Models on a hub: downloads them by name into the cache of huggingface_hub, and uploads them with a card."""

import json
import os
import re
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from tttstream.errors import CheckpointError, ConfigError, DependencyError, OutputError
from tttstream.models.base import SavedModel

PREFIX = "hf:"
FILES = ["config.json", "model.safetensors", "README.md"]
PICKLES = (".bin", ".ckpt", ".pkl", ".pickle", ".pt", ".pth")


def is_remote(name: str) -> bool:
    """Whether a name has the form hf:OWNER/NAME, for a model on a hub."""
    return name.startswith(PREFIX)


def parsed(name: str) -> tuple[str, str | None]:
    """hf:OWNER/NAME@REVISION -> (OWNER/NAME, REVISION; None if none is given). Raises ConfigError for others."""
    repository, mark, revision = name.removeprefix(PREFIX).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository) or (mark and not revision):
        raise ConfigError(f"{name!r} is no model of a hub: expected {PREFIX}OWNER/NAME or {PREFIX}OWNER/NAME@REVISION")
    return repository, revision or None


def fetched(name: str) -> Path:
    """The folder in the cache of a model with this name; missing files are downloaded.

    Only config.json, model.safetensors and the card are downloaded: weights in pickles are refused, because loading one
    may run code in it. Raises CheckpointError if the model does not exist or cannot be downloaded, DependencyError
    without huggingface_hub.
    """
    repository, revision = parsed(name)
    hub, errors = _hub(), _errors()
    try:
        folder = Path(hub.HfApi().snapshot_download(repository, revision=revision, allow_patterns=FILES))
    except errors as error:
        raise CheckpointError(_why(hub, name, repository, revision, error)) from error
    missing = [file for file in FILES[:2] if not (folder / file).is_file()]
    if missing:
        raise CheckpointError(f"{name} has no {' and no '.join(missing)}{_pickles(hub, repository, revision)}")
    return folder


def push(
    model: SavedModel,
    repository: str,
    *,
    card: str | os.PathLike[str] | None = None,
    private: bool = False,
    revision: str | None = None,
    message: str = "A model of tttstream",
) -> str:
    """Upload a model with its card to a hub, and create the repository if it does not exist. Returns the address.

    repository: OWNER/NAME. card: a Markdown file that becomes the README; by default a generated one. revision: an
    existing branch, by default main. private: for a new repository. The token is that of `hf auth login`.

    Raises OutputError if that cannot be done, DependencyError without huggingface_hub.
    """
    repository, branch = parsed(f"{PREFIX}{repository}")
    if branch is not None:
        raise ConfigError(f"push: {repository}@{branch}: give the branch as revision={branch!r}")
    hub, errors = _hub(), _errors()
    text = described(model, repository) if card is None else _read(Path(card))
    with TemporaryDirectory() as folder:
        model.save(folder)
        Path(folder, "README.md").write_text(text, encoding="utf-8")
        api = hub.HfApi()
        try:
            api.create_repo(repository, private=private, exist_ok=True)
            info = api.upload_folder(
                repo_id=repository, folder_path=folder, allow_patterns=FILES, revision=revision, commit_message=message
            )
        except errors as error:
            raise OutputError(f"{repository} cannot be put on {hub.constants.ENDPOINT}: {_said(error)}") from error
    return str(info.commit_url)


def described(model: SavedModel, repository: str) -> str:
    """The card of a model without one: its kind, the code that loads it, and its config.json."""
    weights = sum(weight.numel() for weight in model.parameters())
    command = f"\n    tttstream {model.USE} --model {PREFIX}{repository}\n" if model.USE else ""
    config = json.dumps({"format": model.FORMAT, **model.description()}, indent=2)
    return f"""\
---
library_name: tttstream
tags: [tttstream, test-time-training, video]
---

# {repository.rpartition("/")[2]}

A {type(model).__name__} of tttstream {version("tttstream")}, {weights:,} parameters.

    model = {model.LOAD.format(f"{PREFIX}{repository}")}
{command}
What it was trained on, what was measured and where it fails are for its author to say here.

```json
{config}
```
"""


def _read(card: Path) -> str:
    try:
        return card.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ConfigError(f"the card {card} cannot be read: {error}") from error


def _hub() -> ModuleType:
    try:
        import huggingface_hub.constants
    except ImportError as error:
        raise DependencyError("models of a hub need huggingface_hub: pip install 'tttstream[hub]'") from error
    return huggingface_hub


def _errors() -> tuple[type[Exception], ...]:
    """The base class of the errors of a transfer with a hub, for all transfer libraries."""
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError

    carried: Any = HfHubHTTPError.__bases__[0]
    return carried, EntryNotFoundError, OSError, ValueError


def _why(hub: ModuleType, name: str, repository: str, revision: str | None, error: Exception) -> str:
    from huggingface_hub import errors

    where = hub.constants.ENDPOINT
    if isinstance(error, errors.GatedRepoError):
        return f"{name}: {where}/{repository} needs access rights: request them there, and log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"{name}: there is no {repository} on {where}, or it is private: see its name, or `hf auth login`"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name}: {repository} has no revision {revision}: expected a branch, a tag or a commit"
    fetch = " ".join(["hf download", repository, *FILES[:2], *(["--revision", revision] if revision else [])])
    return (
        f"{name} is not in the cache {hub.constants.HF_HUB_CACHE} and cannot be fetched from {where} "
        f"({_said(error.__cause__ or error)}): run `{fetch}` where there is a network, and copy the cache here"
    )


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else f"{text[:200]} …"


def _pickles(hub: ModuleType, repository: str, revision: str | None) -> str:
    """A remark for an error about a repository with weights of another format."""
    try:
        files = hub.HfApi().list_repo_files(repository, revision=revision)
    except _errors():
        return ""
    found = [file for file in files if file.endswith(PICKLES)]
    if not found:
        return "; is it a model of tttstream?"
    return f"; it has {found[0]}, and pickles are not read: they may run anything. Save the weights as safetensors"

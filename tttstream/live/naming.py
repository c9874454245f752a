"""Names of sources on a page and in files: without passwords, short and unique."""

import re
from collections.abc import Iterable
from pathlib import PurePath
from urllib.parse import urlsplit

from tttstream.io.addresses import public
from tttstream.io.names import shortened
from tttstream.sources.listing import GENERATED

LONGEST = 32  # most letters of an id, without its number


def kind_of(spec: str) -> str:
    """ "camera", "network", "generated", "environment" or "file"."""
    if re.fullmatch("[0-9]+", spec) or spec.startswith("/dev/video"):
        return "camera"
    if spec in GENERATED:
        return "generated"
    if spec.startswith("gym:"):
        return "environment"
    return "network" if "://" in spec else "file"


def label_of(spec: str) -> str:
    """The label of a source, without user, query and fragment of an address, which may be secret."""
    kind = kind_of(spec)
    if kind == "camera":
        return f"camera {spec.removeprefix('/dev/video')}"
    if kind == "network":
        try:
            address = urlsplit(public(spec))
        except ValueError:
            return "an address"
        return shortened(f"{address.scheme}://{address.netloc}{address.path}", 80)
    return shortened(spec if kind in ("generated", "environment") else PurePath(spec).name or spec, 80)


def scrubbed(text: str, spec: str) -> str:
    """A message about a source without the secret parts of its address: user, password, query and fragment. Messages of
    sources contain their complete address."""
    if "://" not in spec:
        return text
    try:
        address = urlsplit(spec)
    except ValueError:
        return text.replace(spec, label_of(spec))
    user = spec.partition("://")[2].rpartition("@")[0]
    for secret in (spec, public(spec), *(part for part in (user, address.query, address.fragment) if part)):
        text = text.replace(secret, label_of(spec) if "://" in secret else "…")
    return text


def id_of(label: str, taken: Iterable[str]) -> str:
    """A name of [A-Za-z0-9_-] for addresses and files, with a number if it is already used."""
    last = label.rstrip("/").rsplit("/", 1)[-1] if "://" in label else label
    stem = last.rsplit(".", 1)[0] if "." in last[1:] else last
    stem = re.sub(r"[^A-Za-z0-9_]+", "-", stem).strip("-")[:LONGEST].strip("-") or "source"
    known = {name.casefold() for name in taken}
    name, number = stem, 2
    while name.casefold() in known:
        name, number = f"{stem}-{number}", number + 1
    return name

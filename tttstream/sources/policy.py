"""Policies for environments by name: "PACKAGE.MODULE:CALLABLE"."""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any

from tttstream.errors import SourceError

Policy = Callable[[Any, dict[str, Any], Any], Any]
"""(observation, info, env) -> action"""


def found(spec: str | Policy) -> Policy:
    """The callable of that name, or the one given. Modules in the current folder are found too.

    Raises SourceError if the module does not exist, cannot be imported, or has no such callable.
    """
    if not isinstance(spec, str):
        return spec
    name, colon, attribute = spec.partition(":")
    if not (name and colon and attribute):
        raise SourceError(f"--policy {spec!r}: expected PACKAGE.MODULE:CALLABLE")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        value: Any = import_module(name)
    except Exception as error:  # foreign code
        what = " ".join(str(error).split())
        raise SourceError(f"--policy {spec}: {name} cannot be imported: {type(error).__name__}: {what}") from error
    for step in attribute.split("."):
        if not hasattr(value, step):
            names = [one for one, thing in vars(value).items() if callable(thing) and not one.startswith("_")]
            raise SourceError(f"--policy {spec}: {name} has no {step!r}; it has {', '.join(names[:20]) or 'nothing'}")
        value = getattr(value, step)
    if not callable(value):
        raise SourceError(f"--policy {spec}: {attribute} is no callable but {type(value).__name__}")
    return value


def fresh(policy: Policy) -> Policy:
    """The policy at its start: a class is instantiated, so that it has its own memory; a function is returned
    unchanged."""
    return policy() if isinstance(policy, type) else policy

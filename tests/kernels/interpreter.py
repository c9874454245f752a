"""Makes Triton's interpreter faster in the tests. The results stay the same."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Any

KNOWN = "3.8."  # version of Triton


def quicken() -> None:
    """Patch Triton's interpreter, if it is imported.

    The patches change private parts of Triton. Versions other than KNOWN get only the first one.
    """
    interpreter = sys.modules.get("triton.runtime.interpreter")
    if interpreter is None or not hasattr(interpreter, "_LangPatchScope"):
        return
    interpreter._patch_lang = patched_once(interpreter)
    if not version("triton").startswith(KNOWN):
        return
    language, builder = interpreter.tl, interpreter.interpreter_builder
    if not builder.options.debug:  # the interpreter computes overflow assertions also where it then drops them
        builder.options = replace(builder.options, sanitize_overflow=False)
    interpreter._get_np_dtype = numpy_types(interpreter._get_np_dtype)
    semantic = interpreter.interpreter_semantic
    semantic.broadcast_impl_value = broadcast(semantic.broadcast_impl_value)
    share(
        language.block_type, lambda element, shape: (element.name, *shape), lambda element, _: {"element_ty": element}
    )
    share(
        language.tensor,
        lambda _, type: (*type.shape,) if type.is_block() else (),
        lambda handle, type: {"handle": handle, "type": type, "dtype": type.scalar},
    )


def patched_once(interpreter: Any) -> Callable[..., Any]:
    """Patch the language once for each module in a launch. Triton does it in every call of a device function."""
    patch, language, modules = interpreter._patch_lang, interpreter.tl, set()

    def once(function: Callable[..., Any]) -> Any:
        if language.core.is_builtin(language.load):  # not patched: a launch begins
            modules.clear()
        known = id(function.__globals__) in modules
        modules.add(id(function.__globals__))
        return interpreter._LangPatchScope() if known else patch(function)

    return once


def numpy_types(find: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Store the results of `find` by the name of the type. Triton makes its table of types anew in every call."""
    found: dict[str, Any] = {}

    def known(type: Any) -> Any:
        name = type.scalar.name
        if name not in found:
            found[name] = find(type.scalar)
        return found[name]

    return known


def broadcast(of_any_shapes: Callable[..., Any]) -> Callable[..., Any]:
    """Broadcast two values. Two tiles of the same shape are returned unchanged."""

    def both(lhs: Any, rhs: Any) -> Any:
        same = lhs.type.is_block() and rhs.type.is_block() and [*lhs.type.shape] == [*rhs.type.shape]
        return (lhs, rhs) if same else of_any_shapes(lhs, rhs)

    return both


Pair = Callable[[Any, Any], Any]
"""A function of the two arguments of a constructor."""


def share(kind: Any, key: Pair, own: Pair) -> None:
    """Compute the attributes of a class once for each key, and reuse them for other objects with this key.

    own: the attributes that differ between objects with the same key.
    """
    make: Callable[..., None] = kind.__init__
    made: dict[Any, dict[str, Any]] = {}

    def init(self: Any, first: Any, second: Any) -> None:
        place, mine = key(first, second), own(first, second)
        if place in made:
            vars(self).update(made[place], **mine)
        else:
            make(self, first, second)
            made[place] = {name: value for name, value in vars(self).items() if name not in mine}

    kind.__init__ = init

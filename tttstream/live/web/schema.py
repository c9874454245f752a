"""JSON Schemas of the values that clients send, for the checks and for the documentation."""

import re
from typing import Any

from tttstream.errors import ConfigError

Schema = dict[str, Any]
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "number": (int, float),
    "integer": (int,),
    "boolean": (bool,),
}


def record(required: tuple[str, ...] = (), **properties: Schema) -> Schema:
    """An object with these properties and no others."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


def text(most: int, pattern: str | None = None, least: int = 1) -> Schema:
    """A string of at most this number of characters."""
    return {"type": "string", "minLength": least, "maxLength": most} | ({} if pattern is None else {"pattern": pattern})


def number(least: float, most: float) -> Schema:
    """A number within limits."""
    return {"type": "number", "minimum": least, "maximum": most}


def check(value: Any, schema: Schema, name: str = "the body") -> None:
    """Raises ConfigError if a value read from JSON does not fit."""
    kind = schema["type"]
    fits: bool = isinstance(value, TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
    if not fits:
        raise ConfigError(f"{name}: expected {_a(kind)}, got {_a(_kind(value))}")
    if kind == "object":
        _check_object(value, schema, name)
    elif kind == "array":
        if not schema.get("minItems", 0) <= len(value) <= schema["maxItems"]:
            raise ConfigError(f"{name}: expected {_range(schema, 'Items')} items, got {len(value)}")
        for place, item in enumerate(value):
            check(item, schema["items"], f"{name}[{place}]")
    elif kind == "string":
        if not schema["minLength"] <= len(value) <= schema["maxLength"]:
            raise ConfigError(f"{name}: expected {_range(schema, 'Length')} characters, got {len(value)}")
        if "pattern" in schema and not re.fullmatch(schema["pattern"].strip("^$"), value):
            raise ConfigError(f"{name}: expected {schema['pattern']}")
        if "enum" in schema and value not in schema["enum"]:
            raise ConfigError(f"{name}: expected one of {', '.join(schema['enum'])}")
    elif kind in ("number", "integer") and not schema["minimum"] <= value <= schema["maximum"]:
        raise ConfigError(f"{name}: expected {schema['minimum']} to {schema['maximum']}")


def _check_object(value: dict[str, Any], schema: Schema, name: str) -> None:
    for key in schema["required"]:
        if key not in value:
            raise ConfigError(f"{name}: {key} is missing")
    for key, item in value.items():
        if key not in schema["properties"]:
            known = ", ".join(schema["properties"]) or "nothing"
            raise ConfigError(f"{name}: expected {known}, got {key[:40]!r}")
        check(item, schema["properties"][key], key)


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeio" else f"a {kind}" if kind != "null" else "null"


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    return next(name for name, types in TYPES.items() if isinstance(value, types))


def _range(schema: Schema, of: str) -> str:
    least, most = schema.get(f"min{of}", 0), schema[f"max{of}"]
    return str(most) if least == most else f"{least} to {most}"

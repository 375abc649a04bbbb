"""Plain mappings, as YAML and json give them, to dataclasses; a typo is an error naming the nearest key."""

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from reprlib import repr as short_repr
from typing import Any, Literal, TypeVar, get_args, get_origin

from dmlm.pipeline.errors import ConfigError
from dmlm.pipeline.suggestions import did_you_mean

T = TypeVar("T")


def build_strictly(kind: type[T], content: Any, where: str) -> T:
    """Instance of the dataclass `kind` from a mapping that may hold its fields and nothing else.

    Raises:
        ConfigError: A key is unknown or missing, or a value is of a wrong type; it names `where` and the key.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: must hold keys and values, not {short_repr(content)}")
    hints = typing.get_type_hints(kind)
    for key in content:
        if key not in hints:
            raise ConfigError(f"{where}: unknown key {key!r}{did_you_mean(str(key), hints)}")
    for required in fields(kind):  # type: ignore[arg-type]
        if (
            required.default is MISSING
            and required.default_factory is MISSING
            and required.name not in content
        ):
            raise ConfigError(f"{where}: {required.name} is missing")
    return kind(**{key: _convert(hints[key], value, f"{where}: {key}") for key, value in content.items()})


def _convert(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`: a dataclass, Literal, tuple of one kind, optional, or a plain type.

    Errors show little of it, for a few lines of YAML can unfold to gigabytes.
    """
    if is_dataclass(kind):
        return build_strictly(typing.cast(type, kind), value, where)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Literal:
        return _choose(arguments, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} must be a list, not {short_repr(value)}")
        return tuple(_convert(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is types.UnionType:
        return None if value is None else _convert(arguments[0], value, where)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        hint = " (YAML wants 1.0e-3 for 1e-3)" if kind is float and isinstance(value, str) else ""
        raise ConfigError(f"{where} must be {kind.__name__}, not {short_repr(value)}{hint}")
    return value


def _choose(choices: tuple[str, ...], value: Any, where: str) -> str:
    if value in choices:
        return typing.cast(str, value)
    hint = did_you_mean(value, choices) if isinstance(value, str) else ""
    raise ConfigError(f"{where} must be one of {', '.join(choices)}, not {short_repr(value)}{hint}")

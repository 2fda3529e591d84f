"""Frozen nouns as JSON's types and back, by their annotations alone.

A field's key is its name, or `key` of its metadata. A field with `beside` in its metadata is only written where the
field of that name is there; read back it may always be missing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePath
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Noun = TypeVar("Noun")
MAX_DIGITS = 20
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
WRITTEN_AS = {float: (int, float), Path: (str,)}
"""Types of JSON, where they are others than the field's."""


def parse_json(text: str | bytes, **hooks: Any) -> Any:
    """JSON's types; `hooks` as for `json.loads`.

    Raises:
        ValueError: it is none, nested too deep, or has characters or whole numbers that nothing here writes.
    """
    raw = text.encode() if isinstance(text, str) else text
    try:
        found = json.loads(raw, parse_int=_whole, **hooks)
        if _SURROGATE.search(raw):
            json.dumps(found, ensure_ascii=False).encode()  # a pair of them is one character, one alone is none
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    return found


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it has a whole number of {len(digits)} digits")
    return int(digits)


def called(key: str) -> dict[str, str]:
    """Metadata of a field that JSON has under another name, one that Python keeps for itself."""
    return {"key": key}


def beside(name: str) -> dict[str, str]:
    """Metadata of a field that is not written where the field `name` is None."""
    return {"beside": name}


def to_plain(value: Any) -> Any:
    """Dictionaries, lists and what they hold; fields in their order."""
    if dataclasses.is_dataclass(value):
        return {
            _key(field): to_plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if getattr(value, field.metadata.get("beside", field.name), None) is not None
            or "beside" not in field.metadata
        }
    if isinstance(value, Mapping):
        return {str(key): to_plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(each) for each in value]
    return str(value) if isinstance(value, PurePath) else value


def from_plain(kind: type[Noun], value: Any) -> Noun:
    """The noun that `to_plain` was given; keys that it does not know are left out.

    Raises:
        ValueError: a field is missing, or of another type; names its place, such as `artifacts.0.bytes`.
    """
    found: Noun = _read(kind, value, "")
    return found


def _read(kind: Any, value: Any, at: str) -> Any:
    if get_origin(kind) in (Union, types.UnionType):
        return None if value is None else _read(get_args(kind)[0], value, at)
    if dataclasses.is_dataclass(kind):
        return _noun(kind, value, at)
    if get_origin(kind) is tuple:
        return _row(get_args(kind), value, at)
    if isinstance(get_origin(kind), type) and issubclass(get_origin(kind), Mapping):
        _expect(isinstance(value, Mapping), at)
        return {key: _read(get_args(kind)[1], each, f"{at}.{key}") for key, each in value.items()}
    kind = get_origin(kind) or kind  # an array's type says what its elements are
    return value if kind is Any else _word(kind, value, at)


def _word(kind: Any, value: Any, at: str) -> Any:
    """A number, a text, or whether something is so."""
    if kind is float and value is None:
        return math.nan  # JSON has no word for what was written
    _expect(isinstance(value, WRITTEN_AS.get(kind, (kind,))), at)
    _expect(kind is bool or not isinstance(value, bool), at)  # Python counts True among the integers
    return Path(value) if kind is Path else value


def _row(kinds: tuple[Any, ...], value: Any, at: str) -> tuple[Any, ...]:
    _expect(isinstance(value, list), at)
    every = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
    _expect(len(every) == len(value), at)
    return tuple(_read(kind, each, f"{at}.{i}") for i, (kind, each) in enumerate(zip(every, value, strict=True)))


def _noun(kind: Any, value: Any, at: str) -> Any:
    _expect(isinstance(value, Mapping), at)
    given = {}
    for field in dataclasses.fields(kind):
        if _key(field) in value:
            given[field.name] = _read(_hints(kind)[field.name], value[_key(field)], f"{at}.{_key(field)}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{at}.{_key(field)}".strip("."))
    return kind(**given)


def _key(field: dataclasses.Field[Any]) -> str:
    return str(field.metadata.get("key", field.name))


@cache
def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _expect(holds: bool, at: str) -> None:
    if not holds:
        raise ValueError(at.strip(".") or "the whole")

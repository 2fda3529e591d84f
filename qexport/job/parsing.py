"""Values of options as they come from a command line or a YAML file, brought into their fields' types."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from qexport.data.choice import ALL, parse_count, parse_least
from qexport.errors import UsageError
from qexport.job.units import BOUNDS
from qexport.system.machine import choices
from qexport.targets import ALIASES as TARGET_ALIASES
from qexport.vocabulary import CPU_ALIASES, FORMAT_ALIASES, PRECISION_ALIASES, canonical

PATHS = ("out", "report", "calibration", "plan", "candidate", "timing_cache", "baseline", "summary", "junit")
NAME_LISTS = ("format", "keep_float", "raw_outputs", "option", "optimise", "rule")


def converted(name: str, value: Any, kind: str) -> Any:
    """Bring a value from YAML or the command line into its field's type.

    Args:
        kind: the field's annotation.

    Raises:
        UsageError: it cannot be.
    """
    try:
        if value == "":
            raise ValueError
        if name in BY_NAME:
            return BY_NAME[name](value)
        if name in NAME_LISTS:
            return _names(value)
        if name in PATHS:
            return Path(value)
        if name in BOUNDS:
            return BOUNDS[name].parse(value)
        if kind == "bool":
            return _boolean(value)
        return _number(value, whole=kind.startswith("int")) if kind[:3] in ("int", "flo") else _text(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UsageError(f"--{name.replace('_', '-')} cannot be {value!r}", f"give {_wanted(name, kind)}") from error


def _wanted(name: str, kind: str) -> str:
    if name == "calib_images":
        return f"a whole number, or {ALL}"
    if name == "imgsz":
        return "pixels, such as 640, or height and width, 480,640"
    if name in BOUNDS:
        return BOUNDS[name].wanted
    words = {"float": "a number", "int": "a whole number", "bool": "true or false"}
    return next((word for start, word in words.items() if kind.startswith(start)), "another value")


def _names(value: Any) -> tuple[str, ...]:
    names = value.split(",") if isinstance(value, str) else value
    if not isinstance(names, list | tuple):
        raise ValueError
    return tuple(dict.fromkeys(_text(name).strip() for name in names))


def _formats(value: Any) -> tuple[str, ...]:
    """Names of formats, those of other tools included; what somebody else registered goes before an alias."""
    from qexport.backends.registry import available_formats

    registered = available_formats()
    return tuple(dict.fromkeys(canonical(name, FORMAT_ALIASES, registered) for name in _names(value)))


def _cpu(value: Any) -> str:
    """A kind of CPU, or kinds by format as "onnx=arm,openvino=vnni" or a mapping, in the words that are used here."""
    if isinstance(value, Mapping):
        value = ",".join(f"{_text(name)}={_text(kind)}" for name, kind in value.items())
    kinds = {
        canonical(name, FORMAT_ALIASES) if name else "": canonical(kind, CPU_ALIASES)
        for name, kind in choices(_text(value)).items()
    }
    return ",".join(f"{name}={kind}" if name else kind for name, kind in kinds.items())


def _boolean(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError
    return value


def _number(value: Any, whole: bool) -> float:
    number = float(value)
    if isinstance(value, bool) or (whole and number != int(number)):
        raise ValueError
    return int(number) if whole else number


def _text(value: Any) -> str:
    if isinstance(value, bool | list | dict):
        raise ValueError
    return str(value)


def _image_size(value: Any) -> tuple[int, int]:
    if isinstance(value, str):
        value = value.replace("x", ",").split(",")
    sizes = [int(_number(part, whole=True)) for part in (value if isinstance(value, list | tuple) else [value])]
    if len(sizes) not in (1, 2):
        raise ValueError
    return sizes[0], sizes[-1]


BY_NAME: Mapping[str, Callable[[Any], Any]] = {
    "calib_images": parse_count,
    "min_images": parse_least,
    "imgsz": _image_size,
    "format": _formats,
    "cpu": _cpu,
    "precision": lambda value: canonical(_text(value), PRECISION_ALIASES),
    "target": lambda value: canonical(_text(value), TARGET_ALIASES),
    "device": lambda value: _text(value).lower(),
}
"""Options whose values are more than a number or a word."""

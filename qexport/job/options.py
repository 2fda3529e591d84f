"""From the command line and an optional config file to a job.

Everything that can be refused without looking into a model is refused here, before torch is imported.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from qexport.errors import UsageError
from qexport.job.checks import check_job
from qexport.job.export_job import ExportJob
from qexport.job.parsing import converted
from qexport.system.machine import choices
from qexport.targets import TARGETS, preset
from qexport.vocabulary import closest

__all__ = ["ExportJob", "make_job", "read_config"]

SHORT_FORMS = ("int8", "half")
TYPED = ("trust_checkpoint",)
"""Options that only a command line gives: a file may be a stranger's, who does not say whom the user trusts."""

FIELDS = {field.name: field for field in dataclasses.fields(ExportJob)}


def make_job(options: Mapping[str, Any], config: Path | None = None) -> ExportJob:
    """Merge a config file and the command line, which wins, and check the result.

    Args:
        options: by field name; None means not given.
        config: YAML with the same names, hyphens or underscores.

    Raises:
        UsageError: an unknown name, a value of the wrong kind or out of range, or an impossible combination.
    """
    given = {name: value for name, value in options.items() if value is not None}
    configured = read_config(config) if config else {}
    if any(given.get(name) for name in ("precision", *SHORT_FORMS)):
        configured = {name: value for name, value in configured.items() if name not in ("precision", *SHORT_FORMS)}
    merged = {**configured, **given}
    _check_names(merged, "")
    if merged.get("model") in (None, ""):
        raise UsageError("no model given", "qexport MODEL.pt --format tflite --int8 --data DATA.yaml")
    values = {name: converted(name, value, str(FIELDS[name].type)) for name, value in merged.items()}
    job = ExportJob(**_completed(values))
    check_job(job)
    return job


def _completed(values: dict[str, Any]) -> dict[str, Any]:
    """Add what a target says of what is not given, and the format of ONNX files."""
    from_onnx = str(values["model"]).lower().endswith(".onnx")
    if values.get("target") not in TARGETS:
        return {"format": ("onnx",), **values} if from_onnx else values
    from qexport.backends.registry import formats_from_onnx

    said = preset(values["target"], formats_from_onnx() if from_onnx else None)
    if any(values.get(name) for name in ("precision", *SHORT_FORMS)):
        del said["precision"]
    if "cpu" in values and "" not in choices(values["cpu"]):
        values = {**values, "cpu": f"{said['cpu']},{values['cpu']}"}  # single formats; the others are the target's
    return {**said, **values}


def read_config(path: Path) -> dict[str, Any]:
    """Read a config file into field names.

    Raises:
        UsageError: it cannot be read, is not a mapping, or has an unknown name.
    """
    options = read_mapping(path, "config")
    _check_names(options, f" in {path}")
    check_from_file(options, str(path))
    return {name: value for name, value in options.items() if value is not None}


def check_from_file(names: Iterable[str], place: str) -> None:
    """Raise `UsageError` where a file gives an option that only a command line may."""
    for name in TYPED:
        if name in names:
            option = name.replace("_", "-")
            raise UsageError(f"{place}: {option} is not for files, which may be anybody's", f"type --{option} yourself")


def read_mapping(path: Path, what: str) -> dict[str, Any]:
    """Read a YAML file of names, whose hyphens become underscores, and values.

    Args:
        what: it is, for the message.

    Raises:
        UsageError: it cannot be read, or is not a mapping.
    """
    from qexport.system.yaml_form import read_yaml

    try:
        content = read_yaml(path)
    except (OSError, ValueError) as error:
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise UsageError(f"{what} {path} cannot be read ({reason})", "give a YAML file") from error
    if not isinstance(content, dict):
        raise UsageError(f"{what} {path} is not a mapping of option names to values", "see configs/ for examples")
    return {str(key).replace("-", "_"): value for key, value in content.items()}


def _check_names(options: Mapping[str, Any], place: str) -> None:
    """Raise `UsageError` where an option is none."""
    for name in options:
        if name not in FIELDS:
            near = closest(name, FIELDS)
            hint = f"did you mean {near}" if near else f"known options are {', '.join(FIELDS)}"
            raise UsageError(f"unknown option {name}{place}", hint)

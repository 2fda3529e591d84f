"""A sweep as a file: options with lists of values, of which every combination is one export.

The form is that of a matrix in a workflow of GitHub: lists make a grid, `exclude` takes combinations out, `include`
adds single ones.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qexport.errors import MissingExtraError, QexportError, UnavailableError, UsageError
from qexport.job.export_job import ExportJob
from qexport.job.options import FIELDS, TYPED, check_from_file, make_job, read_mapping
from qexport.job.parsing import converted
from qexport.job.places import check_paths
from qexport.job.value_rules import check_value
from qexport.system.machine import DEFAULT_THREADS
from qexport.vocabulary import closest

PLURALS = {"models": "model", "formats": "format", "precisions": "precision"}
"""What lists of options are called here → the option."""
EXCLUDE, INCLUDE = "exclude", "include"
WRITTEN = ("out", "report", "summary", "junit")
"""Options that say where an export writes, which a sweep decides."""
TELLING = ("data", "eval_data", "no_eval", "no_latency", "jobs")
"""Options that are those of every run as a rule: they are in a name where nothing else tells two runs apart."""
ELSEWHERE = ("model", "format", "precision", "int8", "half", "imgsz", *TELLING)
"""Options that a name has without being told, or not at all."""
MAX_RUNS = 1000
MAX_NAME = 100
"""Bytes of a run's name: its folder has it."""
ALWAYS = 3
"""Words of a run's name that its label has, too: model, format and precision."""
PAGE = "report.html"


@dataclass(frozen=True)
class _Given:
    """A value as the file has it, and in its option's type."""

    written: Any
    value: Any


_Combination = dict[str, _Given]
"""What a run is given, by field name."""


@dataclass(frozen=True)
class SweepRun:
    """One combination.

    Attributes:
        name: of its folder.
        label: the same without what it has in common with all others.
        options: as given, by field name.
        job: the export; None where it cannot be.
        obstacle: why not, in one line; "" where it can.
    """

    name: str
    label: str
    options: Mapping[str, Any]
    job: ExportJob | None = None
    obstacle: str = ""


@dataclass(frozen=True)
class Sweep:
    """A file's runs, and the folder that each has one in."""

    file: Path
    folder: Path
    runs: tuple[SweepRun, ...]


def read_sweep(path: Path, out: Path | None = None, trust: bool = False) -> Sweep:
    """The runs that a file asks for, in its order: the last list varies fastest, and what is included comes last.

    Args:
        out: folder that every run has one in; None for qexport_out/<name of the file>.
        trust: the user trusts all of its checkpoints; the file does not say so.

    Raises:
        UsageError, InputError: one line that names the place in the file.
    """
    content = _named(read_mapping(path, "sweep"), str(path), (EXCLUDE, INCLUDE))
    common, axes = _split(content, path)
    if trust:
        common["trust_checkpoint"] = _Given(True, True)
    grid: list[_Combination] = []
    if "model" in content:
        grid = [{**common, **dict(zip(axes, each, strict=True))} for each in itertools.product(*axes.values())]
    taken_out = [entry for _, entry in _entries(content, EXCLUDE, path)]
    for number, entry in enumerate(taken_out, 1):
        if not any(_matches(each, entry) for each in grid):
            what = f"{path}: {EXCLUDE}, item {number}, is no combination of the lists"
            raise UsageError(what, "check its values, or leave it out")
    grid = [each for each in grid if not any(_matches(each, entry) for entry in taken_out)]
    added = [{**common, **_whole(entry, axes, place)} for place, entry in _entries(content, INCLUDE, path)]
    if not grid and not added:
        what = "names no models" if "model" not in content else "excludes every combination"
        raise UsageError(f"{path}: it {what}", "see configs/sweep.yaml for an example")
    folder = out or Path("qexport_out") / path.stem
    return Sweep(path, folder, _runs([*grid, *added], path, folder))


def _named(content: Mapping[str, Any], place: str, others: Sequence[str] = ()) -> dict[str, Any]:
    """Options by the names of their fields; what has no value is left out."""
    known = (*PLURALS, *(name.replace("_", "-") for name in FIELDS if name not in (*WRITTEN, *TYPED)), *others)
    check_from_file(content, place)
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = PLURALS.get(key, key)
        if name in WRITTEN or name == "config":
            raise UsageError(f"{place}: {key} is not for sweeps", "each run has a folder of its own below --out")
        if name not in FIELDS and name not in others:
            meant = closest(key, known)
            raise UsageError(f"{place}: unknown option {key}", f"did you mean {meant}" if meant else "see qexport -h")
        if name in found:
            raise UsageError(f"{place}: {key} is there twice", f"give one of {name} and {name}s")
        if value is not None:
            found[name] = value
    return found


def _split(content: Mapping[str, Any], path: Path) -> tuple[_Combination, dict[str, list[_Given]]]:
    """What all runs have in common, and the lists, each value once."""
    common: _Combination = {}
    axes: dict[str, list[_Given]] = {}
    for name, value in content.items():
        if name in (EXCLUDE, INCLUDE):
            continue
        place = f"{path}: {_shown(name)}"
        if not isinstance(value, list):
            common[name] = _given(name, value, place)
        elif not value:
            raise UsageError(f"{place} is an empty list", "give values, or leave it out")
        elif len(value) > MAX_RUNS:
            raise UsageError(f"{place} has {len(value):,} values", f"give {MAX_RUNS:,} at most")
        else:
            each = [_given(name, item, f"{place}, item {number}") for number, item in enumerate(value, 1)]
            axes[name] = [one for number, one in enumerate(each) if one.value not in [e.value for e in each[:number]]]
    if (count := math.prod(map(len, axes.values()))) > MAX_RUNS:
        raise UsageError(f"{path}: its lists have {count:,} combinations", f"give {MAX_RUNS:,} at most")
    return common, axes


def _shown(name: str) -> str:
    return next((plural for plural, option in PLURALS.items() if option == name), name.replace("_", "-"))


def _given(name: str, written: Any, place: str) -> _Given:
    """A value of an option.

    Raises:
        UsageError: no job has it.
    """
    try:
        if written is None:
            raise UsageError("there is no value", "give one, or leave the line out")
        value = converted(name, written, str(FIELDS[name].type))
        check_value(name, value)
    except QexportError as error:
        raise UsageError(f"{place}: {error.what}", error.remedy) from error
    return _Given(written, value)


def _entries(content: Mapping[str, Any], key: str, path: Path) -> Iterator[tuple[str, _Combination]]:
    """What is excluded or included, each with its place in the file."""
    entries = content.get(key, [])
    if not isinstance(entries, list) or len(entries) > MAX_RUNS:
        raise UsageError(
            f"{path}: {key} is no list of combinations", f"give {MAX_RUNS:,} at most, each as '- model: …'"
        )
    for number, entry in enumerate(entries, 1):
        place = f"{path}: {key}, item {number}"
        if not isinstance(entry, dict) or not entry:
            raise UsageError(
                f"{place}: it names no options", "write '- format: onnx', and on lines below it the others"
            )
        named = _named({str(name).replace("-", "_"): value for name, value in entry.items()}, place)
        yield place, {name: _given(name, value, f"{place}, {_shown(name)}") for name, value in named.items()}


def _matches(combination: _Combination, entry: _Combination) -> bool:
    return all(name in combination and combination[name].value == wanted.value for name, wanted in entry.items())


def _whole(entry: _Combination, axes: Mapping[str, Any], place: str) -> _Combination:
    """An entry that is a run of its own: it chooses from every list."""
    if lacks := [name for name in axes if name not in entry]:
        what = f"{place}: it does not say which of {_shown(lacks[0])}"
        raise UsageError(what, f"add '{lacks[0].replace('_', '-')}: …'")
    return entry


def _runs(combinations: Sequence[_Combination], path: Path, folder: Path) -> tuple[SweepRun, ...]:
    """A run for each combination, once."""
    made: dict[str, tuple[_Combination, ExportJob | None, str]] = {}
    for each in combinations:
        made.setdefault(_key(each), (each, *_job(each, path, folder)))
    if all(job is None for _, job, _ in made.values()):
        raise UsageError(f"{path}: none of its combinations can be exported", next(iter(made.values()))[2])
    taken: set[str] = set()
    words: dict[str, list[str]] = {}
    for key, (each, _, _) in made.items():
        words[key] = _words({name: given.value for name, given in each.items()}, key, taken)
        taken.add(_file_name(words[key]).casefold())
    common = set.intersection(*map(set, words.values()))
    runs = []
    for key, (each, job, obstacle) in made.items():
        name = _file_name(words[key])
        label = " ".join(word for place, word in enumerate(words[key]) if place < ALWAYS or word not in common)
        placed = replace(job, out=folder / name, report=folder / name / PAGE) if job else None
        runs.append(SweepRun(name, label, {name: given.written for name, given in each.items()}, placed, obstacle))
    return tuple(runs)


def _key(combination: _Combination) -> str:
    values = {name: given.value for name, given in sorted(combination.items())}
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()


def _job(combination: _Combination, path: Path, folder: Path) -> tuple[ExportJob | None, str]:
    """The export of a combination, in the sweep's folder so far; or None, and why there is none."""
    try:
        job = make_job({**{name: given.written for name, given in combination.items()}, "out": folder})
        check_paths(job)
    except (UnavailableError, MissingExtraError) as error:
        return None, str(error)
    except QexportError as error:
        which = " ".join(_words({name: given.value for name, given in combination.items()}, "", ()))
        raise type(error)(f"{path}: {which}: {error.what}", f"{error.remedy}, or {EXCLUDE} it") from error
    return job, ""


def _words(values: Mapping[str, Any], key: str, taken: Container[str]) -> list[str]:
    """What a run is in words: model, formats, precision, size, and what is given that is not usual.

    They depend on nothing but the run itself, so that its name stays when the file gets more values. Where another run
    has the same, its data tell them apart, or the hash `key`.
    """
    short = {"int8": "int8", "half": "fp16"}
    precision = values.get("precision") or next((short[name] for name in short if values.get(name)), "")
    model = Path(str(values["model"]))
    usual = ("onnx",) if model.suffix.lower() == ".onnx" else ExportJob.format
    formats: Sequence[str] = values.get("format") or (() if "target" in values else usual)
    parts = [_model(model), "-".join(formats), precision or values.get("target") or "fp32"]
    if size := values.get("imgsz"):
        parts.append("x".join(map(str, dict.fromkeys(size))))
    default = {**vars(ExportJob(str(model))), "threads": DEFAULT_THREADS}  # names are the same on every machine
    special = [name for name in FIELDS if name in values and values[name] != default[name]]
    parts += [_part(name, values[name]) for name in special if name not in ELSEWHERE]
    words = [word for part in parts if (word := _word(part))]
    apart = [_word(_part(name, values[name])) for name in special if name in TELLING]
    for found in (words, [*words, *apart]):
        name = "_".join(found)
        if name.casefold() not in taken and len(name.encode()) <= MAX_NAME:
            return found
    return [*words, key[:8]]


def _model(path: Path) -> str:
    """What a model is called: a training of Ultralytics leaves runs/detect/train/weights/best.pt."""
    return f"{path.parent.parent.name}-{path.stem}" if path.parent.name == "weights" else path.stem


def _part(name: str, value: Any) -> str:
    name = name.replace("_", "-")
    if isinstance(value, bool):
        return name
    if isinstance(value, Path) or name in ("data", "eval-data"):
        value = Path(value).stem
    return f"{name}-{'+'.join(value) if isinstance(value, tuple) else value}"


def _file_name(words: Sequence[str]) -> str:
    """Words as the name of a folder; of too many the last one, which is a hash, and as many as there is room for."""
    name = "_".join(words)
    if len(name.encode()) <= MAX_NAME:
        return name
    return f"{name.encode()[: MAX_NAME - 1 - len(words[-1])].decode(errors='ignore')}_{words[-1]}"


def _word(text: str) -> str:
    """Text that every system takes in a name of a file."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-.")

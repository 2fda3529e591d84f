"""A program's text: the parts of its language as they stand in `templates/`, behind what is only this file's."""

from __future__ import annotations

import re
import shlex
from importlib.resources import files
from itertools import takewhile
from pathlib import Path

from qexport.detections.matching import CONFIDENCE
from qexport.detections.numpy_decode import MAX_CANDIDATES
from qexport.errors import InputError, UsageError
from qexport.snippets.facts import Facts
from qexport.snippets.languages import IMAGE, LANGUAGES, Language
from qexport.snippets.literals import Value
from qexport.tasks import SCORING

IOU = 0.7
"""Overlap from which of two boxes of a class the worse one goes, as `qexport.decode` has it."""


def program_of(facts: Facts, language: str, image: str = IMAGE) -> str:
    """A complete program, in ASCII, that runs the artifact on an image without qexport, torch or Ultralytics.

    Args:
        language: a key of `LANGUAGES`.
        image: the one that it looks at where it is given none.

    Raises:
        UsageError: the language has no runtime for the format or no decode for the task.
    """
    known = LANGUAGES[language]
    _check_known(facts, known, language)
    first, *others = (_part(known, name) for name in known.parts(facts))
    body = "\n\n".join(others)
    constants = [
        known.notation.declared(name, value, meaning)
        for name, (value, meaning) in _constants(facts, image).items()
        if re.search(rf"\b{name}\b", body)
    ]
    return f"{first}\n{''.join(constants)}\n\n{body}"


def instructions(facts: Facts, language: str, program: Path) -> tuple[str, ...]:
    """What the program says itself about how it is run, in lines with the name that it was given.

    It stands in its first part, behind the first empty line and up to the next.
    """
    known = LANGUAGES[language]
    head = _part(known, known.parts(facts)[0]).splitlines()
    lines = [line.removeprefix("//").removeprefix(" ").rstrip() for line in head]
    rest = lines[lines.index("") + 1 :]
    paragraph = takewhile(lambda line: line not in ("", '"""'), rest)
    return tuple(re.sub(r"THIS_FILE(\.\w+)?", lambda _: shlex.quote(str(program)), line.strip()) for line in paragraph)


def _part(language: Language, name: str) -> str:
    folder = files(__package__) / "templates" / language.folder
    return (folder / f"{name}.txt").read_text(encoding="ascii")


def _check_known(facts: Facts, known: Language, language: str) -> None:
    """Refuse what a language has no parts for."""
    if facts.format not in known.formats:
        able = ", ".join(name for name, other in LANGUAGES.items() if facts.format in other.formats)
        what = f"--lang {language} has no program for format {facts.format}"
        if not able:
            raise InputError(f"there is no program for format {facts.format}", "its package says how to run its files")
        raise UsageError(what, f"give --lang {able}")
    if facts.task not in known.tasks:
        raise UsageError(f"--lang {language} has no program for {SCORING[facts.task].title}", "give --lang python")
    if facts.integers and not known.integers:
        raise UsageError(f"--lang {language} does not decode integer-only files", "give --lang python, or an int8 file")


def _source(facts: Facts) -> str:
    """Where the file's thresholds are from: a report has others of its own."""
    if facts.threshold == CONFIDENCE and not facts.class_thresholds:
        return ""
    return f" where FP32 counts from {CONFIDENCE}, by calibration images; a report's is by evaluation images"


def _constants(facts: Facts, image: str) -> dict[str, tuple[Value, str]]:
    """Name → value and meaning of everything that the parts may use."""
    layout = facts.layout
    extra = {"": 0, "angles": 1, "keypoints": layout.shape[0] * layout.shape[1]}.get(layout.extras)
    return {
        "MODEL": (facts.model, "Where the model is."),
        "IMAGE": (image, "What it looks at where nothing else is given."),
        "HEIGHT": (layout.imgsz[0], "Pixels of the model's input."),
        "WIDTH": (layout.imgsz[1], "Pixels of the model's input."),
        "BATCH": (facts.batch, "Images in one run: this program gives the same one to each place."),
        "NAMES": (facts.names, "The classes, by number."),
        "THRESHOLD": (facts.threshold, f"The score from which a detection counts{_source(facts)}."),
        "CLASS_THRESHOLDS": (facts.class_thresholds, "Those of classes that have another one, by number."),
        "IOU": (IOU, "Overlap from which of two boxes of a class the worse one goes."),
        "MAX_DETECTIONS": (layout.max_detections, "Detections in an image at most."),
        "MAX_CANDIDATES": (MAX_CANDIDATES, "Boxes that are looked at for overlaps, best first."),
        "UNIT_X": (facts.unit[0], "Pixels that a coordinate of 1 stands for in the model's output."),
        "UNIT_Y": (facts.unit[1], "Pixels that a coordinate of 1 stands for in the model's output."),
        "EXTRA": (extra, "Numbers of a box behind its scores, where that is known."),
        "EXACT": (facts.exact, "Floats in FP32; where False, in BF16 or FP16 on CPUs that have it, which is faster."),
        "STRIDES": (layout.strides, "Pixels in a cell of each level."),
        "REG_MAX": (layout.reg_max, "Bins of the distribution of a distance."),
        "DIRECT": (layout.direct, "Whether angles and offsets of keypoints need no further arithmetic."),
        "KEYPOINTS": (layout.shape, "How many keypoints, and values of each."),
    }

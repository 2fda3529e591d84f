"""The languages: how each writes constants, and which parts a program for an artifact is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qexport.snippets.literals import Notation, Value, octal_text, python_text, utf16_text

if TYPE_CHECKING:
    from qexport.snippets.facts import Facts

IMAGE = "image.jpg"
"""What a program looks at where nobody says."""

EXTRAS = {"": "extras_none", "coefficients": "extras_coefficients", "angles": "extras_angles"}


@dataclass(frozen=True)
class Language:
    """How programs in a language are put together.

    Attributes:
        folder: of its parts, in `templates/`.
        formats: those that it has a runtime for.
        tasks: those that it has a decode for.
        integers: whether it decodes the raw outputs of integer-only files.
        parts: names of the parts of a program, in order; the constants come behind the first.
    """

    folder: str
    notation: Notation
    formats: frozenset[str]
    tasks: frozenset[str]
    integers: bool
    parts: Callable[[Facts], tuple[str, ...]]


def _python_parts(facts: Facts) -> tuple[str, ...]:
    """Input, runtime, decode and drawing, each by what the file is."""
    run = "run_integers" if facts.integers else f"run_{facts.format}{'_nhwc' if facts.channels_last else ''}"
    ends = "read_arguments", f"main_{facts.task}", "end"
    if facts.layout.classifier:
        raw: tuple[str, ...] = ("raw_classify",) if facts.integers else ()
        return f"about_{facts.format}", "centre_crop", run, *raw, "label", *ends
    rotated = facts.layout.extras == "angles"
    suppression = "nms_rotated" if rotated else "nms"
    decode = ("rows",) if facts.layout.end2end else ("columns", suppression)
    image = "resized", "letterbox", *(["interpolated"] if facts.task == "segment" else [])
    raw = _raw_parts(facts) if facts.integers else ()
    return f"about_{facts.format}", *image, run, *raw, "least_scores", *decode, "label", "labelled", *ends


def _raw_parts(facts: Facts) -> tuple[str, ...]:
    """What makes of raw outputs what the float file gives."""
    rows, rotated = facts.layout.end2end, facts.layout.extras == "angles"
    boxes = "raw_boxes_rotated" if rotated else "raw_corners" if rows else "raw_centres"
    extras = EXTRAS.get(facts.layout.extras, "extras_keypoints")
    return "raw", boxes, "raw_rows" if rows else "raw_columns", extras


def _other_parts(facts: Facts) -> tuple[str, ...]:
    """Of a language that only detection is written in, and that is compiled."""
    order = "nhwc" if facts.channels_last else "nchw"
    return f"about_{facts.format}", order, "letterbox", f"run_{facts.format}", _decode(facts), "main"


def _script_parts(facts: Facts) -> tuple[str, ...]:
    """Of a language that only detection in ONNX files is written in."""
    return f"about_{facts.format}", "letterbox", f"run_{facts.format}", _decode(facts), "main"


def _decode(facts: Facts) -> str:
    return "rows" if facts.layout.end2end else "columns"


def _of_cpp(name: str, value: Value, literal: str) -> str:
    kinds: dict[type, str] = {int: "constexpr int", float: "constexpr float", str: "const std::string"}
    if isinstance(value, tuple):
        return f"const std::vector<std::string> {name} = {literal};"
    return f"{kinds.get(type(value), 'const std::map<int, float>')} {name} = {literal};"


def _of_kotlin(name: str, value: Value, literal: str) -> str:
    return f"private {'const ' if isinstance(value, int | float | str) else ''}val {name} = {literal}"


PYTHON = Notation(
    text=python_text,
    real=repr,
    constant=lambda name, _, literal: f"{name} = {literal}",
    sequence=lambda items: f"[{items}]",
    mapping=lambda items: "{" + ", ".join(f"{key}: {value}" for key, value in items.items()) + "}",
    comment="#",
    words={None: "None", True: "True", False: "False"},
)
JAVASCRIPT = Notation(
    text=utf16_text,
    real=repr,
    constant=lambda name, _, literal: f"const {name} = {literal};",
    sequence=lambda items: f"[{items}]",
    mapping=lambda items: "{" + ", ".join(f"{key}: {value}" for key, value in items.items()) + "}",
    comment="//",
    words={None: "null", True: "true", False: "false"},
)
CPP = Notation(
    text=octal_text,
    real=lambda number: f"{number!r}f",
    constant=_of_cpp,
    sequence=lambda items: "{" + items + "}",
    mapping=lambda items: "{" + ", ".join(f"{{{key}, {value}}}" for key, value in items.items()) + "}",
    comment="//",
    words={True: "true", False: "false"},
)
KOTLIN = Notation(
    text=utf16_text,
    real=lambda number: f"{number!r}f",
    constant=_of_kotlin,
    sequence=lambda items: f"listOf({items})",
    mapping=lambda items: "mapOf<Int, Float>(" + ", ".join(f"{key} to {value}" for key, value in items.items()) + ")",
    comment="//",
    words={True: "true", False: "false"},
)

TASKS = frozenset({"detect", "segment", "pose", "obb", "classify"})
DETECTION = frozenset({"detect"})

LANGUAGES: Mapping[str, Language] = {
    "python": Language("python", PYTHON, frozenset({"onnx", "openvino", "tflite"}), TASKS, True, _python_parts),
    "js": Language("js", JAVASCRIPT, frozenset({"onnx"}), DETECTION, False, _script_parts),
    "cpp": Language("cpp", CPP, frozenset({"onnx", "tflite"}), DETECTION, False, _other_parts),
    "kotlin": Language("kotlin", KOTLIN, frozenset({"tflite"}), DETECTION, False, _other_parts),
}
"""By the name that `--lang` has for it."""

LANGUAGE_ALIASES = {
    "python": ("py", "python3"),
    "js": ("javascript", "mjs", "node", "nodejs"),
    "cpp": ("c++", "cxx", "cc"),
    "kotlin": ("kt", "android"),
}

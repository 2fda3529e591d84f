"""Accepted spellings of formats, precisions and CPUs, and how choices are said."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping, Sequence

from qexport.errors import UsageError
from qexport.system.machine import ARM, AVX2, VNNI

FORMAT_ALIASES = {
    "tflite": ("litert", "tf-lite", "tensorflow-lite", "tensorflowlite"),
    "edgetpu": ("edge-tpu", "coral", "tensorflow-edge-tpu"),
    "onnx": ("ort", "onnxruntime", "onnx-runtime"),
    "openvino": ("ov", "openvino-ir"),
    "tensorrt": ("engine", "trt", "tensor-rt"),
}
"""Format → other names of it: of Ultralytics' `format=`, of runtimes and packages, and short ones."""

OTHER_FORMATS = (
    *("torchscript", "coreml", "coreai", "saved-model", "pb", "tfjs", "paddle", "mnn", "ncnn", "imx", "rknn"),
    *("executorch", "axelera", "deepx", "qnn", "hailo", "ascend", "xilinx"),
)
"""Formats of Ultralytics' export (8.4) that have no backend here."""

PRECISIONS = ("fp32", "fp16", "int8", "int8-dynamic", "int8-full", "w8a16")
"""What formats are asked for; one of another package may have more."""

IO_TYPES = ("int8", "uint8")
"""Of what goes in and out of integer-only files."""

LAYOUTS = ("nchw", "nhwc")
"""Order of an image's axes."""

PRECISION_ALIASES = {
    "fp32": ("float32", "f32", "float", "single", "32"),
    "fp16": ("float16", "f16", "half", "16"),
    "int8": ("i8", "8", "w8a8"),
    "int8-dynamic": ("dynamic", "int8-dyn", "dynamic-int8", "dynamic-range", "weights-only", "int8-weights", "w8"),
    "int8-full": ("int8full", "full-int8", "full-integer", "int8-only", "integer"),
    "w8a16": ("int16x8", "16x8", "int8-int16", "a16w8"),
}

CPU_ALIASES = {
    "auto": ("native", "host", "this"),
    VNNI: ("avx512-vnni", "avx512vnni", "avx-vnni", "avxvnni", "amx"),
    AVX2: ("avx-2",),
    ARM: ("arm64", "aarch64", "armv8", "neon"),
}


NEAR = 0.6
"""How like a name a word has to be so that the name is suggested."""


def listed(words: Sequence[str]) -> str:
    """A, B and C."""
    return " and ".join(", ".join(words).rsplit(", ", 1))


def alternatives(words: Sequence[str]) -> str:
    """A, B or C."""
    return " or ".join(", ".join(words).rsplit(", ", 1))


def plain(word: str) -> str:
    """A word in its plain spelling: "TF Lite", ".tf_lite" and "tf-lite" are one."""
    return re.sub(r"[\s_.-]+", "-", word.strip().casefold()).strip("-")


def canonical(word: str, aliases: Mapping[str, Iterable[str]], names: Iterable[str] = ()) -> str:
    """The name that a word stands for; an unknown word as it is.

    Args:
        names: further names that are right as they are.
    """
    if word in (*names, *aliases):
        return word
    known = {plain(name): name for name in (*aliases, *names)}
    known |= {alias: name for name, others in aliases.items() for alias in others}
    return known.get(plain(word), word)


def unknown(
    option: str, word: str, names: Sequence[str], aliases: Mapping[str, Iterable[str]] | None = None
) -> UsageError:
    """What is said of a word that an option does not have, with the one that was probably meant.

    Args:
        option: as it is given: "--effort fastt", or "--cpu onnx=armm".
    """
    return UsageError(f"{option} is out of range", f"give {alternatives(names)}{guess(word, names, aliases)}")


def guess(word: str, names: Sequence[str], aliases: Mapping[str, Iterable[str]] | None = None) -> str:
    """What goes behind a list of alternatives: "; did you mean int8", "" if none is near."""
    meant = closest(word, names, aliases)
    return f"; did you mean {meant}" if meant else ""


def closest(
    word: str, names: Iterable[str], aliases: Mapping[str, Iterable[str]] | None = None, least: float = NEAR
) -> str:
    """The name that was probably meant, "" if none is near; of names that are as near, the one that comes first.

    Args:
        least: how near it has to be, 0..1 (`difflib.SequenceMatcher`); an ending that both have, ".yaml" say, does
            not count.
    """
    names = tuple(names)
    spellings = [(name, name) for name in names]
    spellings += [(alias, name) for name, others in (aliases or {}).items() if name in names for alias in others]
    best, found = least, ""
    for spelling, name in spellings:
        likeness = _likeness(word, spelling, best)
        if likeness > best or (likeness == best and not found):
            best, found = likeness, name
    return found


def _likeness(word: str, spelling: str, least: float) -> float:
    """How alike two words are, 0..1; 0 where it is surely less than `least`."""
    suffix = os.path.splitext(word)[1]
    if suffix == os.path.splitext(spelling)[1]:
        word, spelling = word.removesuffix(suffix), spelling.removesuffix(suffix)
    matcher = difflib.SequenceMatcher(None, plain(spelling), plain(word))
    near = matcher.real_quick_ratio() >= least and matcher.quick_ratio() >= least
    return matcher.ratio() if near else 0.0

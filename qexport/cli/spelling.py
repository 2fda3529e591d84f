"""Ultralytics' way to write a command, `export model=yolo26n.pt format=tflite int8=True`, in the words of this one.

Its arguments: `ultralytics/cfg/default.yaml` and the tables of `ultralytics/engine/exporter.py`, release 8.4.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from qexport.cli.completion import MODELS
from qexport.errors import UsageError
from qexport.vocabulary import alternatives, closest

EXPORT = "export"
ON, OFF = ("true", "1"), ("false", "0", "0.0", "none")
KEY = re.compile(r"[A-Za-z]\w*(?:-\w+)*=?")
PAIR = re.compile(r"([A-Za-z]\w*(?:-\w+)*)=(.*)", re.DOTALL)
QUANTIZE = {
    "fp32": ("32", "fp32", "w32a32"),
    "fp16": ("16", "fp16", "w16a16"),
    "int8": ("8", "int8", "w8a8"),
    "w8a16": ("w8a16",),
    "int8-dynamic": ("w8a32",),
}
"""Precision → values of `quantize=` that mean it."""
BARE = ("int8", "half", "nms", "dynamic")
"""What `yolo` takes without a value, too."""
NEEDLESS = {
    "task": "the model says it",
    "simplify": "each format has the graph that suits its runtime",
    "optimize": "--effort says how much is done",
    "verbose": "--quiet prints errors only",
    "workers": "--threads is what artifacts are measured with",
    "keras": "TFLite files are written without Keras",
    "exist_ok": "a folder takes as many runs of one model as you like",
}
"""What changes nothing here, and why: it is said, and the run goes on."""
OF_OTHERS = frozenset(
    (
        *("time", "patience", "save", "save_period", "cache", "pretrained", "cls_remap", "optimizer", "seed"),
        *("deterministic", "single_cls", "rect", "cos_lr", "close_mosaic", "resume", "amp", "profile", "freeze"),
        *("multi_scale", "compile", "channels_last", "overlap_mask", "mask_ratio", "dropout", "val", "save_json"),
        *("dnn", "plots", "vid_stride", "stream_buffer", "visualize", "augment", "classes", "retina_masks"),
        *("embed", "show", "save_frames", "save_txt", "save_conf", "save_crop", "show_labels", "show_conf"),
        *("show_boxes", "line_width", "lr0", "lrf", "momentum", "weight_decay", "warmup_epochs"),
        *("warmup_momentum", "warmup_bias_lr", "distill_model", "dis", "box", "cls", "cls_pw", "dfl", "pose"),
        *("kobj", "rle", "angle", "dlog", "dgrad", "dlam", "nbs", "hsv_h", "hsv_s", "hsv_v", "degrees"),
        *("translate", "scale", "shear", "perspective", "flipud", "fliplr", "mosaic", "mixup", "cutmix"),
        *("copy_paste", "copy_paste_mode", "auto_augment", "erasing", "tracker"),
    )
)
"""What Ultralytics' export takes and does not read: it is said, and an export goes on."""
INSTEAD = {
    "project": "give --out FOLDER",
    "name": "give --out FOLDER, or --target DEVICE",
    "save_dir": "give --out FOLDER",
    "cfg": "give --config FILE, with names of options as qexport has them",
    "split": "give --eval-data, a YAML whose val split is that one",
    "conf": "leave it out, and compare scores with a threshold when you read the outputs",
    "iou": "leave it out: --nms takes away what overlaps by more than 0.7",
    "max_det": "leave it out: there are 300 rows",
    "agnostic_nms": "leave it out: --nms is by class",
    "epochs": "qexport qat trains",
    "source": "qexport exports: run the artifact with YOLO(file), or with its runtime",
}
"""What would change the result, and what to do instead."""


@dataclass(frozen=True)
class Spelled:
    """A command line in the words of this one.

    Attributes:
        words: all of it.
        notes: what was left out, and why, in one line each.
    """

    words: tuple[str, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Vocabulary:
    """What a verb takes.

    Attributes:
        flags, values: long names of its flags and of its options with a value, without hyphens in front.
        before_value: what a value stands behind, as it is typed: "--format", "-f".
        mode: what `mode=` may say.
    """

    flags: frozenset[str]
    values: frozenset[str]
    before_value: frozenset[str] = frozenset()
    mode: str = EXPORT

    @property
    def meanings(self) -> Mapping[str, Callable[[str], list[str]]]:
        """Keys that are no options of this verb, and what their values become."""
        own: dict[str, Callable[[str], list[str]]] = {
            "model": lambda value: [f"./{value}" if value.startswith("-") else value],
            "mode": self._mode,
            "quantize": self._quantize,
            "end2end": lambda value: ["--head", "end2end" if _is_on("end2end", value) else "one2many"],
        }
        precisions = {"int8": _precision("int8"), "half": _precision("fp16")}
        return own | {name: become for name, become in precisions.items() if name not in self.flags}

    @property
    def names(self) -> tuple[str, ...]:
        """Every key that means something."""
        known = (*self.meanings, *self.flags, *self.values, *NEEDLESS, *INSTEAD)
        return tuple(name.replace("-", "_") for name in known)

    def knows(self, key: str) -> bool:
        """Whether a key means something, or nothing that would be missed."""
        return key.replace("-", "_") in self.names or bool(self.needless(key))

    def needless(self, key: str) -> str:
        """Why a key changes nothing; "" where it does."""
        if key.replace("_", "-") in self.flags | self.values:
            return ""
        other = self.mode == EXPORT and key in OF_OTHERS
        return NEEDLESS.get(key, "an export does not read it" if other else "")

    def spelled(self, key: str, value: str) -> list[str]:
        """A key that is known, and its value, as words of this command line.

        Raises:
            UsageError: the value is none, or what is asked for is had by something else.
        """
        option = key.replace("_", "-")
        if not value:
            raise UsageError(f"{key}= has no value", "give one, or leave it out")
        if become := self.meanings.get(key):
            return become(value) if value.lower() != "none" else []
        if option in self.flags:
            return [f"--{option}"] if _is_on(key, value) else []
        if option not in self.values:
            if value.lower() not in OFF and key in INSTEAD:
                raise UsageError(f"{key}={value} has no meaning here", INSTEAD[key])
            return []
        value = ",".join(re.findall(r"[^\[\]()\s,]+", value)) if key == "imgsz" else value
        if value.lower() == "none":
            return []
        return [f"--{option}={value}"] if value.startswith("-") else [f"--{option}", value]

    def _mode(self, value: str) -> list[str]:
        if value != self.mode:
            raise UsageError(f"mode={value} is none of qexport's", "see qexport --help: it exports, and qat trains")
        return []

    def _quantize(self, value: str) -> list[str]:
        found = next((name for name, values in QUANTIZE.items() if value.lower() in values), "")
        if not found:
            known = [each for values in QUANTIZE.values() for each in values]
            raise UsageError(f"quantize={value} is out of range", f"give {alternatives(known)}")
        short = {"int8": "int8", "fp16": "half"}.get(found, "")
        return [f"--{short}"] if short in self.flags else ["--precision", found]


def _precision(name: str) -> Callable[[str], list[str]]:
    return lambda value: ["--precision", name] if _is_on(name, value) else []


def _is_on(key: str, value: str) -> bool:
    if value.lower() not in (*ON, *OFF):
        raise UsageError(f"{key} cannot be {value!r}", "give True or False")
    return value.lower() in ON


def known_to(app: typer.Typer, verb: str) -> Vocabulary:
    """What a verb of an app takes; "" for an app that is one command."""
    command: Any = typer.main.get_command(app)
    options = [each for each in (command.commands[verb] if verb else command).params if each.opts[0].startswith("-")]
    flags = {name for each in options if each.is_flag for name in each.opts}
    others = {name for each in options if not each.is_flag for name in each.opts}
    return Vocabulary(_long(flags), _long(others), frozenset(others), "train" if verb == "qat" else EXPORT)


def _long(names: Iterable[str]) -> frozenset[str]:
    return frozenset(name[2:] for name in names if name.startswith("--"))


def is_pair(word: str) -> bool:
    """Whether a word is `key=value`, and no file of that name."""
    return bool(PAIR.fullmatch(word)) and not os.path.exists(word)


def spell(words: Sequence[str], known: Vocabulary, verb: Sequence[str] = ()) -> Spelled:
    """Put what is written as `key=value` into words of this command line; all else stays as it is.

    Args:
        words: behind the verb.
        verb: for messages: `["qat"]`, nothing for an export.

    Raises:
        UsageError: a key that nobody knows, with the line that was probably meant.
    """
    found: list[str] = []
    notes: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if word == "--":
            found += [word, *rest]
            break
        pair = PAIR.fullmatch(word) if is_pair(word) else None
        if pair is None:
            found += [f"--{word}"] if word in BARE and word in known.flags and not os.path.exists(word) else [word]
            found += [rest.pop(0)] if rest and word in known.before_value else []
            continue
        key, value = pair[1], pair[2].strip().rstrip(",").strip("\"'")
        if not known.knows(key):
            raise _unknown(key, value, found, rest, known, verb)
        if (why := known.needless(key)) and value.lower() not in OFF:
            notes.append(f"{key}={value} is not needed: {why}")
        place = 0 if key == "model" else len(found)
        found[place:place] = known.spelled(key, value)
    return Spelled(tuple(found), tuple(notes))


def join_pairs(words: Sequence[str]) -> list[str]:
    """Join what a shell has parted, as `yolo` does: `format = onnx`, and `imgsz=[480,` before `640]`."""
    joined: list[str] = []
    rest = list(words)
    while rest and rest[0] != "--":
        word = rest.pop(0)
        last = joined[-1] if joined else ""
        if is_pair(last) and last.count("[") > last.count("]"):
            joined[-1] += word if last.endswith(",") else f",{word}"
        elif KEY.fullmatch(last) and not os.path.exists(last) and _goes_on(last, word):
            joined[-1] += word
        else:
            joined.append(word)
    return joined + rest


def join_sizes(words: list[str]) -> list[str]:
    """Let `--imgsz 480 640` mean what it means to `yolo`: click options take one word each."""
    joined: list[str] = []
    for word in words:
        if word.isdigit() and len(joined) > 1 and joined[-2] == "--imgsz" and joined[-1].isdigit():
            joined[-1] += f",{word}"
        else:
            joined.append(word)
    return joined


def _goes_on(key: str, word: str) -> bool:
    """Whether a word is a sign of equality, with a value or without, or the value behind one."""
    return (word[:1] == "=") != key.endswith("=") and not (word[:1] == "-" or is_pair(word))


def _unknown(
    key: str, value: str, before: list[str], rest: list[str], known: Vocabulary, verb: Sequence[str]
) -> UsageError:
    """What is said of a key that is none: the one that was probably meant, and the line to type."""
    what = f"{key}={value} is neither a file nor an option"
    names = ("model",) if value.endswith(MODELS) else known.names
    near = closest(key, names)
    if not near:
        return UsageError(what, f"see {shlex.join(['qexport', *verb, '--help'])}")
    try:
        line = spell([*before, f"{near}={value}", *rest], known, verb)
    except UsageError:
        return UsageError(what, f"did you mean {near}={value}")
    return UsageError(what, f"did you mean {near}={value}, which is {shlex.join(['qexport', *verb, *line.words])}")

"""What a shell completes: verbs, options, the words that an option has, models. typer makes the scripts for shells."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from qexport.cli.help import VERBS
from qexport.optimisation.effort import EFFORTS
from qexport.optimisation.registry import PASSES
from qexport.planning.registry import RANGES
from qexport.plugins import BACKENDS, names
from qexport.programs.options import HEADS
from qexport.system.machine import KINDS
from qexport.targets import TARGETS
from qexport.tasks import SCORING
from qexport.training.recipe import WEIGHTS
from qexport.vocabulary import IO_TYPES, LAYOUTS, PRECISIONS

VARIABLE = "_QEXPORT_COMPLETE"
"""Set by the shell's script where it asks what a word may become."""
MODELS = (".pt", ".onnx")
PLAIN = re.compile(r"(?!-)[\w.+,@/-]+")
"""Paths that every shell takes as they stand: what bash is told becomes part of the line unquoted, zsh evaluates it."""


def among(names: Iterable[str]) -> Callable[[str], list[str]]:
    """Complete one of the words, or the last one of several behind commas."""
    known = tuple(names)

    def completed(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [f"{before}{comma}{name}" for name in known if name.startswith(last)]

    return completed


WORDS: Mapping[str, Callable[[str], list[str]]] = {
    "--format": among(names(BACKENDS)),
    "--precision": among(PRECISIONS),
    "--target": among(TARGETS),
    "--head": among(HEADS),
    "--effort": among(EFFORTS),
    "--optimise": among(PASSES.own),
    "--ranges": among(RANGES.own),
    "--io": among(IO_TYPES),
    "--layout": among(LAYOUTS),
    "--cpu": among(KINDS),
    "--weights": among(WEIGHTS),
    "--task": among(SCORING),
}
"""Option of any verb → what completes its value; of all others files do."""


def verb_or_model(incomplete: str) -> list[str]:
    """Complete the first word: a verb, a checkpoint, an ONNX file, or a folder on the way to one."""
    verbs = [verb for verb in ("export", *VERBS, "help", "list") if verb.startswith(incomplete)]
    return [*verbs, *model_path(incomplete)]


def model_path(incomplete: str) -> list[str]:
    """Complete the path of a checkpoint or an ONNX file, of names that need no quotes."""
    folder, _, start = incomplete.rpartition("/")
    place = Path(f"{folder}/" if folder or incomplete.startswith("/") else ".")
    try:
        entries = sorted(place.iterdir())
    except OSError:
        return []
    before = incomplete[: len(incomplete) - len(start)]
    shown = (each for each in entries if each.name.startswith(start) and (start or not each.name.startswith(".")))
    paths = (
        f"{before}{each.name}{'/' if each.is_dir() else ''}" for each in shown if each.is_dir() or each.suffix in MODELS
    )
    return [path for path in paths if PLAIN.fullmatch(path)]


def typed_verb() -> str:
    """The first word behind the command on the line that a shell asks about, "" while it is being typed."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS", "")
    words = line.split()
    whole = int(os.environ.get("COMP_CWORD", "0")) > 1 or len(words) > 2 or line.endswith(" ")
    return words[1] if whole and len(words) > 1 else ""

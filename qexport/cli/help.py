"""What `--help` shows beside the options: panels, examples, verbs and exit codes, for a terminal of 80 columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typer.core import TyperCommand

OTHER = "Other"
"""Panel of options that are in none, where a verb has panels."""
PLACEHOLDERS = {"<str>": "TEXT", "<int>": "N", "<float>": "X", "<path>": "PATH", "<bool>": ""}
"""What stands behind an option for its value, in place of a type of Python; nothing for what takes none."""
NAMED = {
    "format_": "LIST",
    "data": "DATA",
    "eval_data": "DATA",
    "imgsz": "SIZE",
    "calib_images": "N",
    "min_images": "N",
    "max_drop": "PERCENT",
    "tune": "latency",
    "tune_seconds": "S",
    "min_retention": "SHARE",
    "min_fidelity": "SHARE",
    "min_speedup": "X",
    "max_latency_ms": "MS",
    "max_size": "SIZE",
}
"""The same of single options whose values are read later."""
ARGUMENTS = {"a": "ONE", "b": "OTHER"}
"""What stands for words that are given by their place, where it is not their name."""


class Command(TyperCommand):
    """A verb whose help says what an option takes in people's words, and has no option outside of its panels."""

    def get_params(self, ctx: Any) -> Any:
        """Its options, as they are shown and parsed."""
        options: Any = super().get_params(ctx)
        panels = any(getattr(each, "rich_help_panel", None) for each in options)
        for each in options:
            if each.param_type_name == "option":
                if each.metavar is None:
                    each.metavar = NAMED.get(each.name) or PLACEHOLDERS.get(each.display_type(ctx))
                each.rich_help_panel = each.rich_help_panel or (OTHER if panels else None)
            elif each.metavar is None:
                each.metavar = ARGUMENTS.get(each.name, each.name.upper())
        return options


def _rows(title: str, texts: Mapping[Any, str]) -> str:
    """A title, and a line for each name with its text."""
    width = max(len(str(name)) for name in texts)
    return "\n".join([f"[bold]{title}[/bold]", *(f"  {name!s:{width}}  {text}" for name, text in texts.items())])


def _examples(*lines: str) -> str:
    """Lines to type."""
    return "\n".join(["[bold]Examples[/bold]", *(f"  {line}" for line in lines)])


def _epilog(*parts: str) -> str:
    return "\n\n".join(parts)


VERBS = {
    "demo": "run it all offline, on a small model that comes with qexport",
    "cache": "what runs leave for later ones, and how to remove it",
    "doctor": "what this machine can do, what is missing, what INT8 is worth",
    "formats": "formats, what is installed for them, and what plug-ins bring",
    "qat": "train with the rounding in place",
    "sensitivity": "measure what each layer costs",
    "snippet": "print a program that runs a file without qexport",
    "sweep": "export every combination of models, formats and options",
    "verify": "check a file against its report",
    "diff": "compare two files, or two reports",
    "report": "render a report.json as a page",
}
"""Every verb but export, and what it does."""
CODES = {
    0: "done",
    1: "failed",
    2: "usage",
    3: "model or data",
    4: "package missing",
    5: "conversion",
    6: "verification",
    7: "written, but not measured",
    8: "engine not built (TensorRT, Edge TPU)",
    9: "a figure breaks a rule of the gate or is worse than the baseline's,",
    "": "or --strict found outputs far from FP32's",
    124: "not finished in --timeout",
    130: "interrupted",
}
EXPORT = _epilog(
    _examples(
        "qexport yolo26n.pt",
        "qexport yolo26n.pt --int8 --data coco8.yaml",
        "qexport best.pt --format onnx,openvino --int8 --data mine.yaml --max-drop 1",
        "qexport export model=yolo26n.pt format=tflite int8=True data=coco8.yaml",
    ),
    _rows("Verbs: qexport VERB --help", VERBS),
    _rows("Exit codes", CODES),
    "Where one of several formats fails, the rest is written; the code is its.",
)
QAT = _epilog(
    _examples(
        "qexport qat yolo26n.pt --data coco128.yaml --format tflite,onnx",
        "qexport qat yolo26n.pt --data mine.yaml --labels --epochs 20",
        "qexport qat yolo26n.pt --data mine.yaml --labels --epochs 20 --resume",
        "qexport yolo26n_qat.pt --format tflite,onnx --int8 --data coco128.yaml",
    ),
    "Without --labels any images will do: the FP32 model teaches.",
    _rows(
        "Exit codes",
        {
            0: "done",
            2: "usage",
            3: "model or data",
            124: "not finished in --timeout: --resume goes on behind the last epoch",
            130: "interrupted: what was learned until then is written",
        },
    ),
)
SENSITIVITY = _epilog(
    _examples(
        "qexport sensitivity yolo26n.pt --data coco8.yaml --format onnx",
        "qexport sensitivity yolo26n.pt --data coco8.yaml --quick --out page.html",
    ),
    _rows("Exit codes", {0: "done", 2: "usage", 3: "model or data", 124: "not finished in --timeout"}),
)
SNIPPET = _epilog(
    _examples(
        "qexport snippet qexport_out/yolo26n/yolo26n_int8.onnx --out run.py",
        "qexport snippet m_int8.tflite --lang kotlin",
    ),
    _rows(
        "Exit codes",
        {
            0: "done",
            2: "usage",
            3: "the file cannot be read, or there is no program for it",
            4: "the package that reads it is missing",
        },
    ),
)
SWEEP = _epilog(
    _examples(
        "qexport sweep sweep.yaml --dry-run",
        "qexport sweep sweep.yaml --jobs 2",
        "qexport sweep sweep.yaml --executor ray --address HOST:6379",
    ),
    "What is complete is not run again: after a kill, a failure or a change of the file the same command goes on.",
    _rows(
        "Exit codes",
        {
            0: "all runs are done",
            2: "usage",
            3: "a file of the sweep's own",
            4: "Ray is missing",
            124: "not finished in --timeout",
            130: "interrupted",
            "": "else that of the first run that failed: the others are done",
        },
    ),
)
DEMO = _epilog(
    _examples("qexport demo", "qexport demo --task segment"), "Exit codes are those of an export: qexport --help."
)
CACHE = _epilog(
    _examples("qexport cache", "qexport cache --clear"),
    _rows("Exit codes", {0: "done", 2: "usage", 3: "an entry cannot be removed"}),
)
DOCTOR = _epilog(
    _examples("qexport doctor", "qexport doctor --no-benchmark --json"),
    _rows("Exit codes", {0: "at least one format can be written", 2: "usage", 4: "none can"}),
)
REPORT = _epilog(
    _examples("qexport report qexport_out/yolo26n/report.json --out page.html"),
    _rows("Exit codes", {0: "done", 2: "usage", 3: "the report cannot be read, or the page not written"}),
)
VERIFY = _epilog(
    _examples(
        "qexport verify qexport_out/yolo26n/yolo26n_int8.tflite",
        "qexport verify m_int8.tflite --runtime tensorflow --data coco8.yaml",
    ),
    _rows(
        "Exit codes",
        {
            0: "everything holds",
            2: "usage",
            3: "a file cannot be read",
            6: "something does not hold, one line each",
            124: "not finished in --timeout",
        },
    ),
)
DIFF = _epilog(
    _examples("qexport diff old/yolo26n_int8.tflite new/yolo26n_int8.tflite"),
    _rows(
        "Exit codes, as those of git diff --no-index",
        {0: "equal but for times", 1: "different", 2: "usage", 3: "a file cannot be read"},
    ),
)

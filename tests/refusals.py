"""What every refusal of the command line has in common, for the files that test refusals."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from qexport.cli.app import main

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "calibration_data" / "shapes26.pt"
SHAPES = ROOT / "calibration_data" / "shapes"
DATA = str(SHAPES / "shapes.yaml")
USAGE, INPUT, CONVERSION, NOT_BUILT = 2, 3, 5, 8  # as documented in qexport/errors.py
PREFIX = "qexport: error: "
TOLD = ("→ ", "✓ ", "… ")
"""What lines begin with that say what a run is going to do, that a step has ended, and that one takes its time."""
UNMEASURED = ("--no-eval", "--no-latency")
FLOAT = (str(MODEL), *UNMEASURED)
INT8 = (*FLOAT, "--int8", "--imgsz", "96", "--effort", "none")


@dataclass(frozen=True)
class Refusal:
    """Runs the command line in this process and checks everything that every refusal has in common."""

    capture: pytest.CaptureFixture[str]
    out: Path

    def __call__(self, *arguments: str, code: int) -> str:
        self.capture.readouterr()
        found = main([*arguments, "--out", str(self.out)])
        output, errors = self.capture.readouterr()
        return one_line(found, output, errors, code, self.out)


def one_line(found: int, output: str, errors: str, code: int, out: Path) -> str:
    """Return the message after checking exit code, streams and folder."""
    assert found == code, errors
    assert output == ""
    lines = [line for line in errors.splitlines() if not line.startswith(TOLD)]
    assert len(lines) == 1, errors
    assert lines[0].startswith(PREFIX)
    assert "unexpected" not in lines[0]
    message = lines[0].removeprefix(PREFIX)
    assert ": " in message, "what is wrong and what to do about it"
    assert not files_in(out)
    return message


def files_in(folder: Path) -> list[Path]:
    there = os.path.isdir(folder)  # False for names that no system takes
    return sorted(path for path in folder.rglob("*") if path.is_file()) if there else []


def description(path: Path, content: object) -> Path:
    """Write YAML."""
    path.write_text(yaml.safe_dump(content))
    return path

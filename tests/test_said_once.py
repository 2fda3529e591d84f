"""At the end of a run each failure and each broken rule is said once, and whole, wherever one looks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from refusals import TOLD
from test_terminal import REPORT

from qexport import pipeline as export
from qexport.cli.app import main
from qexport.reporting.report import Failure, Gate, Outcome, Report

LONG = "of a_file_with_a_name_that_is_long_enough_to_be_cut_on_a_terminal_of_eighty_columns_int8.onnx"
BROKEN = (
    Outcome("min-speedup", "a.onnx", 1.0, None, 2.0, False, f"speed-up 1.00× {LONG} is under 2.00×"),
    Outcome("max-size", "a.onnx", 3.5, None, 3.0, False, f"size 3.50 MB {LONG} is over 3.00 MB"),
)
PASSED = Outcome("min-fidelity", "a.onnx", 0.9, None, 0.8, True, "fidelity 0.900 of a.onnx is at least 0.800")


@pytest.mark.parametrize(
    ("changes", "lines", "code"),
    [
        ({}, [], 0),
        (
            {"gate": Gate(False, (PASSED, *BROKEN))},
            [f"min-speedup: {BROKEN[0].text}", f"max-size: {BROKEN[1].text}"],
            9,
        ),
        (
            {"failures": (Failure("onnx", f"no kernel {LONG}: try another", 5),)},
            [f"onnx: no kernel {LONG}: try another"],
            5,
        ),
        ({"failures": (Failure("openvino", f"openvino: no kernel {LONG}", 6),)}, [f"openvino: no kernel {LONG}"], 6),
        (
            {"failures": (Failure("tensorrt", "no TensorRT: install it", 8),), "gate": Gate(False, BROKEN[:1])},
            ["tensorrt: no TensorRT: install it", f"min-speedup: {BROKEN[0].text}"],
            8,
        ),
        (
            {"failures": (Failure("tensorrt", "no TensorRT: install it", 8), Failure("onnx", "no kernel", 5))},
            ["tensorrt: no TensorRT: install it", "onnx: no kernel"],
            5,
        ),
    ],
    ids=["nothing", "rules", "failure", "failure that names its format", "both", "more than an engine"],
)
@pytest.mark.parametrize("shown", [(), ("--quiet",), ("--json",)], ids=["table", "quiet", "json"])
def test_what_is_wrong_is_said_once(
    changes: dict[str, object],
    lines: list[str],
    code: int,
    shown: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def finished(*given: object) -> Report:
        return replace(REPORT, **changes)  # type: ignore[arg-type]

    monkeypatch.setattr(export, "export", finished)
    (tmp_path / "m.pt").write_bytes(b"PK\x03\x04")
    assert main([str(tmp_path / "m.pt"), "--no-eval", "--out", str(tmp_path / "out"), *shown]) == code
    output, errors = capsys.readouterr()
    said = [line for line in errors.splitlines() if not line.startswith(TOLD)]
    assert said == [f"qexport: error: {line}" for line in lines]
    if "--json" not in shown:  # JSON has it all
        joined = " ".join(output.split())
        assert not any(line.rpartition(": ")[2] in joined for line in lines)
        assert ("is at least 0.800" in joined) == ("gate" in changes and code == 9 and not shown)

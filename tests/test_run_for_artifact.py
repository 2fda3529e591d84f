"""A run's folder or its report in place of the artifact that is in it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qexport.cli.app import main
from qexport.errors import InputError
from qexport.inspection.run_folder import artifact_in, report_in


def written(folder: Path, name: str, precision: str) -> None:
    """An artifact with its manifest."""
    (folder / name).mkdir() if name.endswith("_model") else (folder / name).touch()
    (folder / f"{name}.manifest.json").write_text(json.dumps({"precision": precision, "sha256": "a"}))


def test_the_only_artifact_in_integers_is_meant(tmp_path: Path) -> None:
    assert artifact_in(tmp_path) == tmp_path, "nothing is in it"
    written(tmp_path, "m_fp32.onnx", "fp32")
    assert artifact_in(tmp_path) == tmp_path / "m_fp32.onnx"
    written(tmp_path, "m_int8_openvino_model", "int8")
    (tmp_path / "report.json").touch()
    (tmp_path / "plan.json").touch()
    for other in ("plan.json", "absent.json"):
        assert artifact_in(tmp_path / other) == tmp_path / other
    for given in (tmp_path, tmp_path / "report.json", tmp_path / "m_int8_openvino_model"):
        assert artifact_in(given) == tmp_path / "m_int8_openvino_model"
    assert artifact_in(tmp_path / "m_fp32.onnx") == tmp_path / "m_fp32.onnx"
    assert artifact_in(tmp_path / "absent.onnx") == tmp_path / "absent.onnx"
    written(tmp_path, "m_int8.onnx", "int8")
    with pytest.raises(InputError, match=r"holds several artifacts: give .*m_int8\.onnx or .*m_int8_openvino_model$"):
        artifact_in(tmp_path)


def test_a_folder_stands_for_its_report(tmp_path: Path) -> None:
    (tmp_path / "report.json").touch()
    assert report_in(tmp_path) == report_in(tmp_path / "report.json") == tmp_path / "report.json"


@pytest.mark.parametrize("verb", ["snippet", "verify"])
def test_several_are_named_in_the_error(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a_int8.onnx", "b_int8.tflite"):
        written(tmp_path, name, "int8")
    assert main([verb, str(tmp_path)]) == 3
    (line,) = capsys.readouterr().err.splitlines()
    names = f"{tmp_path / 'a_int8.onnx'} or {tmp_path / 'b_int8.tflite'}"
    assert line == f"qexport: error: {tmp_path} holds several artifacts: give {names}"

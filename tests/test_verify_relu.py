"""`verify` on a TFLite file whose kernels compute the ReLU, too, so that weights carry its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import DEMO
from torch import nn

from qexport.backends.artifact import manifest_path
from qexport.backends.tflite.backend import TFLiteBackend
from qexport.cli.app import main
from qexport.inspection.manifest import read_manifest

pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")
pytestmark = pytest.mark.slow

CONFIG: dict[str, Any] = {
    "nc": 2,
    "activation": "torch.nn.ReLU()",
    "backbone": [[-1, 1, "Conv", [8, 3, 2]], [-1, 1, "Conv", [16, 3, 2]], [-1, 1, "Conv", [16, 3, 2]]],
    "head": [[[2], 1, "Detect", ["nc"]]],
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of three convolutions, their ReLUs and one level; one channel of the second is zero everywhere."""
    from ultralytics.nn.tasks import DetectionModel

    folder = tmp_path_factory.mktemp("relu")
    torch.manual_seed(0)
    model: Any = DetectionModel(CONFIG, verbose=False)
    for name, parameter in model.named_parameters():
        if name.startswith("model.3.cv3.0.2"):
            nn.init.normal_(parameter, 0, 0.5)
    model.model[1].conv.weight.data[3] = 0
    model.task, model.args = "detect", {"task": "detect"}
    torch.save({"model": model, "train_args": {"task": "detect", "imgsz": 64}}, folder / "relu.pt")
    images = str(DEMO / "shapes" / "images" / "train")
    words = ["relu.pt", "--format", "tflite", "--int8", "--imgsz", "64", "--data", images, "--calib-images", "4"]
    with pytest.MonkeyPatch.context() as at:
        at.chdir(folder)
        assert main([*words, "--effort", "none", "--no-eval", "--no-latency", "--out", "out"]) == 0
    return folder / "out" / "relu_int8.tflite"


def checks(capsys: pytest.CaptureFixture[str], file: Path) -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    main(["verify", str(file), "--json"])
    return {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}


def test_a_file_with_relus_is_what_it_was(
    exported: Path, capsys: pytest.CaptureFixture[str], logging_level: None
) -> None:
    stored = TFLiteBackend().read(exported).tensors
    manifest = read_manifest(exported)
    assert manifest is not None
    merged = manifest["plan"]["merged"]
    carried = [value for value, name in merged.items() if f"{name}.weight" in stored]
    assert len(carried) >= 3  # otherwise this test shows nothing
    found = checks(capsys, exported)
    assert {name: check["passed"] for name, check in found.items()} == dict.fromkeys(
        ("hash", "plan", "coverage", "outputs"), True
    )
    report = json.loads((exported.parent / "report.json").read_text())
    assert found["plan"]["text"] == f"{report['artifacts'][0]['verification']['tensors']} tensors as planned"


@pytest.mark.parametrize("part", ["scale", "zeroPoint"])
def test_a_changed_file_still_fails(
    part: str, exported: Path, capsys: pytest.CaptureFixture[str], logging_level: None
) -> None:
    """The tensor that carries a ReLU's name has another scale in its fifth channel, or a ReLU another zero point."""
    from qexport.backends.tflite.file import load_file, save_file

    original = exported.read_bytes()
    model = load_file(exported)
    tensors = model.subgraphs[0].tensors
    for tensor in tensors:
        weight = len(tensor.shape) == 4 and len(tensor.quantization.scale) == 16
        if part == "scale" and weight:
            tensor.quantization.scale = tensor.quantization.scale * np.where(np.arange(16) == 5, 1.5, 1).astype(
                np.float32
            )
            break
        if part == "zeroPoint" and b"relu" in tensor.name and not weight:
            tensor.quantization.zeroPoint = tensor.quantization.zeroPoint + 1
            break
    try:
        save_file(model, exported)
        found = checks(capsys, exported)
    finally:
        exported.write_bytes(original)
    assert found["hash"]["passed"] is found["plan"]["passed"] is False
    assert ("scale of channel 5 " if part == "scale" else "zero point ") in found["plan"]["text"]


def test_an_earlier_manifest_does_not_know_the_names(
    exported: Path, capsys: pytest.CaptureFixture[str], logging_level: None
) -> None:
    path = manifest_path(exported)
    original = path.read_text()
    content = json.loads(original)
    del content["plan"]["merged"]
    try:
        path.write_text(json.dumps(content))
        found = checks(capsys, exported)
    finally:
        path.write_text(original)
    assert found["plan"]["passed"] is True

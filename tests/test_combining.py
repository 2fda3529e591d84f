"""The examples of docs/combining.md, as they stand there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from guides import DOCS, ROOT, blocks, commands, page

from qexport.checkpoints.checkpoint import load_checkpoint
from qexport.cli.app import main
from qexport.compat.torchvision import repair
from qexport.planning.plan import load_plan
from qexport.reporting.load import load_report

pytestmark = pytest.mark.skipif(not DOCS.is_dir(), reason="a source distribution has no documents")


def test_the_examples_run_on_the_demo_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files lose no zero on the way, and distillation brings the pruned model nearer."""
    (tmp_path / "calibration_data").symlink_to(ROOT / "calibration_data")
    monkeypatch.chdir(tmp_path)
    repair()
    names: dict[str, Any] = {}
    for block in blocks(page("combining.md"), "python"):
        exec(compile(block, "combining.md", "exec"), names)
    assert names["losses"][-1] < names["losses"][0]
    for file in ("pruned.pt", "distilled.pt"):
        weights = [each.weight for each in load_checkpoint(Path(file)).module.modules() if hasattr(each, "groups")]
        fours = [each.movedim(1, -1).reshape(-1, 4) for each in weights if each.shape[1] % 4 == 0]
        assert max(int((each != 0).sum(dim=1).max()) for each in fours) == 2
        assert len(fours) > 50
    given = [words[1:] for words in commands(page("combining.md"))]
    assert [words[0] for words in given] == [
        "pruned.pt",
        "distilled.pt",
        "qat",
        "qexport_out/distilled_qat/distilled_qat.pt",
    ]
    for words in given:
        assert main([*words, "--quiet"]) == 0
    for file in ("pruned/pruned_int8-dynamic.onnx", "distilled_qat/distilled_qat_int8.onnx"):
        made = onnx.load(f"qexport_out/{file}").graph.initializer
        weights = [each for each in map(onnx.numpy_helper.to_array, made) if each.dtype == np.int8 and each.ndim == 4]
        halved = [each for each in weights if each.shape[1] % 4 == 0]
        assert len(halved) > 50
        assert all((np.moveaxis(each, 1, -1).reshape(-1, 4) != 0).sum(axis=1).max() == 2 for each in halved)
    notes = load_report(Path("qexport_out/distilled_qat/report.json"))
    assert any("learned in training for onnx" in each.text for each in notes.artifacts[0].warnings)
    plan = load_plan(tmp_path / "qexport_out" / "distilled" / "plan.json")
    assert plan.tensors["model.1.conv.weight"].why == "model_1_conv stays float"
    assert plan.is_quantised("model.2.cv1.conv.weight")

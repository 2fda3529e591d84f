"""RT-DETR's program against Ultralytics' own, and its parts against PyTorch's."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import DEMO, demo_images
from refusals import DATA, INPUT, UNMEASURED, Refusal

from qexport.data.images import stream
from qexport.errors import InputError
from qexport.inspection.recheck import recheck
from qexport.job.options import make_job
from qexport.pipeline import export
from qexport.programs.rtdetr import Joined, query_detector
from qexport.programs.token_layers import Attention, Sampled, as_maps, as_rows
from qexport.progress import Silent
from qexport.reporting.load import load_report
from qexport.reporting.report import ArtifactReport

SIZE = (64, 96)
sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))


CONVOLUTIONS = ("HGStem", "HGBlock", "DWConv", "Conv", "RepC3")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """RT-DETR-L with a quarter of its channels, a third of its blocks and of its decoder's layers."""
    from ultralytics.nn.tasks import yaml_model_load
    from untrained import untrained

    drawn = yaml_model_load("rtdetr-l.yaml")
    for _, _, module, arguments in (*drawn["backbone"], *drawn["head"]):
        if module in CONVOLUTIONS:
            arguments[:2] = [each // 4 if each > 8 else each for each in arguments[:2]]
    drawn["head"][-1][-1] = ["nc", 64, 300, 4, 8, 2]
    path = tmp_path_factory.mktemp("drawn") / "rtdetr-small.yaml"
    path.write_text(yaml.safe_dump({**drawn, "scales": {"small": [0.34, 1.0, 1024]}}), encoding="utf-8")
    made = untrained(str(path), pixels())
    generator = torch.Generator().manual_seed(0)
    for layer in made.model[-1].decoder.layers:  # built as copies of one, which converters take for one
        weight = layer.cross_attn.value_proj.weight.data
        weight *= 1 + 0.1 * torch.randn(weight.shape, generator=generator)
    return made


def pixels() -> torch.Tensor:
    return torch.from_numpy(np.stack([image for _, image in stream(demo_images("val", 2), SIZE, lambda *_: None)]))


def test_the_program_is_what_ultralytics_exports(model: Any) -> None:
    twin = copy.deepcopy(model)
    twin.fuse(verbose=False)
    twin.model[-1].export = True
    with torch.no_grad():
        expected = twin(pixels())
        actual = query_detector(model, None, SIZE)(pixels())
    assert actual.shape == expected.shape == (2, 300, 6)
    confident = expected[..., 4] > 0.25
    assert int(confident.sum()) > 50
    torch.testing.assert_close(actual[..., 4], expected[..., 4], rtol=1e-4, atol=1e-5)
    same = (actual - expected).abs().amax(dim=-1) < 1e-3  # like scores may swap places
    assert float(same[confident].float().mean()) > 0.9


def test_sampling_is_deformable_attention() -> None:
    from ultralytics.nn.modules.utils import multi_scale_deformable_attn_pytorch

    generator = torch.Generator().manual_seed(0)
    shapes, heads, points, queries = ((6, 8), (3, 4), (2, 2)), 2, 4, 7
    cells = sum(height * width for height, width in shapes)
    values = torch.randn(2, cells, heads, 5, generator=generator)
    boxes = torch.rand(2, queries, 4, generator=generator)
    offsets = torch.randn(2, queries, heads, 12, 2, generator=generator) * 3
    logits = torch.randn(2, queries, heads, 12, generator=generator)
    places = boxes[:, :, None, None, :2] + offsets / points * boxes[:, :, None, None, 2:] * 0.5
    assert 0.05 < float(((places < 0) | (places > 1)).float().mean()) < 0.5  # some lie outside
    expected = multi_scale_deformable_attn_pytorch(values, [list(s) for s in shapes], places, logits.softmax(-1))
    given = (as_maps(tensor.flatten(2)) for tensor in (values, offsets, logits))
    actual = as_rows(Sampled(shapes, heads, points)(*given, boxes))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_attention_is_pytorchs() -> None:
    torch.manual_seed(0)
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True).eval()
    located, tokens = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    with torch.no_grad():
        expected = theirs(located, located, tokens)[0]
        actual = as_rows(Attention(theirs)(as_maps(located), as_maps(tokens)))
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_cells_of_all_levels_are_joined_in_order() -> None:
    maps = [torch.rand(2, 5, *size) for size in ((4, 6), (2, 3), (1, 1))]
    torch.testing.assert_close(Joined()(maps), torch.cat([each.flatten(2) for each in maps], dim=2)[..., None])


def test_integer_only_files_are_refused_before_the_model_is_captured(
    refused: Refusal, model: Any, tmp_path: Path
) -> None:
    path = tmp_path / "rtdetr.pt"
    torch.save({"model": model, "train_args": {"task": "detect", "imgsz": 640}}, path)
    options = ("--precision", "int8-full", "--format", "tflite", "--data", DATA, "--imgsz", "96", *UNMEASURED)
    message = refused(str(path), *options, code=INPUT)
    assert message.startswith("RT-DETR cannot be integer-only: ")
    assert message.endswith("use --precision int8 with --format tflite, onnx, openvino or tensorrt")


@pytest.mark.slow
def test_files_hold_their_plan_in_int8(model: Any, tmp_path: Path) -> None:
    """ONNX is a row of `make support`, the TensorRT graph's casts are in test_qdq."""
    for package in ("litert_torch", "openvino"):
        pytest.importorskip(package, reason="needs the extras qexport[tflite,openvino]")
    path = tmp_path / "rtdetr.pt"
    torch.save({"model": model, "train_args": {"task": "detect", "imgsz": 640}}, path)
    quick = {"optimise": "equalisation", "no_eval": True, "no_latency": True, "no_build": True}
    options = {"int8": True, "imgsz": "96", "calib_images": 4, **quick}
    given = {"model": str(path), "data": str(DEMO / "shapes" / "images" / "train"), "out": tmp_path / "out"}
    report = export(make_job({**given, "format": "tflite,openvino", **options}), Silent())
    assert [artifact.format for artifact in report.artifacts] == ["tflite", "openvino"]
    for artifact in report.artifacts:
        assert artifact.verification is not None, artifact.format
        assert artifact.verification.coverage > 0.9, artifact.format
        # Untrained queries score nearly alike: which of them are chosen is a matter of rounding.
        assert (artifact.verification.agreement or 0) > 0.7, artifact.format
        check_choices(artifact)
    saved = load_report(tmp_path / "out" / "report.json")
    for artifact in report.artifacts:
        checks = {check.name: check for check in recheck(Path(artifact.path), saved, None, 1)}
        assert {name: check.passed for name, check in checks.items()} == {
            "hash": True,
            "plan": True,
            "coverage": True,
            "outputs": True,
        }, checks


def check_choices(artifact: ArtifactReport) -> None:
    """Gradients come back through the choice of queries and the sampling; the distance is of the queries."""
    (tried,) = artifact.passes
    assert min(tried.before or 0, tried.after or 0, tried.noise or 0) > 0
    reasons = [each["why"] for each in json.loads(Path(artifact.plan or "").read_text())["tensors"].values()]
    assert sum(why.startswith("auto (weighted-mse)") for why in reasons) > 80


@pytest.mark.parametrize(("head", "nms"), [("one2many", False), (None, True)])
def test_options_of_other_heads_are_refused(head: str | None, nms: bool) -> None:
    with pytest.raises(InputError, match="RT-DETR has no one-to-many head and needs no NMS: leave out"):
        query_detector(None, head, SIZE, nms)

"""Files with an open batch in the installed Ultralytics: what it feeds them, and what it makes of their metadata."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from conftest import DEMO, demo_checkpoint, demo_images, lowering, validated
from numpy.typing import NDArray

from qexport.backends.protocol import Backend
from qexport.backends.registry import find_backend
from qexport.checkpoints.checkpoint import Checkpoint
from qexport.data.dataset import load_dataset
from qexport.data.evaluation_set import make_evaluation_set
from qexport.lowering.metadata import artifact_metadata
from qexport.lowering.onnx.export import unname_batch
from qexport.measurement.accuracy import evaluate
from qexport.programs.capture import capture
from qexport.programs.heads import split_head
from qexport.programs.program import Program

for package in ("onnxruntime", "onnxscript", "openvino"):
    pytest.importorskip(package, reason="needs the extras qexport[onnx,openvino]")

SIZE = (96, 160)
"""Not square, so that a wrong order of height and width is found, too."""
FORMATS = ("onnx", "openvino")


def photos() -> list[NDArray[np.uint8]]:
    """Five images of different shapes, the third of the file's own."""
    random = np.random.default_rng(0)
    shapes = ((120, 200), (301, 77), SIZE, (480, 640), (33, 500))
    return [random.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]


@pytest.fixture(scope="module")
def program() -> Program:
    """The demo program with an open batch."""
    return capture(split_head(demo_checkpoint().module, "end2end", SIZE), SIZE, dynamic=True)


@pytest.fixture(scope="module")
def files(program: Program, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The program in each format, and the ONNX file with its batch fixed by ONNX Runtime's own tool."""
    import onnx
    from onnxruntime.tools.onnx_model_utils import make_input_shape_fixed

    folder, found = tmp_path_factory.mktemp("files"), {}
    for name in FORMATS:
        backend: Backend = find_backend(name)
        found[name] = folder / f"open_fp32{backend.info.suffix}"
        backend.lower(
            lowering(program, "fp32", None, artifact_metadata(demo_checkpoint(), program, "fp32", None)), found[name]
        )
    fixed = onnx.load(found["onnx"])
    make_input_shape_fixed(fixed.graph, "images", (1, 3, *SIZE))
    for entry in fixed.metadata_props:
        entry.value = entry.value.replace("'dynamic': None", "'dynamic': False")
    onnx.save(fixed, folder / "fixed.onnx")
    return {**found, "fixed": folder / "fixed.onnx"}


def fed(monkeypatch: pytest.MonkeyPatch, name: str) -> list[tuple[int, ...]]:
    """Shapes of what Ultralytics feeds a runtime from now on."""
    from ultralytics.nn.backends.onnx import ONNXBackend
    from ultralytics.nn.backends.openvino import OpenVINOBackend

    kind: Any = {"onnx": ONNXBackend, "openvino": OpenVINOBackend}[name]
    seen: list[tuple[int, ...]] = []
    original = kind.forward

    def forward(self: Any, im: Any) -> Any:
        seen.append(tuple(im.shape))
        return original(self, im)

    monkeypatch.setattr(kind, "forward", forward)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_ultralytics_predicts_on_one_and_on_five_photos_of_any_shape(
    files: dict[str, Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ultralytics.models import YOLO

    seen = fed(monkeypatch, name)
    model: Any = YOLO(str(files[name]))
    (alone,) = model(photos()[1], conf=0.01, verbose=False)
    together = model(photos(), conf=0.01, verbose=False)
    assert seen == [(1, 3, *SIZE), (5, 3, *SIZE)]  # all of them in one run: that is what an open batch is for
    assert [result.orig_shape for result in together] == [photo.shape[:2] for photo in photos()]
    assert len(alone.boxes) == len(together[1].boxes) > 5
    np.testing.assert_allclose(together[1].boxes.conf.numpy(), alone.boxes.conf.numpy(), atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_its_validator_finds_the_static_files_accuracy(
    files: dict[str, Path], program: Program, name: str, tmp_path: Path
) -> None:
    data = make_evaluation_set(load_dataset(DEMO / "shapes" / "shapes.yaml"), demo_images("val", 12), tmp_path / "set")
    ours = evaluate(find_backend("onnx").runner(files["fixed"], 1), program.layout, "detect", data)
    opened = validated(files[name], "detect", data, tmp_path).box.map
    assert ours.images == 12
    assert (ours.map or 0) > 0.1
    assert validated(files["fixed"], "detect", data, tmp_path).box.map == ours.map
    # OpenVINO computes in BF16 where the CPU has it.
    assert opened == pytest.approx(ours.map, abs={"onnx": 1e-6, "openvino": 0.01}[name])


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb", "classify"])
@pytest.mark.parametrize("own", [None, {"args": "{'dynamic': True, 'batch': 16, 'half': True}", "dynamic": "True"}])
def test_metadata_never_promise_open_sizes(program: Program, task: str, own: dict[str, str] | None) -> None:
    """By Ultralytics' own reading: "dynamic" is what it takes for open sizes, "batch" what it pads to."""
    checkpoint: Checkpoint = replace(demo_checkpoint(), task=task, metadata=own)
    for dynamic, spelt in ((True, None), (False, False)):
        given = replace(program, input=replace(program.input, dynamic=dynamic))
        read = _as_read(artifact_metadata(checkpoint, given, "fp16", None))
        assert (read["dynamic"], read["args"]["dynamic"]) == (spelt, spelt)
        assert (read["batch"], read["args"]["batch"]) == (1, 1)
        assert (read["imgsz"], read["stride"], read["channels"]) == (list(SIZE), 32, 3)
        assert (read["task"], read["end2end"], read["args"]["quantize"]) == (task, True, 16)


def _as_read(metadata: dict[str, Any]) -> dict[str, Any]:
    """What Ultralytics' loaders make of metadata that an ONNX file holds as text."""
    from ultralytics.nn.backends.base import BaseBackend

    class Reader(BaseBackend):
        def load_model(self, weight: Any) -> None:
            self.apply_metadata({key: str(value) for key, value in metadata.items()})

        def forward(self, im: Any) -> Any: ...

    return dict(Reader("", "cpu").metadata)


@pytest.mark.parametrize("sizes", [("batch", 3, 8, 8), ("N", "C", 8, 8), (None, 3, "height", 8), (4, 3, 8, 8)])
def test_open_dimensions_have_no_name_in_the_runtime(sizes: tuple[Any, ...], tmp_path: Path) -> None:
    import onnxruntime

    given = ir.Value(name="images", shape=ir.Shape(sizes), type=ir.TensorType(ir.DataType.FLOAT))
    nodes = [ir.node("Relu", [given])]
    nodes.append(ir.node("Sqrt", nodes[0].outputs))
    for node in nodes:
        node.outputs[0].shape, node.outputs[0].type = ir.Shape(sizes), given.type
    graph = ir.Graph([given], nodes[1].outputs, nodes=nodes, opset_imports={"": 18}, name="graph")
    model = ir.Model(graph, ir_version=10)
    unname_batch(model)
    ir.save(model, tmp_path / "graph.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "graph.onnx"), providers=["CPUExecutionProvider"])
    wanted = [size if isinstance(size, int) else None for size in sizes]
    assert session.get_inputs()[0].shape == session.get_outputs()[0].shape == wanted

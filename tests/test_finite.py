"""A model of numbers that are none is refused by its layer's name; so is an artifact that computes none."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import captured, seeded
from hard_numbers import SIZE, Layers, built, layers
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from qexport.backends.registry import find_class
from qexport.data.dataset import load_folder
from qexport.data.evaluation_set import make_evaluation_set
from qexport.errors import InputError, UsageError, VerificationError
from qexport.lowering.request import Lowering
from qexport.measurement.accuracy import evaluate
from qexport.programs.options import CaptureOptions
from qexport.programs.program import Program
from qexport.steps.plan import make_target
from qexport.steps.verify import verify
from qexport.verification.finite import FiniteRunner, generated_input


@pytest.mark.parametrize(
    ("layer", "what", "number", "share"),
    [
        ("first", "weight", np.nan, "1 of 432"),
        ("depthwise", "bias", np.inf, "1 of 16"),
        ("up", "weight", -np.inf, "1 of 512"),
        ("cls", "bias", np.nan, "1 of 2"),
    ],
)
def test_a_checkpoint_of_nan_is_refused_by_its_layers_name(layer: str, what: str, number: float, share: str) -> None:
    module: Any = seeded(Layers())
    getattr(getattr(module, layer), what).data.view(-1)[1] = number
    with pytest.raises(InputError) as found:
        captured(module, SIZE)
    assert f"{layer}.{what} with {share} numbers NaN or infinite" in str(found.value)
    assert "report" not in str(found.value)


def test_a_model_that_overflows_by_itself_is_refused() -> None:
    module: Any = seeded(Layers())
    for layer in (module.first, module.depthwise, module.point):
        layer.weight.data *= 1e20
    with pytest.raises(InputError, match="computes NaN or infinity from a plain picture"):
        captured(module, SIZE)


@pytest.mark.parametrize("operator", ["Conv", "Gemm", "MatMul"])
def test_an_onnx_file_of_nan_is_refused_by_its_layers_name(operator: str, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx", reason="needs the extra qexport[onnx]")
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    from qexport.programs.onnx.build import read_onnx

    layer = {"Conv": "w_flat = Conv (images, w)", "Gemm": "y = Gemm (flat, w)", "MatMul": "y = MatMul (flat, w)"}
    shape = {"Conv": (4, 3, 32, 32)}.get(operator, (3072, 4))
    body = (
        f"flat = Flatten (images) {layer[operator]}" if operator != "Conv" else f"{layer['Conv']} y = Flatten (w_flat)"
    )
    model = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 18]> g (float[1, 3, 32, 32] images) => (float[1, 4] y) {{ {body} }}'
    )
    weight = np.full(shape, 0.5, dtype=np.float32)
    weight[(1,) * len(shape)] = np.nan
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "damaged.onnx")
    with pytest.raises(InputError, match=r"damaged\.onnx has .* with 1 of 12288 numbers NaN or infinite"):
        read_onnx(tmp_path / "damaged.onnx", CaptureOptions())


class Planted:
    """A runtime whose second output has a number of its own choice in it."""

    def __init__(self, program: Program, number: float) -> None:
        self.program, self.number = program, number

    def __call__(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        with torch.no_grad():
            output = self.program.graph(torch.from_numpy(batch)).numpy().copy()
        output[0, 0, 0] = self.number
        return (output,)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_an_output_that_is_no_number_is_refused(number: float) -> None:
    program = layers()
    with pytest.raises(VerificationError, match=r"onnx: 1 of 1536 numbers in the outputs are NaN or infinite"):
        FiniteRunner(Planted(program, number), program, "onnx")(generated_input(program))
    assert VerificationError.exit_code == 6
    assert FiniteRunner(Planted(program, 0.0), program, "onnx")(generated_input(program))[0].shape == (1, 6, 256)


def test_infinity_of_the_models_own_is_no_fault_of_the_file() -> None:
    program = layers()

    class Endless(Planted):
        graph = property(lambda self: lambda batch: torch.full((1, 6, 256), torch.inf))

    endless: Any = Endless(program, 0.0)
    assert np.isinf(FiniteRunner(Planted(program, np.inf), endless, "onnx")(generated_input(program))[0]).sum() == 1


def test_an_overflow_of_fp16_is_named_by_its_layer() -> None:
    program = layers(depthwise=lambda weight, _: weight.mul_(1e8))
    with pytest.raises(VerificationError) as found:
        FiniteRunner(Planted(program, np.nan), program, "onnx", half=True)(generated_input(program))
    named = r"depthwise_conv \(conv with depthwise\.weight\) reaches 5\.3e\+08, and FP16 ends at 65504"
    assert re.search(named, str(found.value)), found.value
    assert "--keep-float depthwise_conv, or another --precision" in str(found.value)


class Divided(Layers):
    """Divides by zero where a picture is white."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images / (images.amin() - 1))


def photographs(folder: Path) -> list[Path]:
    for name, grey in (("black.png", 0), ("grey.png", 90), ("white.png", 255)):
        Image.new("RGB", (16, 16), (grey, grey, grey)).save(folder / name)
    return sorted(folder.glob("*.png"))


def test_nan_of_the_models_own_is_named_by_layer_and_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program, backend = captured(seeded(Divided()), SIZE), find_class("onnx")
    monkeypatch.setattr(backend, "runner", lambda *_: Planted(program, 0.0))
    target = make_target("onnx", "fp32")
    with pytest.raises(InputError) as found:
        verify(tmp_path / "a.onnx", program, target, images=photographs(tmp_path))
    assert str(found.value).startswith("the model itself computes NaN, first in program_div (div)")
    assert f"(image {tmp_path / 'white.png'}): leave the image out" in str(found.value)


def test_nan_of_an_artifact_is_named_by_the_evaluation_image(tmp_path: Path) -> None:
    program = layers()

    def runner(batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        return Planted(program, np.nan if batch.max() == 1 else 0.5)(batch)

    images = photographs(tmp_path)
    dataset = replace(load_folder(tmp_path), names={0: "cat", 1: "dog"})
    data = make_evaluation_set(dataset, images, tmp_path / "set", labelled=False)
    with pytest.raises(VerificationError) as found:
        evaluate(FiniteRunner(runner, program, "onnx"), program.layout, "detect", replace(data, labelled=False))
    assert (
        f"onnx: 1 of 1536 numbers in the outputs are NaN or infinite, the model's are not (image {images[2]})"
        in str(found.value)
    )


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8-dynamic"])
def test_a_file_is_run_where_there_is_no_image(precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    program, backend = layers(), find_class("onnx")
    monkeypatch.setattr(backend, "runner", lambda *_: Planted(program, np.nan))
    monkeypatch.setattr(backend, "lower", lambda self, request, path: path.write_bytes(b"stands for a file"))
    with pytest.raises(VerificationError, match="NaN or infinite"):
        built(program, tmp_path, "onnx", precision)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"] * (precision == "int8-dynamic")


@pytest.mark.parametrize(
    ("name", "precision", "value", "refused"),
    [
        ("tflite", "int8-dynamic", "point_mul", True),
        ("onnx", "int8-dynamic", "point_sigmoid", True),
        ("tflite", "fp16", "point_mul", True),
        ("openvino", "fp16", "depthwise_mul", True),
        ("onnx", "fp16", "point_mul", False),  # it computes in FP16 there
        ("openvino", "int8-dynamic", "point_conv", False),
    ],
)
def test_what_has_no_weights_cannot_keep_them_in_float(
    name: str, precision: str, value: str, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Lowering] = []
    program, backend = layers(), find_class(name)

    def lower(self: Any, request: Lowering, path: Path) -> None:
        given.append(request)
        raise VerificationError("far enough")

    monkeypatch.setattr(backend, "lower", lower)
    with pytest.raises(UsageError if refused else VerificationError) as found:
        built(program, tmp_path, name, precision, keep_float=(value,))
    if refused:
        assert f"--keep-float {value} has no weights, and {precision} in format {name}" in str(found.value)
    elif precision == "fp16":
        assert given[0].float32 == {value}
    else:
        assert given[0].plan is not None
        assert given[0].plan.tensors["point.weight"].why == "float as asked"

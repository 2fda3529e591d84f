"""OpenVINO IR: Q/DQ around convolutions, read back from the IR and from the model as the CPU plugin compiled it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml
from numpy.typing import NDArray

from qexport.backends import LowerOptions, StoredGraph, StoredTensor
from qexport.backends.onnx import PACKAGES as ONNX_PACKAGES
from qexport.backends.onnx import check_packages, write_onnx
from qexport.backends.openvino_half import compress
from qexport.errors import ConversionError
from qexport.lowering.cpu import ANY, AVX2
from qexport.planning.profile import OPENVINO, RuntimeProfile, careful

if TYPE_CHECKING:
    from qexport.planning.plan import QuantPlan
    from qexport.programs.program import Program

OPSET = 18
MODEL = "model.xml"
METADATA = "metadata.yaml"
MAC_LAYERS = {"Convolution", "Deconvolution", "MatMul", "FullyConnected"}
MAC_OPERATIONS = {
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
    "MatMul",
}
DEQUANTISED = ".dequantised"
RENAMED = "_original"
"""What the low precision transformations put behind an output's name, which the layer that writes it gets."""


class OpenVINOBackend:
    """Writes IR folders that OpenVINO and Ultralytics load."""

    name = "openvino"
    suffix = "_openvino_model"
    runtime = "OpenVINO, CPU plugin"
    profiles: Mapping[str, Mapping[str, RuntimeProfile]] = {"int8": {ANY: OPENVINO, AVX2: careful(OPENVINO)}}
    precisions = frozenset({"fp32", "fp16", "int8", "int8-dynamic"})
    dynamic = True
    apart = False
    timed = True
    from_onnx = True
    half_scope = "constants"

    def __init__(self) -> None:
        check_packages(self.name, ("openvino", *(name for name in ONNX_PACKAGES if name != "onnxruntime")))

    def lower(
        self,
        program: Program,
        plan: QuantPlan | None,
        metadata: Mapping[str, Any],
        path: Path,
        options: LowerOptions = LowerOptions(),
    ) -> None:
        """Write a folder with the IR (model.xml, model.bin) and Ultralytics' metadata.yaml."""
        openvino, half = _openvino(), metadata.get("precision") == "fp16"
        path.mkdir()
        with tempfile.TemporaryDirectory(prefix="qexport-") as scratch:
            graph = Path(scratch) / "graph.onnx"
            write_onnx(program, plan, metadata, graph, options.opset or OPSET, half=False)
            try:
                model = openvino.Core().read_model(graph)
                _number_operations(model)
                if half and options.float32:
                    compress(model, options.float32)
                openvino.save_model(model, path / MODEL, compress_to_fp16=half and not options.float32)
            except RuntimeError as error:
                shutil.rmtree(path)
                first = next(iter(str(error).splitlines()), "")
                raise ConversionError(f"OpenVINO cannot read the graph ({first})", "try another --opset") from error
        (path / METADATA).write_text(yaml.safe_dump(dict(metadata), sort_keys=False), encoding="utf-8")

    def float_weights(self, program: Program) -> dict[str, str]:
        """Layers that keep float weights in "int8-dynamic", with the reason."""
        return behind_split(program)

    def read(self, path: Path) -> StoredGraph:
        """Read scales from the IR, and which arithmetic is in integers from the compiled model."""
        model = _openvino().Core().read_model(path / MODEL)
        macs = _macs(model)
        found = integer_layers(path)
        integer = found | {layer for output, layer in _output_layers(model) if f"{output}{RENAMED}" in found}
        return StoredGraph(
            _stored_tensors(model),
            sum(count for name, count in macs.items() if name in integer),
            sum(macs.values()),
            dict(sorted(Counter(op.get_type_name() for op in model.get_ops()).items())),
            complete=True,
        )

    def runner(self, path: Path, threads: int) -> OpenVINORunner:
        """Compile the IR for the CPU."""
        return OpenVINORunner(path, threads)

    def validation(self) -> AbstractContextManager[None]:
        """Nothing special."""
        return nullcontext()


class OpenVINORunner:
    """An IR folder on OpenVINO's CPU plugin, as Ultralytics runs it."""

    def __init__(self, path: Path, threads: int) -> None:
        self._request = compiled(path, threads).create_infer_request()

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one batch."""
        return self.outputs(batch)[0]

    def outputs(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Run one batch and return every output, the detections first."""
        return [output.copy() for output in self._request.infer({0: batch}).to_tuple()]


def behind_split(program: Program) -> dict[str, str]:
    """Layers of 1 by 1 that read a part of a split, with the reason why they keep float weights.

    The CPU plugin of 2026.4 fails on INT8 weights there.
    Its pass ConvertWeightCompressedConv1x1ToMatmul takes any input to have one output; NNCF's own files fail alike.
    """
    from qexport.planning.weights import weight_array

    readers = (v for v in program.values.values() if v.weight and program.values[v.inputs[0]].operation == "part")
    found = (v.name for v in readers if not any(n > 1 for n in weight_array(program, v.weight).shape[2:]))
    return dict.fromkeys(found, "OpenVINO's CPU plugin fails on INT8 weights behind a split")


def _openvino() -> Any:
    # Set before the import: the package reports its use to its maker otherwise.
    os.environ.setdefault("OPENVINO_TELEMETRY_DISABLE", "1")
    import openvino

    return openvino


def _number_operations(model: Any) -> None:
    """Name unnamed operations by their position: OpenVINO counts them through the process, and files would differ."""
    for position, op in enumerate(model.get_ordered_ops()):
        if op.get_friendly_name().startswith(f"{op.get_type_name()}_"):
            op.set_friendly_name(f"{op.get_type_name()}_{position}")


def compiled(path: Path, threads: int) -> Any:
    """Compile the IR in `path` for the CPU."""
    core = _openvino().Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    try:
        return core.compile_model(core.read_model(next(path.glob("*.xml"))), "CPU", settings)
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        raise ConversionError(f"OpenVINO cannot compile the model ({last})", "report the model") from error


def integer_layers(path: Path) -> frozenset[str]:
    """Names of the values whose multiply-accumulates the CPU plugin runs in INT8 kernels."""
    found: set[str] = set()
    for op in compiled(path, 1).get_runtime_model().get_ordered_ops():
        facts = {key: value.astype(str) for key, value in op.get_rt_info().items()}
        if facts.get("layerType") in MAC_LAYERS and facts["primitiveType"].lower().endswith("i8"):
            found.update(name.removesuffix("/WithoutBiases") for name in facts["originalLayersNames"].split(","))
    return frozenset(found)


def _macs(model: Any) -> dict[str, int]:
    """Multiply-accumulates for one image by value name; a dimension that is open counts as one."""
    found = {}
    for op in model.get_ops():
        kind = op.get_type_name()
        if kind not in MAC_OPERATIONS:
            continue
        elements = int(np.prod(_sizes(op.input_value(0) if "Backprop" in kind else op.output(0))))
        shape = _sizes(op.input_value(0) if kind == "MatMul" else op.input_value(1))
        # Weights are (out, in, …), with groups (groups, out, in, …); transposed ones the other way round.
        depth = shape[-1] if kind == "MatMul" else int(np.prod(shape[2 if kind.startswith("Group") else 1 :]))
        if kind == "MatMul" and op.get_attributes()["transpose_a"]:
            depth = shape[-2]
        found[op.get_friendly_name().removesuffix("/WithoutBiases")] = elements * depth
    return found


def _output_layers(model: Any) -> Iterator[tuple[str, str]]:
    """(output, layer that writes it), where nothing but a copy, a factor and a bias are between the two."""
    for result in model.get_results():
        layer = _layer_behind(result.input_value(0).get_node())
        yield from ((name, layer) for name in result.output(0).get_names() if layer)


def _layer_behind(node: Any) -> str:
    """The name of the layer that a node gives on, "" if it does something else."""
    if node.get_type_name() in MAC_OPERATIONS:
        return str(node.get_friendly_name().removesuffix("/WithoutBiases"))
    if node.get_type_name() not in ("Identity", "Add", "Multiply"):
        return ""
    return next(filter(None, (_layer_behind(port.get_node()) for port in node.input_values())), "")


def _sizes(port: Any) -> list[int]:
    return [size.get_length() if size.is_static else 1 for size in port.get_partial_shape()]


def _stored_tensors(model: Any) -> dict[str, StoredTensor]:
    """Every dequantisation in the IR, by the name of the tensor that it gives back."""
    found = {}
    for op in model.get_ops():
        name = op.get_friendly_name()
        if op.get_type_name() == "Multiply" and name.endswith(DEQUANTISED):
            found[name.removesuffix(DEQUANTISED).split("/")[0]] = _dequantisation(op)
    return found


def _dequantisation(multiply: Any) -> StoredTensor:
    scale = _constant(multiply.input_value(1).get_node())
    source = multiply.input_value(0).get_node()
    zero_point = np.zeros(scale.shape, dtype=np.int64)
    if source.get_type_name() == "Subtract":
        zero_point = _constant(source.input_value(1).get_node())
        source = source.input_value(0).get_node()
    integers = source.input_value(0) if source.get_type_name() == "Convert" else source.output(0)
    constant = integers.get_node()
    return StoredTensor(
        integers.get_element_type().to_dtype().name,
        tuple(float(s) for s in scale.reshape(-1)),
        tuple(int(z) for z in zero_point.reshape(-1)),
        constant.data.copy() if constant.get_type_name() == "Constant" else None,
    )


def _constant(node: Any) -> NDArray[Any]:
    while node.get_type_name() != "Constant":
        node = node.input_value(0).get_node()
    array: NDArray[Any] = node.data.copy()
    return array

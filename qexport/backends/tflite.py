"""TFLite / LiteRT: lowered with litert-torch, run with ai-edge-litert, read back from the flatbuffer."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qexport.backends import LowerOptions, StoredGraph, StoredTensor
from qexport.cpu import ANY
from qexport.errors import ConversionError, MissingExtraError, VerificationError
from qexport.profile import TFLITE, RuntimeProfile

if TYPE_CHECKING:
    from qexport.plan import QuantPlan
    from qexport.program import Program

_PACKAGES = ("litert_torch", "ai_edge_litert", "torchao", "flatbuffers")
_VALUE = re.compile(r"qexport_(\w+)")
_MAC_OPERATORS = {"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL", "TRANSPOSE_CONV"}
_INTEGER_TYPES = {"INT8", "UINT8", "INT16"}
_METADATA = "metadata.json"


class TFLiteBackend:
    """Writes `.tflite` files that LiteRT, TensorFlow Lite and Ultralytics load."""

    name = "tflite"
    suffix = ".tflite"
    profiles: Mapping[str, RuntimeProfile] = {ANY: TFLITE}
    precisions = frozenset({"fp32", "int8"})
    dynamic = False
    apart = True
    timed = True

    def __init__(self) -> None:
        missing = [package for package in _PACKAGES if find_spec(package) is None]
        if missing:
            raise MissingExtraError(f"format tflite needs {', '.join(missing)}", "pip install 'qexport[tflite]'")

    def lower(
        self,
        program: Program,
        plan: QuantPlan | None,
        metadata: Mapping[str, Any],
        path: Path,
        options: LowerOptions = LowerOptions(),
    ) -> None:
        """Write a `.tflite` file with float input and output and Ultralytics' metadata."""
        import torch

        from qexport.program import copied
        from qexport.simulate import simulated
        from qexport.tags import tag_values

        graph = simulated(program, plan) if plan else copied(program)
        if not metadata["end2end"]:
            # Consumers of one-to-many files multiply coordinates by the image size; see `LiteRunner`.
            height, width = program.imgsz
            graph.get_buffer("decode.unit").div_(torch.tensor([width, height, width, height]))
        tag_values(graph, program)
        example = torch.zeros(program.values["images"].shape)
        with _silence():
            _convert(graph, example, quantised=plan is not None).export(str(path))
        if plan is not None:
            _take_float_input(path)
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
            # A fixed date keeps equal exports byte-identical.
            archive.writestr(zipfile.ZipInfo(_METADATA, (1980, 1, 1, 0, 0, 0)), json.dumps(dict(metadata)))

    def read(self, path: Path) -> StoredGraph:
        """Read types, scales and INT8 weights from the flatbuffer."""
        return _read(path)

    def runner(self, path: Path, threads: int) -> LiteRunner:
        """Load the file into LiteRT."""
        return LiteRunner(path, threads)

    def validation(self) -> contextlib.AbstractContextManager[None]:
        """Nothing special."""
        return contextlib.nullcontext()


class LiteRunner:
    """A `.tflite` file in LiteRT's interpreter on the CPU, with the XNNPACK delegate."""

    def __init__(self, path: Path, threads: int) -> None:
        from ai_edge_litert.interpreter import Interpreter

        with _silence():
            self._interpreter = Interpreter(str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
        self._input = self._interpreter.get_input_details()[0]["index"]
        self._output = self._interpreter.get_output_details()[0]["index"]
        self._end2end = read_metadata(path)["end2end"]

    def run(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one batch; boxes come back in pixels for either head."""
        self._interpreter.set_tensor(self._input, batch)
        self._interpreter.invoke()
        output: NDArray[np.float32] = self._interpreter.get_tensor(self._output)
        if not self._end2end:
            height, width = batch.shape[2:]
            output[:, :4] *= np.array([width, height, width, height], dtype=np.float32)[:, None]
        return output


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata that was appended to the file, as Ultralytics does."""
    with zipfile.ZipFile(path) as archive:
        content: dict[str, Any] = json.loads(archive.read(_METADATA))
    return content


def _convert(graph: Any, example: Any, quantised: bool) -> Any:
    import litert_torch
    import torch
    from litert_torch.quantize.pt2e_quantizer import PT2EQuantizer, get_symmetric_quantization_config
    from litert_torch.quantize.quant_config import QuantConfig

    from qexport.backends.litert_decompositions import is_tested, local_decompositions
    from qexport.backends.litert_export import direct_export

    config = get_symmetric_quantization_config(is_per_channel=True)
    quantisation = QuantConfig(pt2e_quantizer=PT2EQuantizer().set_global(config)) if quantised else None
    try:
        with torch.no_grad():
            if is_tested():
                # Where the quick way fails, the converter's own is slower and decides.
                with contextlib.suppress(Exception), local_decompositions(), direct_export():
                    return litert_torch.convert(graph, (example,), quant_config=quantisation)
            return litert_torch.convert(graph, (example,), quant_config=quantisation)
    except Exception as error:  # the converter raises whatever its passes do
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise ConversionError(f"litert-torch cannot convert this model ({first})", "try another format") from error


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the converter's and the interpreter's own progress lines away from ours."""
    os.environ["LITERT_TORCH_SHOW_PROGRESS"] = "n"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        root.setLevel(level)


def _take_float_input(path: Path) -> None:
    """Put a QUANTIZE operator before an INT8 input: the converter folds the program's own into the signature.

    Float in, float out is what consumers of these files feed.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = _load(path)
    graph = model.subgraphs[0]
    integers = int(graph.inputs[0])
    if graph.tensors[integers].type != schema.TensorType.INT8:
        return
    given = schema.TensorT()
    given.name, given.shape = graph.tensors[integers].name, graph.tensors[integers].shape
    given.type, given.buffer = schema.TensorType.FLOAT32, 0
    graph.tensors[integers].name = given.name + b"_integers"
    graph.tensors.append(given)
    operator = schema.OperatorT()
    operator.opcodeIndex = _opcode(model, schema.BuiltinOperator.QUANTIZE)
    operator.inputs, operator.outputs = [len(graph.tensors) - 1], [integers]
    graph.operators.insert(0, operator)
    graph.inputs = [len(graph.tensors) - 1]
    for signature in model.signatureDefs or ():
        signature.inputs[0].tensorIndex = len(graph.tensors) - 1
    builder = flatbuffers.Builder(path.stat().st_size)
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))


def _opcode(model: Any, builtin: int) -> int:
    """Index of an operator code, added where the model does not have it."""
    from ai_edge_litert import schema_py_generated as schema

    for index, code in enumerate(model.operatorCodes):
        if code.builtinCode == builtin:
            return index
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = builtin
    code.version = 1
    model.operatorCodes.append(code)
    return len(model.operatorCodes) - 1


def _load(path: Path) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))


def _read(path: Path) -> StoredGraph:
    from ai_edge_litert import schema_py_generated as schema

    model = _load(path)
    codes = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}
    types = {code: name for name, code in vars(schema.TensorType).items() if isinstance(code, int)}
    graph = model.subgraphs[0]
    tensors: dict[str, StoredTensor] = {}
    operators: Counter[str] = Counter()
    integer_macs = total_macs = 0
    for operator in graph.operators:
        kind = codes[model.operatorCodes[operator.opcodeIndex].builtinCode]
        inputs = [graph.tensors[i] for i in operator.inputs if i >= 0]
        output = graph.tensors[operator.outputs[0]]
        operators[kind] += 1
        if kind in _MAC_OPERATORS:
            macs = _macs(kind, inputs, output)
            total_macs += macs
            if all(types[t.type] in _INTEGER_TYPES for t in (*inputs[:2], output)):
                integer_macs += macs
        tensors.update(_named(kind, inputs, output, model, types))
    return StoredGraph(tensors, integer_macs, total_macs, dict(sorted(operators.items())))


def _named(kind: str, inputs: list[Any], output: Any, model: Any, types: dict[int, str]) -> dict[str, StoredTensor]:
    """The result, and for a convolution the weight, under the names of the plan."""
    if kind in ("DEQUANTIZE", "PAD"):
        return {}
    # A name such as "a;;b" means that something of b was merged into a.
    owner = _VALUE.match(output.name.decode())
    if owner is None:
        return {}
    found = {owner[1]: _stored(output, types)}
    if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
        data = model.buffers[inputs[1].buffer].data
        integers = None if data is None else _oihw(kind, inputs[1], data)
        found[f"{owner[1]}.weight"] = _stored(inputs[1], types, integers)
    return found


def _stored(tensor: Any, types: dict[int, str], integers: NDArray[np.integer] | None = None) -> StoredTensor:
    quantisation = tensor.quantization
    known = quantisation is not None and quantisation.scale is not None
    scale = tuple(float(s) for s in quantisation.scale) if known else ()
    zero_point = tuple(int(z) for z in quantisation.zeroPoint) if known else ()
    return StoredTensor(types[tensor.type].lower(), scale, zero_point, integers)


def _oihw(kind: str, tensor: Any, data: NDArray[np.uint8]) -> NDArray[np.integer] | None:
    """A constant INT8 weight in PyTorch's layout: (out, in / groups, height, width)."""
    if data.size != int(np.prod(tensor.shape)):
        return None
    weight = data.view(np.int8).reshape(tuple(tensor.shape))
    return weight.transpose(3, 0, 1, 2) if kind == "DEPTHWISE_CONV_2D" else weight.transpose(0, 3, 1, 2)


def _macs(kind: str, inputs: list[Any], output: Any) -> int:
    """Multiply-accumulates of one operator, from its tensors' shapes."""
    elements = int(np.prod(output.shape))
    shape = [int(size) for size in inputs[1].shape]
    if kind == "CONV_2D":
        return elements * shape[1] * shape[2] * shape[3]
    if kind == "DEPTHWISE_CONV_2D":
        return elements * shape[1] * shape[2]
    if kind == "FULLY_CONNECTED":
        return elements * shape[-1]
    if kind == "BATCH_MATMUL":
        return elements * int(inputs[0].shape[-1])
    raise VerificationError(f"multiply-accumulates of {kind} are not known", "report the model")

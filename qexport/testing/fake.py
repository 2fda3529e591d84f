"""A backend that needs no runtime but PyTorch: it obeys plans, and its files can be read back and run.

What `httpx.MockTransport` is to a network: tests of the walk, and of what plug-ins do, need no converter.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qexport.backends.info import BackendInfo, check_precision
from qexport.backends.protocol import Runner
from qexport.lowering.stored import StoredGraph, StoredTensor
from qexport.planning.runtime_profiles import COMMON, LOGISTIC, TFLITE, RuntimeProfile
from qexport.system.machine import ANY

if TYPE_CHECKING:
    from qexport.lowering.request import Lowering

PROFILE = RuntimeProfile("fake", operations={**COMMON, "sigmoid": LOGISTIC}, kept_float=TFLITE.kept_float)
INFO = BackendInfo(
    name="fake",
    title="Fake",
    suffix=".fake",
    runtime="PyTorch, operator by operator",
    precisions=frozenset({"fp32", "fp16", "int8", "int8-dynamic"}),
    profiles={"int8": {ANY: PROFILE}},
    modules=("torchao",),
    packages=("torchao",),
    install="torchao",
    dynamic=True,
    half_scope="weights",
)
NODES, METADATA, CONSTANT = "nodes", "metadata", "constant/"
LAYERS = frozenset({"aten.conv2d.default", "aten.linear.default", "aten.conv_transpose2d.input"})


class FakeBackend:
    """Writes the graph with the plan's Q/DQ pairs as JSON, and its constants as arrays, into one NumPy archive."""

    info = INFO

    def lower(self, request: Lowering, path: Path) -> None:
        """Write the archive; weights are stored as the integers of the plan, or in FP16."""
        from qexport.programs.captured_graph import copied
        from qexport.simulation.rewrite import simulated
        from qexport.testing.graph import to_json

        check_precision(self.info, request.target.precision)
        program, plan = request.program, request.plan
        graph = simulated(program, plan) if plan else copied(program)
        layers = [value for value in program.values.values() if value.weight and value.name not in request.float32]
        half = frozenset(layer.weight for layer in layers) if request.target.precision == "fp16" else frozenset()
        nodes, constants = to_json(graph, half)
        content: dict[str, Any] = {f"{CONSTANT}{name}": array for name, array in constants.items()}
        content |= {NODES: np.array(nodes), METADATA: np.array(json.dumps(dict(request.metadata)))}
        with path.open("wb") as file:  # NumPy gives every member the same date
            np.savez(file, **content)

    def read(self, path: Path) -> StoredGraph:
        """Read the Q/DQ pairs and the integers back; layers between pairs count as integers."""
        rows, constants, metadata = _loaded(path)
        made_by = {row["name"]: row for row in rows}
        macs = {row["name"]: _macs(row, made_by, constants) for row in rows if row.get("target") in LAYERS}
        return StoredGraph(
            {**_activations(rows, made_by), **_weights(rows, made_by, constants)},
            sum(count for name, count in macs.items() if _in_integers(made_by[name], made_by)),
            sum(macs.values()) + sum(_product(row, made_by) for row in rows),
            dict(sorted(Counter(str(row["target"]) for row in rows if row["op"] == "call_function").items())),
            complete=True,
            metadata=metadata,
        )

    def runner(self, path: Path, threads: int) -> Runner:
        """Load the archive; PyTorch's threads are left as they are."""
        return FakeRunner(path)


class FakeRunner:
    """An archive in PyTorch, every operator as it stands."""

    def __init__(self, path: Path) -> None:
        import torch

        self._rows, constants, _ = _loaded(path)
        halves = {name: array.astype(np.float32) for name, array in constants.items() if array.dtype == np.float16}
        self._constants = {name: torch.from_numpy(array) for name, array in {**constants, **halves}.items()}

    def __call__(self, batch: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        """Run one batch."""
        import torch

        from qexport.testing.graph import computed

        with torch.no_grad():
            made = computed(self._rows, self._constants, torch.from_numpy(batch))
        return tuple(each.numpy() for each in (made if isinstance(made, list) else [made]))


Rows = list[dict[str, Any]]
By = Mapping[str, dict[str, Any]]


def _loaded(path: Path) -> tuple[Rows, dict[str, NDArray[Any]], dict[str, Any]]:
    with np.load(path, allow_pickle=False) as archive:
        constants = {name.removeprefix(CONSTANT): archive[name] for name in archive if name.startswith(CONSTANT)}
        return json.loads(str(archive[NODES])), constants, json.loads(str(archive[METADATA]))


def _source(row: Mapping[str, Any], number: int = 0) -> str:
    argument = row["args"][number]
    return str(argument.get("node", "")) if isinstance(argument, dict) else ""


def _activations(rows: Rows, made_by: By) -> dict[str, StoredTensor]:
    found = {}
    for row in rows:
        if str(row.get("target")).startswith("quantized_decomposed.quantize_per_tensor"):
            source, scale, zero_point, dtype = _source(row), row["args"][1], row["args"][2], row["args"][5]["dtype"]
            if made_by[source]["op"] != "get_attr":
                found[source] = StoredTensor(dtype, (scale,), (zero_point,))
    return found


def _weights(rows: Rows, made_by: By, constants: Mapping[str, NDArray[Any]]) -> dict[str, StoredTensor]:
    found = {}
    for row in rows:
        if str(row.get("target")).startswith("quantized_decomposed.dequantize_per_channel"):
            name, scales, zero_points = (str(made_by[_source(row, number)]["constant"]) for number in range(3))
            integers = constants[name]
            stored = tuple(map(float, constants[scales])), tuple(map(int, constants[zero_points]))
            found[name] = StoredTensor(str(integers.dtype), *stored, integers)
    return found


def _in_integers(row: Mapping[str, Any], made_by: By) -> bool:
    given = (str(made_by[_source(row, number)].get("target")) for number in (0, 1))
    return all(target.startswith("quantized_decomposed.dequantize") for target in given)


def _macs(row: Mapping[str, Any], made_by: By, constants: Mapping[str, NDArray[Any]]) -> int:
    weight = made_by[_source(row, 1)]
    if weight["op"] != "get_attr":
        weight = made_by[_source(weight)]
    kernel = constants[weight["constant"]].shape
    elements = made_by[_source(row)]["shape"] if "transpose" in row["target"] else row["shape"]
    return int(np.prod(elements) * np.prod(kernel[1:]))


def _product(row: Mapping[str, Any], made_by: By) -> int:
    if row.get("target") != "aten.matmul.default":
        return 0
    return int(np.prod(row["shape"]) * made_by[_source(row)]["shape"][-1])

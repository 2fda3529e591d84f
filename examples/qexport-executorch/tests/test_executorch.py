"""What the package promises: `pytest` where it is installed. What needs ExecuTorch is skipped where that is not."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from qexport_executorch.backend import MODEL, NAMES, ExecuTorchBackend
from qexport_executorch.graph import DEQUANTISE, aten, integer_graph, prepare
from qexport_executorch.info import INFO, PROFILE

from qexport import Lowering, QuantPlan
from qexport.backends.info import target_for
from qexport.calibration.calibrate import calibrate
from qexport.planning.planner import make_plan
from qexport.programs.captured_graph import copied
from qexport.simulation.simulate import simulation
from qexport.testing import check_backend
from qexport.testing.program import batches, pictures, program

RUNTIME = pytest.mark.skipif(
    find_spec("executorch") is None, reason="needs ExecuTorch: pip install 'executorch>=1.5,<1.6'"
)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> QuantPlan:
    """The small detector's, by the rules of this format."""
    made_of = program()
    table = calibrate(made_of, pictures(tmp_path_factory.mktemp("pictures")), lambda: None)
    return make_plan(made_of, table.statistics, PROFILE, "minmax")


def test_attention_stays_float_and_gates_have_the_scale_of_the_kernel(plan: QuantPlan) -> None:
    kinds = {name: value.operation for name, value in program().values.items()}
    assert {kinds[name] for name in plan.integer}.isdisjoint({"matmul", "softmax"})
    gates = [plan.tensors[name] for name in plan.integer if kinds[name] == "sigmoid"]
    assert {(gate.scale, gate.zero_point) for gate in gates} == {((1 / 256,), (-128,))}


def test_the_graph_computes_what_the_program_does(plan: QuantPlan) -> None:
    for graph, reference in ((copied(program()), program().graph), (integer_graph(program(), plan), None)):
        prepare(graph, program())
        expected = reference or simulation(program(), plan)
        for batch in map(torch.from_numpy, batches()):
            assert torch.equal(graph(batch), expected(batch))


def test_the_graph_has_the_form_that_the_partitioner_takes(plan: QuantPlan) -> None:
    graph = integer_graph(program(), plan)
    prepare(graph, program())
    kinds = [node.target for node in graph.graph.nodes]
    assert aten.chunk.default not in kinds
    assert aten.upsample_nearest2d.vec not in kinds
    dequantised = [node for node in graph.graph.nodes if node.target is DEQUANTISE]
    assert len(dequantised) > len(plan.integer)
    assert {len(node.users) for node in dequantised} == {1}
    assert all(tensor.is_contiguous() for tensor in graph.state_dict().values())


@RUNTIME
@pytest.mark.parametrize("precision", sorted(INFO.precisions))
def test_the_format_keeps_its_promises(precision: str) -> None:
    check_backend(ExecuTorchBackend(), [precision])


@RUNTIME
def test_what_is_read_is_in_the_file_and_not_in_the_names(plan: QuantPlan, tmp_path: Path) -> None:
    """A plan of twice the weights' steps, in a folder that has the other's names."""
    backend, target = ExecuTorchBackend(), target_for(INFO, "int8")
    weight = next(value.weight for value in program().values.values() if plan.is_quantised(value.weight))
    doubled = replace(plan.tensors[weight], scale=tuple(2 * scale for scale in plan.tensors[weight].scale))
    plans = {"one": plan, "other": replace(plan, tensors={**plan.tensors, weight: doubled})}
    for name, each in plans.items():
        backend.lower(Lowering(program(), target, {}, each), tmp_path / name)
    (tmp_path / "other" / NAMES).write_bytes((tmp_path / "one" / NAMES).read_bytes())
    assert (tmp_path / "one" / MODEL).read_bytes() != (tmp_path / "other" / MODEL).read_bytes()
    one, other = (backend.read(tmp_path / name).tensors[weight] for name in plans)
    assert other.scale == pytest.approx([2 * scale for scale in one.scale])


@RUNTIME
def test_programs_of_other_threads_run_on(tmp_path: Path) -> None:
    """Threads that are made anew for one program would be gone for another."""
    backend = ExecuTorchBackend()
    backend.lower(Lowering(program(), target_for(INFO, "fp32"), {}), tmp_path / "one")
    (batch,) = batches(1)
    runners = [backend.runner(tmp_path / "one", threads) for threads in (1, 2, 1)]
    outputs = [runner(batch)[0] for runner in (*runners, *reversed(runners))]
    assert all(output.tobytes() == outputs[0].tobytes() for output in outputs[2:])

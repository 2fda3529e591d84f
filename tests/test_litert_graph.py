"""Graphs that litert-torch 0.10 converts to something else, or not at all, unless they are changed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TinyDecode, captured, lowering, seeded, synthetic_statistics
from torch import Tensor, nn

from qexport.backends.tflite.backend import TFLiteBackend
from qexport.planning.planner import FLOAT_AS_ASKED, make_plan
from qexport.planning.runtime_profiles import TFLITE
from qexport.programs.captured_graph import copied
from qexport.programs.program import Program
from qexport.simulation.rewrite import simulated
from qexport.verification.coverage import check_coverage
from qexport.verification.verify import check_plan

pytest.importorskip("litert_torch", reason="needs the extra qexport[tflite]")
graphs = pytest.importorskip("qexport.backends.tflite.graph_fixes")
operators = pytest.importorskip("qexport.backends.tflite.operators")

dequantize = torch.ops.quantized_decomposed.dequantize_per_tensor.default


class Rows(TinyDecode):
    """Selects rows of a layer's result and of a table of constants by the same numbers."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(-300, 300, 16 * 4).reshape(16, 4))

    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        best = scores.flatten(2).amax(dim=1).topk(5, dim=1).indices.reshape(-1)
        far = self.table.index_select(0, best)
        return far + boxes.flatten(2).permute(0, 2, 1).reshape(-1, 4).index_select(0, best) * 0.5


class TwoReaders(nn.Module):
    """What attention reads is computed without channels last, and two layers read it, which compute with them last."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.body = nn.Sequential(*(nn.Conv2d(8, 8, 1) for _ in range(3)))
        self.norm = nn.LayerNorm(8)
        self.one, self.other = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.box, self.cls = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)
        self.decode = Rows()

    def forward(self, images: Tensor) -> Tensor:
        rows = self.norm(self.body(self.stem(images)).flatten(2).permute(0, 2, 1))
        rotated = rows.permute(0, 2, 1).reshape(1, 8, -1, 1)
        both = self.one(rotated) + self.other(rotated)
        decoded: Tensor = self.decode(self.box(both), self.cls(both))
        return decoded


@pytest.fixture(scope="module")
def program() -> Program:
    return captured(seeded(TwoReaders()))


def test_every_dequantisation_has_one_reader_and_the_graph_computes_the_same(program: Program) -> None:
    plan = make_plan(program, synthetic_statistics(program.values), TFLITE, "minmax")
    before, graph = simulated(program, plan), graphs.prepare_for_litert(simulated(program, plan))
    counts = [
        [len(n.users) for n in g.graph.find_nodes(op="call_function", target=dequantize)] for g in (before, graph)
    ]
    assert max(counts[0]) > 1
    assert set(counts[1]) == {1}
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        torch.testing.assert_close(graph(image), before(image), rtol=0, atol=0)


def test_rows_are_selected_without_a_check_of_their_numbers(program: Program) -> None:
    select = torch.ops.aten.index_select.default
    assert copied(program).graph.find_nodes(op="call_function", target=select)
    assert not graphs.prepare_for_litert(copied(program)).graph.find_nodes(op="call_function", target=select)


@pytest.mark.parametrize("partitioner", ["MINCUT", "GREEDY"])  # the second is that of large graphs
def test_a_file_holds_its_plan_and_constants_stay_float(
    partitioner: str, program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import litert_torch

    monkeypatch.setattr(litert_torch.config, "layout_optimize_partitioner", partitioner)
    plan = make_plan(program, synthetic_statistics(program.values), TFLITE, "minmax", {"cls_conv": FLOAT_AS_ASKED})
    path, backend = tmp_path / "a.tflite", TFLiteBackend()
    backend.lower(lowering(program, "int8", plan), path)
    stored = backend.read(path)
    assert check_plan(program, plan, stored) >= 8
    check_coverage(program, plan, stored)
    tables = [o.inputs[0].dtype for o in operators.read_graph(path).operators if o.kind.startswith("GATHER")]
    assert "FLOAT32" in tables  # the constants, whatever became of the layer's integers
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = simulated(program, plan)(image).numpy()
    assert np.ptp(expected) > 100
    np.testing.assert_allclose(backend.runner(path, 1)(image.numpy())[0], expected, atol=0.05)

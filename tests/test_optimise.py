"""Passes over weights: bias correction against its definition, and what becomes of passes that help, harm or cheat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import captured, demo_images, lowering, seeded, synthetic_statistics
from hard_numbers import Layers, layers
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Interpreter, Node
from torch.nn import functional

from qexport.calibration.calibrate import calibrate
from qexport.errors import ConversionError
from qexport.optimisation.bias_correction import BiasCorrection
from qexport.optimisation.candidate import Candidate, batches
from qexport.optimisation.distance import Distance
from qexport.optimisation.passes import optimise
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import OPENVINO, TFLITE, WEIGHTS
from qexport.programs.captured_graph import module_of
from qexport.programs.program import Program
from qexport.progress import Progress, Silent
from qexport.simulation.meters import MAX_DB, metered, sqnr_of
from qexport.simulation.rewrite import simulated

IMAGES = demo_images("train", 12)
UNSEEN = demo_images("val", 2)


def coarse(plan: QuantPlan, factor: float) -> QuantPlan:
    """The plan with fewer steps for weights: rounding them moves the means of layers."""
    tensors = {
        name: replace(tensor, scale=tuple(scale * factor for scale in tensor.scale))
        if tensor.axis is not None
        else tensor
        for name, tensor in plan.tensors.items()
    }
    return replace(plan, tensors=tensors)


@pytest.fixture(scope="module")
def candidate(demo_program: Program) -> Candidate:
    """The demo model at 96 pixels with weights of 5 bits; raw outputs stay float."""
    statistics = calibrate(demo_program, IMAGES[:4], lambda: None, 1).statistics
    plan = make_plan(demo_program, statistics, replace(OPENVINO, float_boxes=1.0))
    return Candidate(demo_program, coarse(plan, 8), demo_program)


class Raw(Interpreter):
    """Runs a graph and keeps some of its values."""

    def __init__(self, graph: Any, names: Sequence[str]) -> None:
        super().__init__(graph)
        self.kept: dict[str, Tensor] = dict.fromkeys(names, torch.zeros(0))

    def run_node(self, n: Node) -> Any:
        made = super().run_node(n)
        if n.name in self.kept:
            self.kept[n.name] = made
        return made


def largest(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest of each 3 by 3 anchors of (classes, height, width)."""
    padded = np.pad(scores, ((0, 0), (1, 1), (1, 1)))
    found: NDArray[np.float64] = sliding_window_view(padded, (3, 3), axis=(1, 2)).max(axis=(3, 4))
    return found


def overlap(one: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of boxes around the same points by their four sides (4, anchors), in cells: a quarter is the least."""
    one, other = one.clip(min=0), other.clip(min=0)
    left, top, right, bottom = np.minimum(one, other)
    areas = [(each[0] + each[2]).clip(min=0.25) * (each[1] + each[3]).clip(min=0.25) for each in (one, other)]
    shared = (left + right).clip(min=0.25) * (top + bottom).clip(min=0.25)
    found: NDArray[np.float64] = shared / (sum(areas) - shared)
    return found


def raw_distance(candidate: Candidate, images: Sequence[Path]) -> float:
    """`distance` from its definition, for a head with levels of boxes, sides as they are, and scores."""
    program, found = candidate.program, []
    runs = [Raw(g, program.raw.all) for g in (module_of(candidate.reference), simulated(program, candidate.plan))]
    for batch in batches(program, images):
        with torch.no_grad():
            for run in runs:
                run.run(batch)
        lost, certain, noise, power = 0.0, 1.0, 0.0, 9.0
        for boxes, scores in zip(program.raw.boxes, program.raw.scores, strict=True):
            logits = [run.kept[scores][0].double().numpy().clip(min=-8) for run in runs]
            real, other = (1 / (1 + np.exp(-each)) for each in logits)
            sides = [run.kept[boxes][0].double().numpy().reshape(4, -1) for run in runs]
            weight = (real.max(axis=0) ** 2).reshape(-1)
            lost += float(((1 - overlap(*sides)) * weight).sum())
            certain += float(weight.sum())
            noise += float(((largest(real) - largest(other)) ** 2).sum())
            power += float((largest(real) ** 2).sum())
        found.append((noise / power) ** 0.5 + (lost / certain) ** 0.5)
    return float(np.mean(found))


def test_correcting_biases_helps_on_images_that_were_not_seen_and_once_is_enough(candidate: Candidate) -> None:
    passes = (BiasCorrection(), BiasCorrection())
    corrected, (first, second) = optimise(candidate, passes, IMAGES[:8], Silent())
    assert (first.name, first.kept, first.images) == ("bias-correction", True, 4)
    assert first.before == pytest.approx(raw_distance(candidate, IMAGES[:8:2]), rel=2e-3)
    assert first.after == pytest.approx(raw_distance(corrected, IMAGES[:8:2]), rel=2e-3)
    assert first.reason.startswith(f"the distance on images that it did not see is {first.after:.3g}, it was ")
    assert raw_distance(corrected, UNSEEN) < 0.8 * raw_distance(candidate, UNSEEN)
    # A second one adds the same once more: it makes matters worse, and is not kept.
    assert not second.kept
    assert first.after is not None
    assert second.after is not None
    assert second.after > first.after == second.before
    assert second.reason.startswith("reverted: the distance on images that it did not see is")
    assert corrected.program.fingerprint == corrected.plan.program != candidate.program.fingerprint
    assert corrected.reference is candidate.program


def test_a_correction_is_the_mean_of_what_rounding_takes(tmp_path: Path) -> None:
    """Layer by layer with torch's functions: a plain, a depthwise, a transposed and two 1x1 convolutions."""
    program = layers()
    plan = coarse(make_plan(program, None, WEIGHTS), 16)
    module: Any = seeded(Layers())
    corrected = BiasCorrection()(Candidate(program, plan, program), IMAGES[:2], Silent())
    images = torch.cat(list(batches(program, IMAGES[:2])))

    def rounded(name: str) -> Tensor:
        quant, weight = plan.tensors[f"{name}.weight"], getattr(module, name).weight
        shape = [-1 if axis == quant.axis else 1 for axis in range(4)]
        scale = torch.tensor(quant.scale).view(shape)
        seen: Tensor = (weight / scale).round().clamp(-127, 127) * scale
        return seen

    def layer(name: str, apply: Callable[..., Tensor], given: Tensor, **settings: Any) -> Tensor:
        exact = apply(given, getattr(module, name).weight, **settings)
        seen = apply(given, rounded(name), **settings)
        shift = (exact - seen).mean(dim=(0, 2, 3))
        bias = corrected.program.graph.parameter(f"{name}.bias")
        assert float(shift.abs().max()) > 1e-3
        torch.testing.assert_close(bias, getattr(module, name).bias + shift, rtol=1e-4, atol=1e-5)
        output: Tensor = seen + getattr(module, name).bias.view(1, -1, 1, 1)
        return output

    first = layer("first", functional.conv2d, images, padding=1)
    deep = functional.silu(layer("depthwise", functional.conv2d, first, padding=1, groups=16))
    deep = functional.silu(layer("point", functional.conv2d, deep))
    up = layer("up", functional.conv_transpose2d, deep, stride=2)
    for name in ("box", "cls"):
        layer(name, functional.conv2d, up)


class Pass:
    """A third party's pass, which says that it keeps to the rules."""

    name = "theirs"

    def __init__(self, change: Callable[[Candidate], Candidate], promise: str = "") -> None:
        self.change, self.promise, self.seen = change, promise, list[Path]()

    def requires(self, candidate: Candidate, /) -> str:
        return ""

    def __call__(self, candidate: Candidate, images: Sequence[Path], progress: Progress, /) -> Candidate:
        self.seen += images
        return self.change(candidate)

    def ensures(self, before: Candidate, after: Candidate, /) -> str:
        return self.promise


def with_tensors(candidate: Candidate, **changed: TensorQuant) -> Candidate:
    return replace(candidate, plan=replace(candidate.plan, tensors={**candidate.plan.tensors, **changed}))


@pytest.fixture(scope="module")
def small(tiny: Program) -> Candidate:
    return Candidate(tiny, make_plan(tiny, synthetic_statistics(tiny.values), TFLITE), tiny)


def twice(candidate: Candidate, path: str) -> Candidate:
    return candidate.with_parameters({path: candidate.program.graph.parameter(path) * 2})


def scaled(candidate: Candidate, name: str, **changes: Any) -> Candidate:
    return with_tensors(candidate, **{name: replace(candidate.plan.tensors[name], **changes)})


def other_values(candidate: Candidate) -> Candidate:
    values = dict(candidate.program.values)
    values.pop("program_cat")
    return replace(candidate, program=replace(candidate.program, values=values))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda given: scaled(given, "stem_sigmoid", scale=(0.1,)), "the fixed scale of stem_sigmoid has changed"),
        (lambda given: scaled(given, "images", rule="own"), "the fixed scale of images has changed"),
        (lambda given: scaled(given, "program_cat", scale=(0.1,)), "program_cat no longer shares the scale of its"),
        (lambda given: scaled(given, "program_cat", group=""), "groups of shared scales have changed"),
        (lambda given: scaled(given, "box_conv", dtype="int16"), "what is quantised has changed"),
        (
            lambda given: replace(given, plan=replace(given.plan, integer=given.plan.integer - {"box_conv"})),
            "what is quantised has changed",
        ),
        (other_values, "the program's values have changed"),
        (lambda given: replace(given, reference=twice(given, "box.bias").program), "what errors are measured against"),
        (
            lambda given: given.with_parameters({"box.bias": torch.full((4,), torch.inf)}),
            "box.bias is not finite",
        ),
    ],
)
def test_a_pass_that_breaks_a_promise_is_refused(
    small: Candidate, change: Callable[[Candidate], Candidate], reason: str
) -> None:
    kept, (record,) = optimise(small, (Pass(change),), IMAGES[:4], Silent())
    assert kept is small
    assert (record.kept, record.before, record.after) == (False, None, None)
    assert record.reason.startswith(f"refused: {reason}")


def test_a_pass_is_held_to_its_own_promises(small: Candidate) -> None:
    kept, (record,) = optimise(small, (Pass(lambda given: given, "it did not"),), IMAGES[:4], Silent())
    assert (kept, record.reason) == (small, "refused: it did not")
    correction = BiasCorrection()
    assert correction.ensures(small, twice(small, "box.bias")) == ""
    assert correction.ensures(small, twice(small, "box.weight")) == "box.weight has changed, which is no bias"
    assert correction.ensures(small, scaled(small, "box_conv", scale=(9.0,))) == "the plan has changed"


def test_what_makes_it_worse_or_no_better_is_reverted(small: Candidate) -> None:
    bias = small.program.graph.parameter("cls.bias")
    worse, same = Pass(lambda given: given.with_parameters({"cls.bias": bias - 5})), Pass(lambda given: given)
    kept, records = optimise(small, (worse, same), IMAGES[:9], Silent())
    assert kept is small
    assert [record.kept for record in records] == [False, False]
    assert [record.reason[:9] for record in records] == ["reverted:", "reverted:"]
    assert records[0].after is not None
    assert records[0].before is not None
    assert records[0].after > records[0].before == records[1].before == records[1].after
    assert worse.seen == [image for index, image in enumerate(IMAGES[:9]) if index % 2]


@pytest.mark.parametrize(
    ("last", "kept"),
    [((0.7, 0.7, 0.7, 0.7), [True, True]), ((0.9, 1.1, 1.0, 1.1), [False, False])],
    ids=["the second confirms the first", "nothing confirms it"],
)
def test_what_gains_less_than_noise_is_kept_with_what_confirms_it(
    small: Candidate, monkeypatch: pytest.MonkeyPatch, last: tuple[float, ...], kept: list[bool]
) -> None:
    none = np.zeros(4)
    distances = iter(
        Distance(np.array(boxes), none, none) for boxes in ((1.0, 1.0, 1.0, 1.0), (0.7, 1.2, 0.8, 1.1), last)
    )
    monkeypatch.setattr("qexport.optimisation.passes.distance", lambda *_: next(distances))
    first, second = Pass(lambda given: twice(given, "cls.bias")), Pass(lambda given: twice(given, "box.bias"))
    made, records = optimise(small, (first, second), IMAGES[:8], Silent())
    assert [record.kept for record in records] == kept
    changed = [not torch.equal(made.program.graph.parameter(p), small.program.graph.parameter(p)) for p in BIASES]
    assert changed == kept
    assert records[0].reason.endswith("within noise alone, kept with theirs") is kept[0]
    assert records[1].before == pytest.approx(0.95)


BIASES = "cls.bias", "box.bias"


class ForConfidence(Pass):
    """A pass that is for something else than the distance."""

    def gained(self, before: Distance, after: Distance, /) -> tuple[float, float]:
        return self.own

    own = 1.0, 0.1


def test_a_pass_that_is_for_something_else_must_not_make_the_distance_worse(small: Candidate) -> None:
    bias = small.program.graph.parameter("cls.bias")
    same, worse = (
        ForConfidence(lambda given: given),
        ForConfidence(lambda given: given.with_parameters({"cls.bias": bias - 5})),
    )
    idle = ForConfidence(lambda given: given)
    idle.own = 0.1, 0.2
    _, records = optimise(small, (same, worse, idle), IMAGES[:9], Silent())
    assert [record.kept for record in records] == [True, False, False]


def test_what_cannot_be_judged_is_not_run(small: Candidate, tmp_path: Path) -> None:
    worker = Pass(lambda given: twice(given, "neck.bias"))
    kept, (record,) = optimise(small, (worker,), IMAGES[:1], Silent())
    assert (kept, record.reason) == (small, "not run: two images are needed at least, one of them to judge by")
    floats = Candidate(small.program, replace(small.plan, integer=frozenset(), tensors={}), small.program)
    _, (record,) = optimise(floats, (BiasCorrection(),), IMAGES[:4], Silent())
    assert record.reason == "not run: no layer with integer weights has a bias"
    assert not worker.seen


def test_a_file_with_an_operator_that_torch_does_not_take_is_left_alone(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    import numpy as np
    from layer_graphs import Graph, saved, stem

    from qexport.programs.onnx.build import read_onnx
    from qexport.programs.options import CaptureOptions

    graph = Graph()
    stem(graph)
    graph.add("CumSum", graph.x, graph.constant(np.array(1)))
    graph.conv(8, 16, 1)
    path = saved(graph, tmp_path / "stem.onnx")
    program = read_onnx(path, CaptureOptions())[1]
    given = Candidate(program, make_plan(program, None, WEIGHTS), program)
    kept, (record,) = optimise(given, (BiasCorrection(),), IMAGES[:4], Silent())
    assert kept is given
    assert record.reason.startswith("not run: errors inside of the graph cannot be measured: operator CumSum of node ")


def test_a_corrected_candidate_is_measured_against_the_reference(tiny: Program) -> None:
    """Against itself it would look perfect: no weight of it is rounded."""
    floats = QuantPlan("by hand", tiny.fingerprint, frozenset(), dict.fromkeys(tiny.values, TensorQuant("float32")))
    bias = tiny.graph.parameter("box.bias")
    moved = Candidate(tiny, floats, tiny).with_parameters({"box.bias": bias + 0.5})
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    graphs = metered(moved.program, moved.plan, moved.reference), metered(moved.program, moved.plan)
    for graph in graphs:
        assert torch.equal(graph(images), moved.program.graph(images))
    real = Raw(module_of(tiny), ["box_conv"])
    real.run(images)
    expected = real.kept["box_conv"].double().square().mean() / 0.5**2
    assert sqnr_of(graphs[0])["box_conv"] == pytest.approx(float(10 * expected.log10()), abs=1e-3)
    assert sqnr_of(graphs[0])["cls_conv"] == sqnr_of(graphs[1])["box_conv"] == MAX_DB


def test_other_weights_are_another_program(tiny: Program) -> None:
    changed = tiny.with_parameters({"box.bias": torch.ones(4)})
    assert changed.fingerprint != tiny.fingerprint
    assert changed.graph.parameter("box.bias").tolist() == [1.0] * 4
    assert tiny.graph.parameter("box.bias").tolist() != [1.0] * 4
    assert changed.graph.parameter("stem.weight").data_ptr() == tiny.graph.parameter("stem.weight").data_ptr()
    assert changed.with_parameters({"box.bias": torch.zeros(4)}).fingerprint != changed.fingerprint
    with pytest.raises(ValueError, match=r"box\.bias"):
        tiny.with_parameters({"box.bias": torch.ones(3)})
    with pytest.raises(KeyError, match=r"nobody\.bias"):
        tiny.with_parameters({"nobody.bias": torch.ones(4)})
    with pytest.raises(ConversionError, match="made for another program"):
        Candidate(changed, make_plan(tiny, None, WEIGHTS), tiny)


def test_a_corrected_file_obeys_its_own_program(tmp_path: Path) -> None:
    """Verification goes by the candidate's weights; by those that it came with its biases would be wrong."""
    pytest.importorskip("onnxruntime", reason="needs the extra qexport[onnx]")
    from qexport.backends.registry import find_backend
    from qexport.errors import VerificationError
    from qexport.planning.runtime_profiles import ONNXRUNTIME
    from qexport.verification.constants import check_biases
    from qexport.verification.verify import check_plan

    program = captured(seeded(Layers()))
    plan = make_plan(program, synthetic_statistics(program.values), replace(ONNXRUNTIME, float_stem=0.0))
    given = Candidate(program, coarse(plan, 16), program)
    corrected = BiasCorrection()(given, IMAGES[:2], Silent())
    backend, path = find_backend("onnx"), tmp_path / "a.onnx"
    backend.lower(lowering(corrected.program, "int8", corrected.plan), path)
    stored = backend.read(path)
    assert check_plan(corrected.program, corrected.plan, stored) > 5
    assert check_biases(corrected.program, corrected.plan, stored) > 2
    with pytest.raises(VerificationError, match=r"biases in the file are not the program's: first\.bias"):
        check_biases(given.program, given.plan, stored)

"""Verification must notice: a wrong scale, zero point, type or weight, and a runtime that computes something else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import demo_image, demo_images
from numpy.typing import NDArray

from qexport.calibration.calibration_table import CalibrationTable
from qexport.errors import VerificationError
from qexport.lowering.stored import StoredGraph, StoredTensor
from qexport.planning.plan import QuantPlan
from qexport.planning.planner import make_plan
from qexport.planning.runtime_profiles import TFLITE
from qexport.programs.program import Program
from qexport.programs.sample_inputs import sample_inputs
from qexport.simulation.rewrite import simulated
from qexport.verification.coverage import check_coverage
from qexport.verification.output_check import compared
from qexport.verification.verify import check_plan, verify

Batch = NDArray[np.float32]
VALUE, WEIGHT = "model_3_conv", "model_3_conv.weight"


@pytest.fixture(scope="module")
def plan(demo_one2many: Program, demo_table: CalibrationTable) -> QuantPlan:
    return make_plan(demo_one2many, demo_table.statistics, TFLITE)


@pytest.fixture(scope="module")
def stored(demo_one2many: Program, plan: QuantPlan) -> StoredGraph:
    """What a file holds that obeys the plan: scales as planned, weights rounded by NumPy."""
    tensors = {}
    for value in demo_one2many.values.values():
        if value.name not in plan.integer:
            continue
        planned = plan.tensors[value.name]
        tensors[value.name] = StoredTensor("int8", planned.scale, planned.zero_point)
        if value.weight:
            weight = demo_one2many.graph.parameter(value.weight).double().numpy()
            scales = np.abs(weight).reshape(len(weight), -1).max(axis=1) / 127
            integers = np.round(weight / scales[:, None, None, None]).astype(np.int8)
            tensors[f"{value.name}.weight"] = StoredTensor(
                "int8", tuple(float(np.float32(s)) for s in scales), (0,) * len(scales), integers
            )
    total = sum(value.macs for value in demo_one2many.values.values())
    integer = sum(value.macs for value in demo_one2many.values.values() if value.name in plan.integer)
    return StoredGraph(tensors, integer, total, {})


def with_tensor(stored: StoredGraph, key: str, **changes: object) -> StoredGraph:
    return replace(stored, tensors={**stored.tensors, key: replace(stored.tensors[key], **changes)})  # type: ignore[arg-type]


class Simulation:
    """A runtime that obeys the plan to the bit."""

    def __init__(self, program: Program, plan: QuantPlan) -> None:
        self.graph = simulated(program, plan)

    def __call__(self, batch: Batch) -> tuple[Batch, ...]:
        with torch.no_grad():
            output: Batch = self.graph(torch.from_numpy(batch)).numpy()
        return (output,)


class Garbage:
    """A runtime that finds confident objects where there are none."""

    def __call__(self, batch: Batch) -> tuple[Batch, ...]:
        generator = np.random.default_rng(0)
        boxes = generator.uniform(100, 200, (1, 4, 2100))
        boxes[:, 2:] = generator.uniform(5, 20, (1, 2, 2100))
        return (np.concatenate((boxes, generator.uniform(0, 0.9, (1, 6, 2100))), axis=1).astype(np.float32),)


def test_a_file_that_obeys_passes(demo_one2many: Program, plan: QuantPlan, stored: StoredGraph) -> None:
    inputs = [demo_image((320, 320), index).numpy() for index in range(2)]
    found = verify(demo_one2many, plan, stored, Simulation(demo_one2many, plan), inputs)
    assert found.tensors == len(stored.tensors)
    assert found.unnamed == sum(not t.is_float for t in plan.tensors.values()) - len(stored.tensors)
    assert (found.agreement, found.images) == (1.0, 2)
    assert (found.min_agreement, found.shift, found.remark) == (0.8, 0.0, "")
    assert found.overlap == pytest.approx(1.0)
    assert 0.95 < found.coverage < 0.999  # attention and raw boxes are the rest


def scaled(values: tuple[float, ...], factor: float) -> tuple[float, ...]:
    return (values[0] * factor, *values[1:])


def one_more(weights: NDArray[np.integer], by: int) -> NDArray[np.integer]:
    changed = weights.astype(np.int32)
    changed[2, 1, 0, 1] += by if changed[2, 1, 0, 1] < 100 else -by
    return changed


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        (VALUE, lambda t: {"scale": scaled(t.scale, 1.001)}, r"model_3_conv: scale .* instead of "),
        (VALUE, lambda t: {"scale": t.scale * 2}, r"model_3_conv: scale"),
        (VALUE, lambda t: {"scale": ()}, r"model_3_conv: scale"),
        (VALUE, lambda t: {"zero_point": (t.zero_point[0] + 1,)}, r"model_3_conv: zero point .* instead of "),
        (VALUE, lambda t: {"dtype": "float32", "scale": ()}, r"model_3_conv: float32 instead of int8"),
        (VALUE, lambda t: {"dtype": "uint8"}, r"model_3_conv: uint8 instead of int8"),
        (WEIGHT, lambda t: {"dtype": "float32"}, r"model\.3\.conv\.weight: float32 instead of int8"),
        (WEIGHT, lambda t: {"scale": scaled(t.scale, 1.01)}, r"model\.3\.conv\.weight: scale"),
        (WEIGHT, lambda t: {"scale": t.scale[:1], "zero_point": (0,)}, r"model\.3\.conv\.weight: scale"),
        (WEIGHT, lambda t: {"zero_point": (1,) * len(t.scale)}, r"model\.3\.conv\.weight: zero point"),
        (
            WEIGHT,
            lambda t: {"integers": one_more(t.integers, 2)},
            r"model\.3\.conv\.weight: weights are [12]\.\d\d steps away",
        ),
        (WEIGHT, lambda t: {"integers": -t.integers}, r"model\.3\.conv\.weight: weights are \d+\.\d\d steps away"),
    ],
)
def test_a_tensor_that_differs_is_named(
    key: str,
    change: Callable[[StoredTensor], dict[str, object]],
    message: str,
    demo_one2many: Program,
    plan: QuantPlan,
    stored: StoredGraph,
) -> None:
    wrong = with_tensor(stored, key, **change(stored.tensors[key]))
    with pytest.raises(VerificationError, match=rf"^tflite: the file differs from the plan in {message}"):
        check_plan(demo_one2many, plan, wrong)


def test_a_single_weight_that_is_rounded_the_wrong_way_is_noticed(
    demo_one2many: Program, plan: QuantPlan, stored: StoredGraph
) -> None:
    weights = stored.tensors[WEIGHT].integers
    assert weights is not None
    rounded = with_tensor(stored, WEIGHT, integers=one_more(weights, 1))
    with pytest.raises(VerificationError, match=r"model\.3\.conv\.weight: weights are"):
        check_plan(demo_one2many, plan, rounded)


@pytest.mark.parametrize("change", [-0.02, 0.01])
def test_more_or_fewer_integers_than_planned_fail(
    change: float, demo_one2many: Program, plan: QuantPlan, stored: StoredGraph
) -> None:
    wrong = replace(stored, integer_macs=int(stored.integer_macs + change * stored.total_macs))
    check_coverage(demo_one2many, plan, stored)
    with pytest.raises(VerificationError, match=r"of the arithmetic is in integers, 9\d\.\d% was planned"):
        check_coverage(demo_one2many, plan, wrong)


def test_nothing_is_verified_without_an_image(demo_one2many: Program, plan: QuantPlan, stored: StoredGraph) -> None:
    with pytest.raises(VerificationError, match="no image to verify with: add --data"):
        verify(demo_one2many, plan, stored, Simulation(demo_one2many, plan), [])


def test_many_differences_are_counted(demo_one2many: Program, plan: QuantPlan, stored: StoredGraph) -> None:
    keys = [key for key in stored.tensors if not key.endswith(".weight")][:10]
    wrong = stored
    for key in keys:
        wrong = with_tensor(wrong, key, zero_point=(5000,))
    with pytest.raises(VerificationError, match=r" and 7 more: ") as caught:
        check_plan(demo_one2many, plan, wrong)
    assert str(caught.value).count("zero point") == 3


def test_a_file_that_names_too_little_proves_nothing(
    demo_one2many: Program, plan: QuantPlan, stored: StoredGraph
) -> None:
    few = replace(stored, tensors=dict(list(stored.tensors.items())[:20]))
    with pytest.raises(VerificationError, match="only 20 planned tensors are in the file"):
        check_plan(demo_one2many, plan, few)


def test_a_runtime_that_computes_something_else_fails(
    demo_one2many: Program, plan: QuantPlan, stored: StoredGraph
) -> None:
    inputs = [demo_image((320, 320)).numpy()]
    found = compared(simulated(demo_one2many, plan), demo_one2many, Garbage(), inputs)
    assert found.share is not None
    assert found.share < 0.1
    message = r"only \d+% of the detections agree with the program's, 80% is the least"
    with pytest.raises(VerificationError, match=message):
        verify(demo_one2many, plan, stored, Garbage(), inputs)


class Timid(Simulation):
    """A runtime that finds what the program does with three quarters of its confidence."""

    def __call__(self, batch: Batch) -> tuple[Batch, ...]:
        output, *rest = super().__call__(batch)
        return (np.concatenate((output[:, :4], 0.75 * output[:, 4:]), axis=1), *rest)


def test_a_runtime_with_other_scores_fails(demo_one2many: Program, plan: QuantPlan, stored: StoredGraph) -> None:
    inputs = [demo_image((320, 320)).numpy()]
    with pytest.raises(VerificationError, match=r"scores are -0\.\d+ off the program's on average, 0\.\d+ is the most"):
        verify(demo_one2many, plan, stored, Timid(demo_one2many, plan), inputs)


class Wrong(Simulation):
    """A runtime that gets one thing in the middle wrong: a scale, a zero point, or the sign of a layer's weights."""

    def __init__(self, program: Program, plan: QuantPlan, kind: str) -> None:
        super().__init__(program, plan)
        changed = 0
        for node in self.graph.graph.nodes:
            if kind == "weights" and node.name == "model_16_cv1_conv":
                with self.graph.graph.inserting_before(node):
                    negated = self.graph.graph.call_function(torch.ops.aten.neg.default, (node.args[1],))
                node.args = (node.args[0], negated, *node.args[2:])
                changed += 1
            elif "dequantize_per_tensor" in str(node.target) and node.args[0].args[0].name == "model_16_cv2_mul":
                scale, zero_point = node.args[1:3]
                node.args = (node.args[0], *WRONG[kind](scale, zero_point), *node.args[3:])
                changed += 1
        assert changed == 1 + (kind == "weights")
        self.graph.recompile()


WRONG: dict[str, Callable[[float, int], tuple[float, int]]] = {
    "scale": lambda scale, zero_point: (2 * scale, zero_point),
    "zero point": lambda scale, zero_point: (scale, zero_point + 40),
    "weights": lambda scale, zero_point: (scale, zero_point),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_runtime_with_one_wrong_number_fails(
    kind: str, demo_one2many: Program, plan: QuantPlan, stored: StoredGraph
) -> None:
    inputs = [demo_image((320, 320)).numpy()]
    with pytest.raises(VerificationError, match=r"program's.*: the runtime computes something else"):
        verify(demo_one2many, plan, stored, Wrong(demo_one2many, plan, kind), inputs)


class Silent:
    """A runtime that finds nothing at all."""

    def __call__(self, batch: Batch) -> tuple[Batch, ...]:
        return (np.zeros((1, 10, 2100), dtype=np.float32),)


def test_a_runtime_that_finds_nothing_fails(demo_one2many: Program, plan: QuantPlan, stored: StoredGraph) -> None:
    with pytest.raises(VerificationError, match=r"only 0% of the detections agree"):
        verify(demo_one2many, plan, stored, Silent(), [demo_image((320, 320)).numpy()])


def test_samples_have_the_programs_shape_and_skip_what_cannot_be_read(demo_one2many: Program, tmp_path: object) -> None:
    from pathlib import Path

    empty = Path(str(tmp_path)) / "empty.jpg"
    empty.touch()
    good = demo_images("val", 3)
    samples = sample_inputs([empty, *good], demo_one2many, count=2)
    assert [s.shape for s in samples] == [(1, 3, 320, 320)] * 2
    np.testing.assert_array_equal(samples[0], demo_image((320, 320), 0).numpy())
    np.testing.assert_array_equal(samples[1], demo_image((320, 320), 1).numpy())


def complete(stored: StoredGraph, plan: QuantPlan) -> StoredGraph:
    """A file of a format that keeps every name, and calls weights by their parameter paths."""
    floats = {name for name, tensor in plan.tensors.items() if not tensor.is_float and tensor.axis is None}
    inputs = {n: StoredTensor("int8", plan.tensors[n].scale, plan.tensors[n].zero_point) for n in floats - plan.integer}
    return replace(stored, tensors={**stored.tensors, **inputs}, complete=True)


def test_a_complete_file_that_obeys_passes_with_every_tensor(
    demo_one2many: Program, plan: QuantPlan, stored: StoredGraph
) -> None:
    every = sum(not tensor.is_float for tensor in plan.tensors.values())
    assert check_plan(demo_one2many, plan, complete(stored, plan)) == every
    # Others are not asked for what float operations write.
    assert check_plan(demo_one2many, plan, replace(complete(stored, plan), complete=False)) < every


@pytest.mark.parametrize(("key", "name"), [("images", "images"), (VALUE, VALUE), (WEIGHT, r"model\.3\.conv\.weight")])
def test_a_tensor_that_a_complete_file_lacks_is_missing(
    demo_one2many: Program, plan: QuantPlan, stored: StoredGraph, key: str, name: str
) -> None:
    whole = complete(stored, plan)
    lacking = replace(whole, tensors={k: v for k, v in whole.tensors.items() if k != key})
    with pytest.raises(VerificationError, match=f"the file differs from the plan in {name}: missing"):
        check_plan(demo_one2many, plan, lacking)
    # Of other formats nobody asks what became of it.
    whole_found, found = (check_plan(demo_one2many, plan, replace(s, complete=False)) for s in (whole, lacking))
    assert found == whole_found - (key in plan.integer or key == WEIGHT)


def test_weights_are_found_by_their_parameter_path_too(
    demo_one2many: Program, plan: QuantPlan, stored: StoredGraph
) -> None:
    path = demo_one2many.values[VALUE].weight
    renamed = {path if key == WEIGHT else key: tensor for key, tensor in stored.tensors.items()}
    moved = replace(stored, tensors=renamed)
    assert check_plan(demo_one2many, plan, moved) == check_plan(demo_one2many, plan, stored)
    wrong = with_tensor(moved, path, scale=tuple(2 * s for s in stored.tensors[WEIGHT].scale))
    with pytest.raises(VerificationError, match=r"model\.3\.conv\.weight: scale"):
        check_plan(demo_one2many, plan, wrong)

"""Check an artifact: is the plan in the file, and does the runtime compute what the plan says?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qexport.backends import Runner, StoredGraph, StoredTensor
from qexport.errors import VerificationError
from qexport.lowering.simulate import simulated
from qexport.measurement.accuracy import agreement
from qexport.planning.arithmetic import INT8_NARROW, SMALLEST_SCALE
from qexport.planning.plan import QuantPlan, TensorQuant
from qexport.planning.planner import weight_array
from qexport.programs.float_graph import FileGraph, FloatGraph
from qexport.programs.program import Program, every_output
from qexport.verification.output_fidelity import comparisons

LEAST_AGREEMENT = 0.65
"""Share of detections that program and runtime must have in common.

Kernels round differently, and a score near the threshold falls on one side or the other.
"""
SAME_BOX = 0.8
"""Intersection over union from which two boxes are the same detection."""
LEAST_COSINE = 0.9
"""Cosine similarity that prototypes of masks, and outputs of unknown meaning, have at least; INT8 was seen to keep
more than 0.99 of prototypes."""
LEAST_NAMED = 0.85
"""Share of the planned tensors that a file must still name; converters merge a few into their neighbours."""
HALF_A_STEP = 0.51
"""A weight lies at most half a step from its integer; the rest is float rounding."""
COVERAGE_TOLERANCE = 0.005
CONFIDENCE = 0.25
FEW = 20
MOST_SHIFT = 0.1
"""Mean difference of the best scores, simulated and of the runtime; single ones drift by as much."""
SCALE_TOLERANCE = 1e-5
SHOWN = 3


@dataclass(frozen=True)
class Verification:
    """What was checked of one artifact.

    Attributes:
        tensors: planned tensors found in the file with dtype, scale and zero point as planned.
        unnamed: planned tensors that the converter merged into another kernel, so that no name is left to check.
        agreement: share of detections that simulation and runtime have in common, 0..1; None when neither finds
            anything on the sample images.
        images: images that the agreement is of.
        coverage: share of multiply-accumulates in integer kernels, 0..1, counted from the file.
        cosine: in place of the agreement where nobody knows what the outputs mean: least cosine similarity of an
            output, or mean of those of its columns.
    """

    tensors: int
    unnamed: int
    agreement: float | None
    images: int
    coverage: float
    cosine: float | None = None


def verify(
    program: Program,
    plan: QuantPlan,
    stored: StoredGraph,
    runner: Runner,
    inputs: Sequence[NDArray[np.float32]],
    reference: FloatGraph | None = None,
) -> Verification:
    """Compare an artifact with its plan and with the simulated program.

    Args:
        inputs: batches (n, channels, height, width) of real images.
        reference: the simulated program, where the caller has one that it learns more from.

    Raises:
        VerificationError: a tensor differs from the plan, a planned tensor stayed float, or outputs disagree.
    """
    found = check_plan(program, plan, stored)
    check_coverage(program, plan, stored)
    same = check_outputs(reference or simulation(program, plan), program, runner, inputs, plan.profile)
    planned = sum(not t.is_float for t in plan.tensors.values())
    agreement, cosine = (None, same) if program.head == "unknown" else (same, None)
    return Verification(found, planned - found, agreement, len(inputs) * program.batch, stored.coverage, cosine)


def simulation(program: Program, plan: QuantPlan) -> FloatGraph:
    """The program in which every quantised value passes through its integers, whatever it is made of."""
    graph = program.graph
    return graph.simulated(program, plan) if isinstance(graph, FileGraph) else simulated(program, plan)


def check_outputs(
    reference: FloatGraph, program: Program, runner: Runner, inputs: Sequence[NDArray[np.float32]], runtime: str
) -> float | None:
    """Compare a runtime's detections with those of a graph; return their agreement, None if there are none.

    Where nobody knows what the outputs mean their likeness is returned (`output_likeness`).

    Raises:
        VerificationError: there is no image to compare on, too few detections agree, or their scores lie elsewhere.
    """
    if not inputs:
        raise VerificationError(f"{runtime}: no image to verify with", "add --data")
    if program.head == "unknown":
        return output_likeness(reference, program, runner, inputs, runtime)
    shared, shifts = compared(reference, program, runner, inputs)
    if shared is not None and shared < LEAST_AGREEMENT:
        raise VerificationError(
            f"{runtime}: only {shared:.0%} of the detections agree with the program's",
            "the runtime computes something else: report the model and the runtime's version",
        )
    check_shift(shifts, runtime)
    return shared


def check_coverage(program: Program, plan: QuantPlan, stored: StoredGraph) -> None:
    """Compare the integer share of multiply-accumulates, counted from the file, with the planned one.

    Raises:
        VerificationError: more or fewer run in integers than planned.
    """
    total = sum(value.macs for value in program.values.values())
    planned = sum(value.macs for value in program.values.values() if value.name in plan.integer) / max(total, 1)
    if abs(stored.coverage - planned) > COVERAGE_TOLERANCE:
        raise VerificationError(
            f"{plan.profile}: {stored.coverage:.1%} of the arithmetic is in integers, {planned:.1%} was planned",
            "the converter did not obey the plan: report the model and the converter's version",
        )


def check_plan(program: Program, plan: QuantPlan, stored: StoredGraph) -> int:
    """Compare every planned tensor that the file names; return how many were found.

    Raises:
        VerificationError: some differ, or too few are named at all.
    """
    wrong, found = [], set()  # of names: the weight of a layer that is used twice is one tensor
    planned = list(_planned(program, plan, stored.complete))
    for key, name, tensor in planned:
        called = (key, name, *_merged_name(program, key))
        kept = next((stored.tensors[each] for each in called if each in stored.tensors), None)
        if kept is None:
            if stored.complete:
                wrong.append(f"{name}: missing")
            continue
        difference = _difference(program, name, tensor, kept)
        if difference:
            wrong.append(f"{name}: {difference}")
        found.add(name)
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise VerificationError(
            f"{plan.profile}: the file differs from the plan in {'; '.join(wrong[:SHOWN])}{more}",
            "the converter did not obey the plan: report the model and the converter's version",
        )
    if len(found) < LEAST_NAMED * len({name for _, name, _ in planned}):
        raise VerificationError(
            f"{plan.profile}: only {len(found)} planned tensors are in the file", "report the model"
        )
    return len(found)


def _merged_name(program: Program, key: str) -> Iterator[str]:
    """What a file calls a layer's weight where the layer's kernel computes the activation, too, and has its name."""
    layer, _, end = key.rpartition(".")
    readers = program.readers.get(layer, ())
    if end == "weight" and len(readers) == 1:
        yield f"{readers[0].name}.weight"


def _planned(program: Program, plan: QuantPlan, every: bool) -> Iterator[tuple[str, str, TensorQuant]]:
    """(key in the file, name in the plan, decision) for quantised tensors that an integer operation writes or holds.

    With `every`, those too that float operations write and integer ones read.
    """
    for value in program.values.values():
        if plan.is_quantised(value.name) and (every or value.name in plan.integer):
            yield value.name, value.name, plan.tensors[value.name]
        if value.weight and value.name in plan.integer:
            yield f"{value.name}.weight", value.weight, plan.tensors[value.weight]


def _difference(program: Program, name: str, planned: TensorQuant, stored: StoredTensor) -> str:
    if stored.dtype != planned.dtype:
        return f"{stored.dtype} instead of {planned.dtype}"
    if len(stored.scale) != len(planned.scale) or not np.allclose(
        stored.scale, planned.scale, rtol=SCALE_TOLERANCE, atol=SMALLEST_SCALE
    ):
        return f"scale {stored.scale[:1]} instead of {planned.scale[:1]}"
    if stored.zero_point != planned.zero_point:
        return f"zero point {stored.zero_point[:1]} instead of {planned.zero_point[:1]}"
    if stored.integers is not None:
        return _weight_difference(weight_array(program, name), planned, stored.integers)
    return ""


def _weight_difference(weight: NDArray[np.float32], planned: TensorQuant, integers: NDArray[np.integer]) -> str:
    assert planned.axis is not None
    shape = [1] * weight.ndim
    shape[planned.axis] = -1
    scales = np.array(planned.scale, dtype=np.float32).reshape(shape)
    low, high = INT8_NARROW.low, INT8_NARROW.high
    furthest = float(np.abs(np.clip(weight / scales, low, high) - integers).max())
    return f"weights are {furthest:.2f} steps away" if furthest > HALF_A_STEP else ""


def compared(
    reference: FloatGraph, program: Program, runner: Runner, inputs: Sequence[NDArray[np.float32]]
) -> tuple[float | None, list[Tensor]]:
    """Compare what a graph and a runtime find.

    Returns:
        The share of detections that they have in common, 0..1, None if there are none; and for each image the
        differences of their best scores, the runtime's minus the graph's. Of a classifier it is the share of
        probability: which of two like answers is the first says nothing.
    """
    paired, total = 0.0, 0
    shifts: list[Tensor] = []
    with torch.no_grad():
        for batch in inputs:
            expected = every_output(reference(torch.from_numpy(batch)))
            actual = [torch.from_numpy(output) for output in runner.outputs(batch)]
            if program.prototypes:
                check_prototypes(expected[1], actual[1])
            if program.head == "classifier":
                paired, total = paired + float(torch.minimum(expected[0], actual[0]).sum()), total + len(expected[0])
                continue
            centred = program.further.kind == "angles" or program.head == "queries"
            settings = program.final, program.classes, program.further.kind == "angles", centred
            for one, other in zip(*(confident(o[0], *settings) for o in (expected, actual)), strict=True):
                both, number = agreement((one[:, :4], one[:, 5]), (other[:, :4], other[:, 5]), SAME_BOX)
                paired, total = paired + both, total + number
                both_have = min(len(one), len(other))
                shifts.append(other[:both_have, 4] - one[:both_have, 4])
    return (paired / total if total else None), shifts


def check_shift(shifts: Sequence[Tensor], runtime: str) -> None:
    """Raise `VerificationError` where a runtime's best scores lie elsewhere than the program's on average."""
    found = torch.cat([torch.zeros(0), *shifts])
    if len(found) and not abs(float(found.mean())) <= MOST_SHIFT:
        raise VerificationError(
            f"{runtime}: scores are {float(found.mean()):+.2f} off the program's on average, {MOST_SHIFT} is the most",
            "the runtime computes something else: report the model and the runtime's version",
        )


def output_likeness(
    reference: FloatGraph, program: Program, runner: Runner, inputs: Sequence[NDArray[np.float32]], runtime: str
) -> float | None:
    """Return the least cosine similarity of an output, as a whole or in the mean of its columns.

    Raises:
        VerificationError: it is less than `LEAST_COSINE`.
    """
    found = comparisons(program)
    for batch in inputs:
        expected = every_output(reference(torch.from_numpy(batch)))
        for comparison, one, other in zip(found, expected, runner.outputs(batch), strict=True):
            comparison.add(one.numpy(), other)
    least: float | None = None
    for each in (comparison.fidelity for comparison in found):
        for cosine in (each.cosine, each.columns):
            if cosine is not None and not cosine >= LEAST_COSINE:
                raise VerificationError(
                    f"{runtime}: output {each.name} is only {cosine:.2f} like the program's (cosine)",
                    "the runtime computes something else: report the model and the runtime's version",
                )
            least = cosine if least is None or cosine is None else min(least, cosine)
    return least


def check_prototypes(expected: Tensor, actual: Tensor) -> None:
    """Raise `VerificationError` where a runtime's prototypes of masks point elsewhere than the program's."""
    cosine = float(torch.nn.functional.cosine_similarity(expected.flatten(), actual.flatten(), dim=0))
    if not cosine >= LEAST_COSINE:
        raise VerificationError(
            f"the prototypes of masks are {cosine:.2f} like the program's, {LEAST_COSINE} is the least",
            "the runtime computes something else: report the model and the runtime's version",
        )


def detections(
    output: Tensor, final: bool, classes: int = 0, turned: bool = False, centred: bool = False
) -> list[tuple[Tensor, Tensor]]:
    """(boxes, classes) of each image's `confident` detections."""
    found = confident(output, final, classes, turned, centred)
    return [(rows[:, :4], rows[:, 5]) for rows in found]


def confident(
    output: Tensor, final: bool, classes: int = 0, turned: bool = False, centred: bool = False
) -> list[Tensor]:
    """Rows (box, score, class) of each image, best first: the confident ones, or where there are none the best few.

    Args:
        final: the output's rows are detections.
        classes: how many there are; 0 for all columns behind the box.
        turned: boxes have an angle; they are compared as upright ones of their centre and size.
        centred: what was found is a centre and a size, too, not two corners.
    """
    from ultralytics.utils.nms import non_max_suppression
    from ultralytics.utils.ops import xywh2xyxy

    found = non_max_suppression(
        output.clone(), conf_thres=0.001, iou_thres=0.7, end2end=final, nc=classes, rotated=turned
    )
    kept = []
    for rows in found:
        ranked = rows[rows[:, 4].argsort(descending=True)]
        count = int((ranked[:, 4] >= CONFIDENCE).sum()) or min(FEW, len(ranked))
        boxes = ranked[:count, :4]
        corners = xywh2xyxy(boxes) if turned or centred else boxes
        kept.append(torch.cat((corners, ranked[:count, 4:6]), dim=1))
    return kept


def sample_inputs(paths: Sequence[Path], program: Program, count: int = 4) -> list[NDArray[np.float32]]:
    """Read up to `count` batches of different images, each of the program's shape; a short last one is filled up."""
    from qexport.data.images import stream

    read = stream(paths, program.imgsz, lambda *_: None, *program.given)
    pixels = [program.form.applied(image) for _, image in islice(read, count * program.batch)]
    batches = [pixels[i : i + program.batch] for i in range(0, len(pixels), program.batch)]
    return [np.stack([batch[i % len(batch)] for i in range(program.batch)]) for batch in batches]

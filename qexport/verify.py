"""Check an artifact: is the plan in the file, and does the runtime compute what the plan says?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qexport.accuracy import agreement
from qexport.arithmetic import INT8_NARROW, quantise
from qexport.backends import Runner, StoredGraph, StoredTensor
from qexport.errors import VerificationError
from qexport.plan import QuantPlan, TensorQuant
from qexport.planner import weight_array
from qexport.program import Program
from qexport.simulate import simulated

LEAST_AGREEMENT = 0.75
"""Share of detections that simulation and runtime must have in common.

Kernels round differently, and a score near the threshold falls on one side or the other; a wrong scale anywhere
leaves next to nothing in common.
"""
CONFIDENCE = 0.25
FEW = 20
SCALE_TOLERANCE = 1e-5
SHOWN = 3


@dataclass(frozen=True)
class Verification:
    """What was checked of one artifact.

    Attributes:
        tensors: planned tensors found in the file with dtype, scale and zero point as planned.
        unnamed: planned tensors that the converter merged into another kernel, so that no name is left to check.
        agreement: share of detections that simulation and runtime have in common, 0..1.
        images: images that the agreement is of.
        coverage: share of multiply-accumulates in integer kernels, 0..1, counted from the file.
    """

    tensors: int
    unnamed: int
    agreement: float
    images: int
    coverage: float


def verify(
    program: Program,
    plan: QuantPlan,
    stored: StoredGraph,
    runner: Runner,
    inputs: Sequence[NDArray[np.float32]],
) -> Verification:
    """Compare an artifact with its plan and with the simulated program.

    Args:
        inputs: batches (n, channels, height, width) of real images.

    Raises:
        VerificationError: a tensor differs from the plan, a planned tensor stayed float, or outputs disagree.
    """
    found = check_plan(program, plan, stored)
    shared = output_agreement(program, plan, runner, inputs)
    if shared < LEAST_AGREEMENT:
        raise VerificationError(
            f"{plan.profile}: only {shared:.0%} of the detections agree with the simulated program",
            "the runtime computes something else than the plan: report the model and the runtime's version",
        )
    planned = sum(not t.is_float for t in plan.tensors.values())
    return Verification(found, planned - found, shared, len(inputs), stored.coverage)


def check_plan(program: Program, plan: QuantPlan, stored: StoredGraph) -> int:
    """Compare every planned tensor that the file names; return how many were found.

    Raises:
        VerificationError: some differ, or fewer than half are named at all.
    """
    wrong, found = [], 0
    planned = [(key, name, t) for key, name, t in _planned(program, plan) if key in stored.tensors]
    for key, name, tensor in planned:
        difference = _difference(program, name, tensor, stored.tensors[key])
        if difference:
            wrong.append(f"{name}: {difference}")
        found += 1
    if wrong:
        more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
        raise VerificationError(
            f"{plan.profile}: the file differs from the plan in {'; '.join(wrong[:SHOWN])}{more}",
            "the converter did not obey the plan: report the model and the converter's version",
        )
    if 2 * found < sum(not t.is_float for t in plan.tensors.values()):
        raise VerificationError(f"{plan.profile}: only {found} planned tensors are in the file", "report the model")
    return found


def _planned(program: Program, plan: QuantPlan) -> list[tuple[str, str, TensorQuant]]:
    """(key in the file, name in the plan, decision) for every tensor that an integer operation writes or holds."""
    rows = []
    for value in program.values.values():
        if value.name in plan.integer:
            rows.append((value.name, value.name, plan.tensors[value.name]))
            if value.weight:
                rows.append((f"{value.name}.weight", value.weight, plan.tensors[value.weight]))
    return rows


def _difference(program: Program, name: str, planned: TensorQuant, stored: StoredTensor) -> str:
    if stored.dtype != planned.dtype:
        return f"{stored.dtype} instead of {planned.dtype}"
    if len(stored.scale) != len(planned.scale) or not np.allclose(
        stored.scale, planned.scale, rtol=SCALE_TOLERANCE, atol=0
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
    # A value in the middle between two integers may be rounded either way.
    furthest = int(np.abs(quantise(weight, scales, 0, INT8_NARROW) - integers.astype(np.int32)).max())
    return f"weights are {furthest} steps away" if furthest > 1 else ""


def output_agreement(program: Program, plan: QuantPlan, runner: Runner, inputs: Sequence[NDArray[np.float32]]) -> float:
    """Return the share of detections that the simulated program and the runtime have in common, 0..1."""
    simulation = simulated(program, plan)
    paired = total = 0
    with torch.no_grad():
        for batch in inputs:
            expected, actual = simulation(torch.from_numpy(batch)), torch.from_numpy(runner.run(batch))
            for one, other in zip(*(detections(o, program.final) for o in (expected, actual)), strict=True):
                both, number = agreement(one, other)
                paired, total = paired + both, total + number
    return paired / total if total else 1.0


def detections(output: Tensor, final: bool) -> list[tuple[Tensor, Tensor]]:
    """(boxes, classes) of each image: the confident ones, or where there are none the best few."""
    from ultralytics.utils.nms import non_max_suppression

    found = non_max_suppression(output.clone(), conf_thres=0.001, iou_thres=0.7, end2end=final)
    kept = []
    for rows in found:
        ranked = rows[rows[:, 4].argsort(descending=True)]
        count = int((ranked[:, 4] >= CONFIDENCE).sum()) or min(FEW, len(ranked))
        kept.append((ranked[:count, :4], ranked[:count, 5]))
    return kept


def sample_inputs(paths: Sequence[Path], program: Program, count: int = 4) -> list[NDArray[np.float32]]:
    """Read the first `count` images as batches of the program's shape."""
    from qexport.images import stream

    shape = program.values["images"].shape
    read = stream(paths[: 2 * count], program.imgsz, lambda *_: None)
    return [np.broadcast_to(pixels, shape).copy() for (_, pixels), _ in zip(read, range(count), strict=False)]

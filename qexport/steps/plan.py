"""What a file is to be: its target, its plan, and what is refused before there is one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from qexport.backends.info import target_for
from qexport.backends.registry import find_info
from qexport.calibration.calibration_table import CalibrationTable
from qexport.calibration.peaks import measured_peaks
from qexport.errors import InputError, UsageError
from qexport.lowering.request import Target
from qexport.optimisation.candidate import Candidate
from qexport.planning.given_plan import check_rules
from qexport.planning.half_range import peaks_of, unfit_for_half
from qexport.planning.integer_only import check_integer_only
from qexport.planning.layer_ranges import told, values_of_layers
from qexport.planning.learned_ranges import LearnedRanges, UnlearnedError
from qexport.planning.plan import QuantPlan, check_plan
from qexport.planning.planner import FLOAT_AS_ASKED, make_plan
from qexport.planning.registry import DEFAULT_RANGES
from qexport.planning.runtime_profiles import WEIGHTS
from qexport.programs.build import Source
from qexport.programs.named_values import kept_float, refuse_weightless
from qexport.programs.program import Program
from qexport.programs.sample_inputs import sample_inputs
from qexport.system.machine import ANY, KINDS, kind_for
from qexport.training.learned_candidate import learned_candidate
from qexport.training.qat_file import read_learned
from qexport.verification.finite import generated_input


def make_target(format: str, precision: str = "int8", cpu: str = "auto") -> Target:
    """What is built, and by which rules of its runtime, which need not be installed.

    Args:
        format: a backend's name, such as "onnx" or "tflite".
        precision: of weights and activations, such as "int8", "fp16" or "int8-dynamic".
        cpu: kind of CPU that integer types are chosen for, "auto" for this machine's.

    Raises:
        UsageError: there is no such format, not in this precision, or no such kind of CPU.
    """
    kind = kind_for(cpu, format)
    if kind not in (ANY, *KINDS):
        raise UsageError(f"unknown kind of CPU {kind}", f"choose from auto, {', '.join(KINDS)}")
    target = target_for(find_info(format), precision, kind)
    return replace(target, profile=WEIGHTS) if precision == "int8-dynamic" else target


def check_request(program: Program, precision: str, keep_float: Sequence[str] = ()) -> None:
    """Refuse what no plan could make possible, before images are read.

    Raises:
        UsageError: there is no such value to keep in float.
        InputError: the precision holds no float, and something in the program has no integer kernel.
    """
    kept = kept_float(program, keep_float)
    if precision == "int8-full":
        check_integer_only(program, kept)


def plan(
    program: Program,
    table: CalibrationTable | None,
    target: Target,
    *,
    ranges: str = DEFAULT_RANGES,
    keep_float: Sequence[str] = (),
    floats: Mapping[str, str] = {},
    learned: LearnedRanges | None = None,
) -> QuantPlan | None:
    """Decide what becomes integers in a target's file, and by which scales; None where nothing does.

    Args:
        table: statistics of the program's values; None does where activations stay float.
        ranges: how ranges of activations are chosen, one of `qexport.planning.registry.RANGES.names`.
        keep_float: values whose operation stays float.
        floats: further ones, each with why.
        learned: ranges that go before the table's; it is needed of what they leave out only.

    Raises:
        InputError: the table is of another program, lacks a value that the plan needs, or there is none.
        UsageError: there is no such value to keep in float, or it has no weights where nothing else is stored.
    """
    if target.profile is None:
        return None
    if table is not None and table.program not in (program.fingerprint, program.origin):
        raise InputError("the table is of another model, head or image size", "calibrate this program")
    kept = {**floats, **dict.fromkeys(kept_values(program, target, keep_float), FLOAT_AS_ASKED)}
    if not computes_in_integers(target):
        kept = {**find_info(target.format).float_weights(program), **kept}
        return make_plan(program, None, target.profile, float_values=kept)
    if table is None and learned is None:
        raise InputError(f"{target.precision} needs ranges of activations", "calibrate on images first")
    return make_plan(program, table.statistics if table else None, target.profile, ranges, kept, learned)


def planned_as_learned(
    source: Source,
    target: Target,
    table: CalibrationTable | None = None,
    ranges: str = DEFAULT_RANGES,
    keep_float: Sequence[str] = (),
) -> tuple[Candidate, str]:
    """The candidate for a target by what a checkpoint has learned, and a note of what is from where.

    Args:
        source: whose checkpoint `qexport qat` has written, or Ultralytics' training.
        target: one that computes in integers.
        table, ranges, keep_float: see `plan`; of what was not learned.

    Raises:
        UnlearnedError: a value has neither a learned range nor statistics.
        InputError: what was learned is damaged, or of another model.
    """
    assert target.profile is not None
    path, program = source.checkpoint.path, source.program
    floats = dict.fromkeys(kept_values(program, target, keep_float), FLOAT_AS_ASKED)
    statistics = table.statistics if table else None
    if source.checkpoint.ranges is not None:
        known = values_of_layers(source.checkpoint.ranges, program)
        made = make_plan(program, statistics, target.profile, ranges, floats, known)
        return Candidate(program, made, program), told(made, known)
    learned = read_learned(source.checkpoint.learned, path)
    return learned_candidate(learned, program, target.profile, path, statistics, ranges, floats)


def computes_in_integers(target: Target) -> bool:
    """Whether activations are integers, too; in a file that has nothing but weights, everything computes in float."""
    return target.profile is not None and bool(target.profile.operations)


def kept_values(program: Program, target: Target, keep_float: Sequence[str]) -> frozenset[str]:
    """Values that the user wants in float, where the target has anything else; all of an FP32 file is float already."""
    if isinstance(keep_float, str):  # one name, which is a sequence, too
        keep_float = (keep_float,)
    if target.precision == "fp32":
        return frozenset()
    info = find_info(target.format)
    if not computes_in_integers(target) and (target.profile or info.half_scope != "arithmetic"):
        refuse_weightless(program, keep_float, f"{target.precision} in format {info.name}")
    return kept_float(program, keep_float)


def check_given(plan: QuantPlan, program: Program, target: Target, path: Path, option: str = "plan") -> None:
    """Refuse a plan, edited by hand or not, that is of something else, or that the target's runtime cannot obey.

    Args:
        path: where it was read from.
        option: that it was given by, which says what the file is.

    Raises:
        InputError: with what is wrong first.
    """
    check_plan(plan, program, path)
    wanted = target.profile.name if target.profile else "none"
    if plan.profile != wanted:
        raise InputError(
            f"{path} is a {option} for {plan.profile}, {target.format} as {target.precision} takes one for {wanted}",
            f"give the {option} of this format and precision, or leave out --{option}",
        )
    if target.profile:
        check_rules(plan, program, target.profile, path)


def needs_table(target: Target, plan: QuantPlan | None, source: Source, keep_float: Sequence[str] = ()) -> bool:
    """Whether a target needs ranges of activations: to plan by, and to know what FP16 beside integers cannot hold.

    Where they were learned it does for those that were not.
    """
    if target.profile is None or not computes_in_integers(target):
        return False
    if plan is None and source.checkpoint.learned:
        try:
            planned_as_learned(source, target, keep_float=keep_float)
        except UnlearnedError:
            return True
        return False
    return plan is None or target.profile.fp16_scales


def beyond_half(
    program: Program, target: Target, table: CalibrationTable | None = None, images: Sequence[Path] = ()
) -> dict[str, str]:
    """Values that must be computed in FP32 because FP16 cannot hold them: value → why; none where there is no FP16.

    Args:
        table: tells how far activations reach.
        images: tell it where there is no table; a generated picture does where there are neither.
    """
    scope = find_info(target.format).half_scope if target.precision == "fp16" else ""
    halves = target.profile is not None and target.profile.fp16_scales
    if not (scope or halves):
        return {}
    if table is not None and halves:
        return unfit_for_half(program, peaks_of(table.statistics))
    inputs = sample_inputs(images, program) or [generated_input(program)]
    peaks = measured_peaks(program, inputs) if halves or scope == "arithmetic" else {}
    return unfit_for_half(program, peaks, scope == "weights")

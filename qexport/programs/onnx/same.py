"""Whether an ONNX file and its normal form compute the same, both on ONNX Runtime.

Two ways of computing a network differ by rounding, and an operator that decides (TopK, ArgMax, a comparison) makes
anything of it: tied rows change places, an index becomes another. So what decisions are made from is compared number by
number, and what comes behind them without regard to the order of its rows. Where that fails on one picture two others
are tried: ties are chance, and what is computed wrongly is wrong on every picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from qexport.data.input_form import InputForm
from qexport.detections.columns import columns_of
from qexport.errors import InputError, first_line
from qexport.programs.onnx.file import OLDEST, OnnxFile, operator_set
from qexport.programs.onnx.graph import OnnxGraph
from qexport.programs.onnx.session import session_options
from qexport.programs.onnx.values import MOVERS as MOVE_ELEMENTS

TOLERANCE = 1e-3
"""Largest difference of a number, of the largest in its column; of 1 where they are smaller."""
MIN_SAME_ROWS = 0.9
"""Share of rows behind a decision that must be there on both sides: at the end of a list ties decide who is in it."""
FEW_ROWS = 10
"""Fewer rows say nothing about a share: a tie among them is half of it."""
MAX_PAIRED_ROWS = 1024
"""Up to so many rows are looked for one by one, of more each column is compared sorted."""
PICTURES = 3
DECISIONS = frozenset(
    {
        "ArgMax",
        "ArgMin",
        "Ceil",
        "Equal",
        "Floor",
        "Greater",
        "GreaterOrEqual",
        "Hardmax",
        "Less",
        "LessOrEqual",
        "Round",
        "Sign",
        "TopK",
    }
)
"""Operators whose result jumps where their input moves a little."""

MOVERS = MOVE_ELEMENTS | {"Cast"}

Array = NDArray[np.generic]
Runs = dict[str, Array]


@dataclass(frozen=True)
class Decisions:
    """What a file decides by numbers.

    Attributes:
        inputs: tensors that decisions are made from.
        behind: everything that depends on one.
        answers: their results, whatever only moved them: where `inputs` are the same, ties are all that can differ.
    """

    inputs: tuple[str, ...]
    behind: frozenset[str]
    answers: frozenset[str]


def check_same(file: OnnxFile, graph: OnnxGraph, form: InputForm) -> None:
    """Compare the graph with the file.

    Raises:
        InputError: they compute something else, or nothing that is finite.
    """
    decisions = _decisions(file.proto)
    known = _known(graph, decisions.inputs)
    found = ""
    for seed in range(PICTURES):
        try:
            picture = _picture(graph, form, seed)
            theirs, ours = _run(file.proto, picture, decisions.inputs), _run(graph.proto, picture, known)
        except Exception as error:  # the runtime's errors share no base
            version = operator_set(file.proto)
            old = f"it is in operator set {version}, and {OLDEST} is the oldest that is sure to run: convert it"
            remedy = old if version < OLDEST else "check the file"
            raise InputError(f"ONNX Runtime cannot run {file.path} ({first_line(error)})", remedy) from error
        found = _difference(graph, theirs, ours, decisions)
        if not found:
            return
    raise InputError(f"{file.path} computes something else in its normal form ({found})", "report it")


def _picture(graph: OnnxGraph, form: InputForm, seed: int) -> NDArray[np.float32]:
    """A smooth picture: pixels of noise drive untrained layers so far out that rounding alone decides what is best."""
    shape = graph.shapes[graph.input][0]
    height, width = shape[1:3] if form.channels_last else shape[2:]
    coarse = torch.rand(shape[0], 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear").numpy()
    return np.stack([form.applied(image) for image in smooth])


def _run(proto: onnx.ModelProto, picture: NDArray[np.float32], more: Sequence[str]) -> Runs:
    """Run a model; return its outputs and other float tensors by name."""
    import onnxruntime

    watched = onnx.ModelProto()
    watched.CopyFrom(proto)
    own = [output.name for output in proto.graph.output]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in more if name not in own)
    names = [output.name for output in watched.graph.output]
    (given,) = (each.name for each in proto.graph.input)
    content, providers = watched.SerializeToString(), ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(content, session_options(1), providers=providers)
    return dict(zip(names, session.run(names, {given: picture}), strict=True))


def _decisions(proto: onnx.ModelProto) -> Decisions:
    constants = {tensor.name for tensor in proto.graph.initializer}
    constants |= {name for node in proto.graph.node if node.op_type == "Constant" for name in node.output}
    made: set[str] = set()
    inputs: dict[str, None] = {}
    behind: set[str] = set()
    answers: set[str] = set()
    for node in proto.graph.node:  # in order of computation
        if node.op_type in DECISIONS:
            inputs.update((name, None) for name in node.input if name in made)
            answers.update(node.output[1:] if node.op_type == "TopK" else node.output)
        elif node.op_type in MOVERS and all(name in answers | constants for name in node.input if name):
            answers.update(node.output)
        if node.op_type in DECISIONS or any(name in behind for name in node.input):
            behind.update(node.output)
        made.update(node.output)
    return Decisions(tuple(inputs), frozenset(behind), frozenset(answers))


def _known(graph: OnnxGraph, names: Sequence[str]) -> list[str]:
    """Those tensors of the normal form that stand for tensors of the file."""
    made = {name for node in graph.proto.graph.node for name in node.output}
    return [each for name in names for each in graph.names.get(name, ()) if each in made]


def _difference(graph: OnnxGraph, theirs: Runs, ours: Runs, decisions: Decisions) -> str:
    """What differs, in words; "" where nothing does but the order of ties."""
    sure = False
    for name in decisions.inputs:
        others = [ours[each] for each in graph.names.get(name, ()) if each in ours]
        others = [each for each in others if each.shape == theirs[name].shape and name not in decisions.behind]
        if others and np.issubdtype(theirs[name].dtype, np.floating):
            sure = True
            if not any(_is_close(theirs[name], each).all() for each in others):
                return f"{name}, which a decision is made from"
    for name in graph.outputs:
        one, other = theirs[name], ours[name]
        if one.shape != other.shape:
            return f"{name} has the shape {other.shape}, not {one.shape}"
        if not np.isfinite(one).all() and np.isnan(one.astype(np.float64)).any():
            return f"{name} is not a number"
        close = _is_close(one, other)
        if close.all():
            continue
        if name not in decisions.behind:
            return f"{name} by {np.abs(one.astype(np.float64) - other.astype(np.float64)).max():.3g}"
        same = max(float(close.mean()), _same_rows(one, other))
        chance = sure and (name in decisions.answers or len(_rows(one)) < FEW_ROWS)
        if same < MIN_SAME_ROWS and not chance:
            return f"only {same:.0%} of the rows of {name} are there"
    return ""


def _is_close(one: Array, other: Array) -> NDArray[np.bool_]:
    """For each number whether it is the same: integers exactly, infinities of one sign are."""
    if not np.issubdtype(one.dtype, np.floating):
        return np.asarray(one == other)
    a, b = (columns_of(each.astype(np.float64)) for each in (one, other))
    with np.errstate(invalid="ignore"):
        return np.asarray((np.abs(a - b) <= _allowed(a)) | (a == b))


def _allowed(columns: NDArray[np.floating]) -> NDArray[np.float64]:
    """By column."""
    finite = np.where(np.isfinite(columns), np.abs(columns), 0.0)
    return np.asarray(TOLERANCE * np.maximum(1.0, finite.max(axis=0, initial=0.0)))


def _rows(output: Array) -> NDArray[np.floating]:
    """(rows, columns) of an output whose rows are in no order that means anything."""
    whole = output.astype(np.float64)
    return columns_of(whole) if output.ndim > 2 else whole.reshape(-1, 1)


def _same_rows(one: Array, other: Array) -> float:
    """Share of rows that are on both sides, in whatever order."""
    a, b = _rows(one), _rows(other)
    allowed = _allowed(a) if np.issubdtype(one.dtype, np.floating) else np.zeros(a.shape[1])
    if len(a) > MAX_PAIRED_ROWS:
        return float((np.abs(np.sort(a, axis=0) - np.sort(b, axis=0)) <= allowed).mean())
    pairs: NDArray[np.bool_] = np.all(np.abs(a[:, None] - b[None]) <= allowed, axis=2)
    return min(float(np.mean(np.any(pairs, axis=side))) for side in (0, 1))

"""`<stem>_qat.pt`: the float model as Ultralytics loads it, and beside it, as bytes, what training has learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qexport.checkpoints.checkpoint import load_checkpoint
from qexport.checkpoints.identify import LEARNED
from qexport.errors import InputError
from qexport.optimisation.candidate import Candidate, changed_parameters
from qexport.planning.plan import QuantPlan
from qexport.planning.plan import from_json as plan_from_json
from qexport.planning.plan import to_json as plan_to_json
from qexport.system.files import write_whole
from qexport.training.container import Array, pack, unpack
from qexport.training.record import TrainingRecord, from_json, to_json

SCHEMA = 1
REMEDY = "train it again with qexport qat, or give the checkpoint that it was trained from"


@dataclass(frozen=True)
class Provenance:
    """What was trained, on what, and by what.

    Attributes:
        model: name of the checkpoint's file.
        fingerprint: SHA-256 of its bytes.
        data: as the command names it.
        command: the command line, as one string.
        versions: of packages, by name.
    """

    model: str
    fingerprint: str
    data: str = ""
    command: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LearnedProfile:
    """What was learned for one runtime profile.

    Attributes:
        plan: with the learned scales; of the program with the trained parameters.
        parameters: weights and biases that training has changed, by path; float32. Weights are whole multiples of
            their scales.
    """

    plan: QuantPlan
    parameters: Mapping[str, Tensor]
    record: TrainingRecord


@dataclass(frozen=True)
class Learned:
    """What a file holds beside the float model: a profile for each runtime that was trained for, at least one."""

    profiles: tuple[LearnedProfile, ...]
    provenance: Provenance


def learned_profile(candidate: Candidate, record: TrainingRecord) -> LearnedProfile:
    """What training has made of a candidate, against its reference."""
    return LearnedProfile(candidate.plan, changed_parameters(candidate.reference, candidate.program), record)


def save_qat(path: Path, model: Path, learned: Learned, trust: bool = False) -> None:
    """Write the checkpoint, whole or not at all.

    Args:
        model: the checkpoint that was trained from, which is read once more: capturing consumes its module.
        trust: as it was read.

    Raises:
        InputError: the model's file is another one by now, or `path` cannot be written.
    """
    checkpoint = load_checkpoint(model, trust)
    if checkpoint.fingerprint != learned.provenance.fingerprint:
        raise InputError(f"{model} has changed while it was trained", "train again")
    module = checkpoint.module
    content = {"model": module, "ema": None, "epoch": -1, "train_args": dict(module.args), LEARNED: to_bytes(learned)}
    with write_whole(path) as temporary, temporary.open("wb") as stream:  # a path would be written into the file
        torch.save(content, stream)  # of protocol 2, which torch reads with `weights_only`, too


def to_bytes(learned: Learned) -> bytes:
    """The container: an `.npz` archive with plans and records in its head."""
    arrays: dict[str, Array] = {}
    rows = []
    for number, each in enumerate(learned.profiles):
        arrays |= {f"{number} {name}": tensor.contiguous().numpy() for name, tensor in each.parameters.items()}
        rows.append({"plan": plan_to_json(each.plan), "record": to_json(each.record)})
    return pack({"schema": SCHEMA, "profiles": rows, "provenance": asdict(learned.provenance)}, arrays)


def read_learned(data: bytes, path: Path) -> Learned:
    """What `to_bytes` was given.

    Args:
        data: the key's bytes, as `Checkpoint.learned` has them.
        path: where they were read from, for the message.

    Raises:
        InputError: damaged, or of a later version.
    """
    try:
        head, arrays = unpack(data)
        if head["schema"] != SCHEMA:
            raise ValueError(f"schema {head['schema']}, this version reads {SCHEMA}")
        return _learned(head, arrays, path)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"what training has learned cannot be read in {path} ({reason})", REMEDY) from error


def _learned(head: Mapping[str, Any], arrays: Mapping[str, Array], path: Path) -> Learned:
    parameters: list[dict[str, Tensor]] = [{} for _ in head["profiles"]]
    numbers = {str(number): each for number, each in enumerate(parameters)}
    for key, array in arrays.items():
        number, _, name = key.partition(" ")
        if array.dtype != "float32":
            raise TypeError(f"{name} is {array.dtype}")
        if number not in numbers:
            raise ValueError(f"it has parameters of a runtime {number[:20]!r}, which it has no plan of")
        numbers[number][name] = torch.from_numpy(array)
    rows = zip(head["profiles"], parameters, strict=True)
    profiles = tuple(
        LearnedProfile(plan_from_json(row["plan"], path), trained, from_json(row["record"])) for row, trained in rows
    )
    if not profiles:
        raise ValueError("it is of no runtime")
    return Learned(profiles, _provenance(head["provenance"]))


def _provenance(given: Mapping[str, Any]) -> Provenance:
    found = Provenance(**given)
    texts = (found.model, found.fingerprint, found.data, found.command, *found.versions, *found.versions.values())
    if not all(isinstance(each, str) for each in texts):
        raise TypeError("its provenance is no text")
    return found

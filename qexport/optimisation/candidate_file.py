"""A candidate as a file: the plan, and of the program what passes have changed; the rest comes with the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qexport.errors import InputError
from qexport.optimisation.candidate import Candidate, changed_parameters
from qexport.planning.plan import check_plan, from_json, to_json
from qexport.programs.program import Program
from qexport.system.files import write_whole
from qexport.system.given_files import open_arrays
from qexport.system.json_form import parse_json

SCHEMA = 1
REMEDY = "give a candidate.npz that qexport wrote"


def save_candidate(candidate: Candidate, path: str | Path) -> None:
    """Write a candidate as a compressed `.npz`, whole or not at all; equal candidates give equal bytes."""
    changed = {
        path: each.contiguous() for path, each in changed_parameters(candidate.reference, candidate.program).items()
    }
    head = {"schema": SCHEMA, "reference": candidate.reference.fingerprint, "parameters": list(changed)}
    arrays: dict[str, Any] = {
        f"parameter_{number}": np.ascontiguousarray(each.numpy()) for number, each in enumerate(changed.values())
    }
    texts: dict[str, Any] = {"head": np.array(json.dumps(head)), "plan": np.array(to_json(candidate.plan))}
    with write_whole(Path(path)) as temporary, temporary.open("wb") as stream:
        np.savez_compressed(stream, **texts, **arrays)


def load_candidate(path: str | Path, program: Program) -> Candidate:
    """Read a saved candidate.

    Args:
        program: the float program that it was made from, which becomes its reference.

    Raises:
        InputError: damaged, no candidate, of a later version, or of another program.
    """
    path = Path(path)
    try:
        with open_arrays(path) as content:
            return _candidate(content, path, program)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a candidate ({' '.join(str(error).split())})", REMEDY) from error


def _candidate(content: Any, path: Path, program: Program) -> Candidate:
    head = parse_json(str(content["head"]))
    if head["schema"] != SCHEMA:
        raise ValueError(f"schema {head['schema']}, this version reads {SCHEMA}")
    if head["reference"] != program.fingerprint:
        raise InputError(f"{path} is a candidate of another model, image size, batch or head", "optimise this one")
    arrays = {each: content[f"parameter_{number}"] for number, each in enumerate(head["parameters"])}
    changed = program.with_parameters({each: torch.from_numpy(array) for each, array in arrays.items()})
    plan = from_json(str(content["plan"]), path)
    if plan.program != changed.fingerprint:
        raise ValueError("its weights are not those that its plan is for")
    check_plan(plan, changed, path)
    return Candidate(changed, plan, program)

"""Where a training is, kept after each epoch so that it can go on after a kill and end as if there had been none."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from qexport.errors import InputError
from qexport.system.files import write_whole
from qexport.system.given_files import read_bytes
from qexport.training.container import Array, pack, unpack
from qexport.training.record import TrainingRecord, from_json, to_json

SCHEMA = 3
SQUARES = "exp_avg_sq/"
"""How names of means of squares begin."""
REMEDY = "leave out --resume to train from the beginning"


@dataclass(frozen=True)
class TrainingState:
    """A training between two epochs.

    Attributes:
        epoch: how many whole epochs were trained.
        step: how many steps those took.
        tensors: by name: the student's, its averages, the best ones, the optimiser's moments; on the CPU.
        record: what is told of it so far, None before the first epoch.
    """

    epoch: int
    step: int
    tensors: Mapping[str, Tensor]
    record: TrainingRecord | None = None


class Store(Protocol):
    """Keeps the last state of one training."""

    def save(self, state: TrainingState, /) -> None:
        """Keep a state in the place of the one before, whole or not at all."""
        ...

    def load(self) -> TrainingState | None:
        """The last state that was kept, None where there is none.

        Raises:
            InputError: it is of another training, or damaged.
        """
        ...


@dataclass(frozen=True)
class FileStore:
    """Keeps it in a file.

    Attributes:
        identity: all that a training depends on, by what it is called: fingerprints, and values of options, whose
            names begin with a dash. Another one's state is refused.
    """

    path: Path
    identity: Mapping[str, str]

    def save(self, state: TrainingState) -> None:
        """Keep a state in the place of the one before, whole or not at all.

        Raises:
            InputError: the file cannot be written.
        """
        head = {
            "schema": SCHEMA,
            "identity": dict(self.identity),
            "epoch": state.epoch,
            "step": state.step,
            "record": to_json(state.record) if state.record else None,
        }
        arrays = {name: each.detach().cpu().numpy() for name, each in state.tensors.items()}
        data = pack(head, arrays, compressed=False)
        with write_whole(self.path) as temporary, temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())

    def load(self) -> TrainingState | None:
        """The last state that was kept, None where there is none.

        Raises:
            InputError: it is of another training, or damaged.
        """
        if not self.path.exists():
            return None
        try:
            head, arrays = unpack(read_bytes(self.path))
            if head["schema"] != SCHEMA:
                raise ValueError(f"schema {head['schema']}, this version reads {SCHEMA}")
            differing = _differing(dict(head["identity"]), self.identity)
            if not differing:
                return _state(head, arrays)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"{self.path} is no state of a training ({reason})", REMEDY) from error
        what = f"{self.path} is of a training with {differing}"
        raise InputError(what, f"give what it was begun with, or {REMEDY}")


@dataclass(frozen=True)
class Anew:
    """A store for a training that begins: what it has of an earlier one stays until there is a state to replace it."""

    store: Store

    def save(self, state: TrainingState) -> None:
        """See `Store`."""
        self.store.save(state)

    def load(self) -> TrainingState | None:
        """Nothing to go on from."""
        return None


def _differing(begun: Mapping[str, str], now: Mapping[str, str]) -> str:
    """What of a training is not as it was begun, in words; "" for nothing."""
    names = [name for name in dict.fromkeys((*now, *begun)) if begun.get(name) != now.get(name)]
    return ", ".join(f"{name} {begun.get(name)}" if name.startswith("-") else f"another {name}" for name in names)


def require_fitting(state: TrainingState, expected: Mapping[str, Tensor], steps: int) -> None:
    """Check that a training can go on from a state.

    Args:
        expected: tensors of the names, shapes and types that it has to have.
        steps: of an epoch.

    Raises:
        InputError: it cannot.
    """
    done = len(state.record.epochs) if state.record else 0
    unfit = next((name for name in (*expected, *state.tensors) if not _fits(state.tensors, expected, name)), None)
    if state.epoch != done or state.step != done * steps:
        reason = "it counts other epochs or steps than it has had"
    elif state.record and not _is_whole(state.record):
        reason = "its epochs are not in order, or their figures no numbers"
    elif unfit is not None:
        reason = f"{unfit[:100]} is not in both, or of other numbers"
    else:
        return
    raise InputError(f"the state of the earlier training does not fit this one ({reason})", REMEDY)


def _fits(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], name: str) -> bool:
    """Whether a tensor is of the expected shape and type, and of finite numbers; squares are not negative."""
    if name not in given or name not in expected:
        return False
    found, wanted = given[name], expected[name]
    if found.shape != wanted.shape or found.dtype != wanted.dtype or not bool(found.isfinite().all()):
        return False
    return not (name.startswith(SQUARES) and bool((found < 0).any()))


def _is_whole(record: TrainingRecord) -> bool:
    figures = [(record.start, record.start_labelled), *((each.distance, each.labelled) for each in record.epochs)]
    numbers = [each for pair in figures for each in pair if each is not None] + [each.seconds for each in record.epochs]
    alike = len({labelled is None for _, labelled in figures}) == 1
    in_order = [each.number for each in record.epochs] == list(range(1, len(record.epochs) + 1))
    return alike and in_order and all(map(math.isfinite, numbers))


def _state(head: Mapping[str, Any], arrays: Mapping[str, Array]) -> TrainingState:
    epoch, step, record = head["epoch"], head["step"], head["record"]
    if not all(type(each) is int for each in (epoch, step)):
        raise TypeError("epochs and steps are whole numbers")
    tensors = {name: torch.from_numpy(each) for name, each in arrays.items()}
    return TrainingState(epoch, step, tensors, from_json(record) if record else None)

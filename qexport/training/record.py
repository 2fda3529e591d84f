"""What is told of a training: read with reports, where torch is not needed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qexport.system.json_form import from_plain, to_plain
from qexport.training.recipe import Recipe

INTERRUPTED = "interrupted"
"""Why a training ended that the user did not let go on."""


@dataclass(frozen=True)
class Judged:
    """What held-out images say of a simulated integer program.

    Attributes:
        distance: mean distance from the float program.
        labelled: mean loss by labels; None without labels.
    """

    distance: float
    labelled: float | None = None

    @property
    def cost(self) -> float:
        """What is less for a better program: by labels where there are some, for they lead away from the float one."""
        return self.distance if self.labelled is None else self.labelled


@dataclass(frozen=True)
class EpochRecord:
    """What became of an epoch.

    Attributes:
        number: from 1.
        loss: mean over its steps.
        distance: mean distance of the simulated integer program from the float one on the held-out images, behind it.
        fidelity: of the simulated integer program, 0..1; None where it was not measured.
        rates: of learning at its end: of "weights", "biases" and "scales", as in `Recipe`.
        seconds: that it took, measuring included.
        labelled: loss by labels of the simulated program on the held-out images, behind it; None without labels.
    """

    number: int
    loss: float
    distance: float
    fidelity: float | None = None
    rates: Mapping[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    labelled: float | None = None

    @property
    def judged(self) -> Judged:
        """What held-out images say."""
        return Judged(self.distance, self.labelled)


@dataclass(frozen=True)
class TrainingRecord:
    """What became of a training.

    Attributes:
        profile: name of the `RuntimeProfile` that was trained for.
        epochs: those that were trained, in order.
        start: mean distance on the held-out images before training.
        best: number of the epoch that was kept, 0 for what came in.
        stopped: why it ended: one line.
        images: image files to train on, or steps of an epoch times images of a step where there are no files.
        held_out: images that were judged by.
        recipe: what it went by.
        device: that it ran on, in words.
        seconds: of all epochs.
        start_labelled: loss by labels on the held-out images before training; None without labels.
        processes: that shared each step.
    """

    profile: str
    epochs: tuple[EpochRecord, ...]
    start: float
    best: int
    stopped: str
    images: int
    held_out: int
    recipe: Recipe
    device: str
    seconds: float
    start_labelled: float | None = None
    processes: int = 1

    @property
    def end(self) -> float:
        """Mean distance on the held-out images of what was kept."""
        return next((each.distance for each in self.epochs if each.number == self.best), self.start)

    @property
    def end_labelled(self) -> float | None:
        """Loss by labels on the held-out images of what was kept; None without labels."""
        return next((each.labelled for each in self.epochs if each.number == self.best), self.start_labelled)


def to_json(record: TrainingRecord) -> dict[str, Any]:
    """The record in JSON's types."""
    plain: dict[str, Any] = to_plain(record)
    return plain


def from_json(plain: Mapping[str, Any]) -> TrainingRecord:
    """The record that `to_json` was given.

    Raises:
        ValueError: a field is missing, or of another type; names its place.
    """
    return from_plain(TrainingRecord, plain)

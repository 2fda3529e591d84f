"""What each layer and each block costs: quantised alone, and left out alone.

One graph serves all: what stands behind a quantised tensor can be switched off. Of a left-out part readers see the
exact value, also where a file would need more in float for that (`qexport.optimisation.mixed_precision`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor
from torch.fx import GraphModule

from qexport.errors import InputError
from qexport.optimisation.candidate import Candidate
from qexport.optimisation.distance import Distance, HeldOut, distance_of, margin, raw_outputs
from qexport.optimisation.layers import Part, parts_of
from qexport.optimisation.sensitivity_record import Sensitivity, SensitivityRow
from qexport.planning.plan import TensorQuant
from qexport.programs.program import Program
from qexport.progress import Progress
from qexport.simulation.fused import Fused
from qexport.simulation.insert import insert

NOT_MEASURABLE = "errors inside of the graph cannot be measured"


def sensitivity(
    candidate: Candidate, held_out: HeldOut, progress: Progress, max_settings: int | None = None
) -> Sensitivity:
    """Measure the distance with each part of the plan alone, and with all but it.

    Args:
        max_settings: how many sets of quantised tensors are tried at most, each on every image: blocks always are,
            then layers and values of those blocks that cost most alone; None for all.

    Raises:
        InputError: errors inside of the program cannot be measured, or its plan quantises nothing.
    """
    check_measurable(candidate)
    parts = parts_of(candidate.program, candidate.plan)
    if not parts:
        raise InputError("the plan quantises nothing", "choose another precision")
    bench = _bench(candidate, held_out)
    blocks = [part for part in parts if part.kind == "block"]
    single = [part for part in parts if part.kind != "block"]
    with progress.step("measuring sensitivity", _settings(parts, max_settings)) as advance:
        bench.on_setting = advance
        whole = bench.distance(bench.all)
        rows = [_row(bench, part, whole) for part in blocks]
        costs = {row.name: row.alone for row in rows}
        single.sort(key=lambda part: -costs.get(part.block, 0.0))
        rows += list(_within(bench, single, whole, max_settings))
    names = {part.name: i for i, part in enumerate(parts)}
    rows.sort(key=lambda row: (row.kind != "block", -row.alone, names[row.name]))
    error = float(whole.total.std(ddof=1) / np.sqrt(len(whole.total))) if len(whole.total) > 1 else float("inf")
    return Sensitivity(
        profile=candidate.plan.profile,
        program=candidate.program.fingerprint,
        images=len(whole.total),
        whole=whole.mean,
        noise=error,
        rows=tuple(rows),
        skipped=len(parts) - len(rows),
    )


def check_measurable(candidate: Candidate) -> None:
    """Refuse what modules cannot be put into.

    Raises:
        InputError: errors inside of the program cannot be measured.
    """
    if not candidate.measurable:
        raise InputError(
            f"{NOT_MEASURABLE}: {candidate.program.graph.obstacle or 'no raw outputs'}",
            "give the .pt file that it was exported from",
        )


def _settings(parts: tuple[Part, ...], most: int | None) -> int:
    every = 1 + 2 * len({part.tensors for part in parts})
    return every if most is None else min(every, most)


def _within(bench: _Bench, parts: list[Part], whole: Distance, most: int | None) -> Iterator[SensitivityRow]:
    for part in parts:
        if most is not None and len(bench.known) + 2 > most:
            return
        yield _row(bench, part, whole)


def _row(bench: _Bench, part: Part, whole: Distance) -> SensitivityRow:
    alone, left_out = bench.distance(part.tensors), bench.distance(bench.all - part.tensors)
    macs = sum(value.macs for value in bench.program.values.values())
    return SensitivityRow(
        name=part.name,
        kind=part.kind,
        operation=part.operation,
        block=part.block,
        macs=part.macs / max(macs, 1),
        alone=alone.mean,
        left_out=left_out.mean,
        noise=margin(whole, left_out)[1],
        values=part.values,
    )


class _Switch(Fused):
    """Rounds where it is on."""

    on = True

    def forward(self, real: Tensor) -> Tensor:
        """Return `real` as integers stand for it, or as it is."""
        return super().forward(real) if self.on else real


@dataclass
class _Bench:
    """A graph whose every quantised tensor can be switched, and what was measured with it.

    Attributes:
        known: distances by what is on.
        on_setting: called for every set that is measured.
    """

    program: Program
    graph: GraphModule
    switches: dict[str, _Switch]
    held_out: HeldOut
    on_setting: Callable[[], None] = lambda: None
    known: dict[frozenset[str], Distance] = field(default_factory=dict)

    @property
    def all(self) -> frozenset[str]:
        """Every tensor that can be switched."""
        return frozenset(self.switches)

    def distance(self, on: frozenset[str]) -> Distance:
        """The distance with nothing quantised but `on`."""
        on &= self.all
        if on not in self.known:
            for name, switch in self.switches.items():
                switch.on = name in on
            self.known[on] = distance_of(self.program, self.graph, self.held_out)
            self.on_setting()
        return self.known[on]


def _bench(candidate: Candidate, held_out: HeldOut) -> _Bench:
    switches: dict[str, _Switch] = {}

    def make(tensor: TensorQuant, name: str) -> _Switch:
        return switches.setdefault(name, _Switch(tensor, name))

    program = candidate.program
    return _Bench(program, raw_outputs(program, insert(program, candidate.plan, make)), switches, held_out)

"""What parts of a plan cost: read with reports, where torch is not needed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class SensitivityRow:
    """One part of a quantised program; distances are means over the images (`qexport.optimisation.distance`).

    Attributes:
        name: of a layer or a value that of its first value; of a block the path of its module.
        kind: "block", "layer", or "value" for what joins several layers.
        operation: what computes it, "" for a block.
        macs: its share of all multiply-accumulates, 0..1.
        alone: distance with nothing quantised but it.
        left_out: distance with everything quantised but it.
        noise: standard error of what leaving it out gains, image by image.
        values: names of its values.
    """

    name: str
    kind: str
    operation: str
    block: str
    macs: float
    alone: float
    left_out: float
    noise: float
    values: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """What quantising costs, part by part.

    Attributes:
        profile: of the runtime that the plan is for.
        program: fingerprint of the program.
        images: how many it is measured on.
        whole: mean distance of the whole plan.
        noise: standard error of `whole` over the images.
        rows: blocks, then layers and values, each the worst first.
        skipped: layers and values that were not measured because their blocks cost little.
    """

    profile: str
    program: str
    images: int
    whole: float
    noise: float
    rows: tuple[SensitivityRow, ...]
    skipped: int = 0

    def gain(self, row: SensitivityRow) -> float:
        """What the distance falls by where a part is left out."""
        return self.whole - row.left_out

    def share(self, row: SensitivityRow) -> float:
        """What a part costs alone, as a share of the whole plan's distance; shares add up to more than 1."""
        return row.alone / self.whole if self.whole else 0.0

    @property
    def single(self) -> tuple[SensitivityRow, ...]:
        """Layers and values, the worst first."""
        return tuple(row for row in self.rows if row.kind != "block")

"""What was found out about an artifact, as plain data that a report holds: no runtime is imported for it."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

from qexport.verification.tolerances import COVERAGE_TOLERANCE


@dataclass(frozen=True)
class Verification:
    """What was checked of one artifact.

    Attributes:
        tensors: planned tensors found in the file with dtype, scale and zero point as planned.
        unnamed: planned tensors that the converter merged into another kernel, so that no name is left to check.
        agreement: share of confident detections of either side, simulation and runtime, that the other has, too, 0..1;
            of a classifier the share of probability; None when neither finds anything on the sample images.
        images: images that the agreement is of.
        coverage: share of multiply-accumulates that the runtime has in integer kernels on this machine, 0..1.
        cosine: in place of the agreement where nobody knows what the outputs mean: least cosine similarity of an
            output, or mean of those of its columns.
        min_agreement: the least agreement that passes; of the cosine where there is one.
        planned_coverage: the share that plan and file have in integers, 0..1.
        overlap: mean overlap of the boxes that are in both, 0..1.
        shift: mean difference of their scores, the runtime's minus the simulation's.
        remark: what has to be said of the agreement, "" for nothing.
    """

    tensors: int
    unnamed: int
    agreement: float | None
    images: int
    coverage: float
    _: KW_ONLY
    cosine: float | None = None
    min_agreement: float | None = None
    planned_coverage: float | None = None
    overlap: float | None = None
    shift: float | None = None
    remark: str = ""

    @property
    def runs_less(self) -> bool:
        """Whether the runtime computes in float what plan and file have in integers."""
        return self.planned_coverage is not None and self.planned_coverage - self.coverage > COVERAGE_TOLERANCE


@dataclass(frozen=True)
class OutputFidelity:
    """One output over all images.

    Attributes:
        name: the file's name of it.
        sqnr_db: power of the reference over power of the difference, in decibels; None where there is no difference.
        cosine: cosine similarity of all elements, -1..1; None where one side is zero everywhere.
        columns: mean over the columns of their own cosine similarities; columns that are zero everywhere left out.
        images: how many images it is of.
    """

    name: str
    sqnr_db: float | None
    cosine: float | None
    columns: float | None
    images: int

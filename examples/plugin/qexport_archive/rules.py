"""The rule "min-integer-share"."""

from __future__ import annotations

from qexport import ArtifactReport, NumberFormat, Rule


def integer_share(artifact: ArtifactReport) -> float | None:
    """Share of the multiply-accumulates that are done in integers, 0..1."""
    return artifact.int8_mac_coverage


MIN_INTEGER_SHARE = Rule(
    "min-integer-share",
    "share of the arithmetic in integers",
    of="artifact",
    compares=False,
    least=True,
    figure=integer_share,
    shown=NumberFormat(1, "%", times=100),
)

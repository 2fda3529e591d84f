"""What the package promises: `pytest` where it is installed."""

from __future__ import annotations

from importlib.metadata import entry_points

import numpy as np
import pytest
from qexport_archive.backend import PROFILE, ArchiveBackend
from qexport_archive.passes import least_error
from qexport_archive.ranges import three_sigma
from qexport_archive.rules import MIN_INTEGER_SHARE

from qexport import ArtifactReport, Quantiser
from qexport.testing import check_backend, statistics_of


def test_all_of_it_is_registered() -> None:
    groups = ("qexport.backends", "qexport.ranges", "qexport.passes", "qexport.rules")
    ours = [each for group in groups for each in entry_points(group=group) if each.value.startswith("qexport_archive")]
    assert [each.name for each in ours] == ["archive", "three-sigma", "fitted-weights", "min-integer-share"]
    assert [each.load().name for each in ours[2:]] == ["fitted-weights", "min-integer-share"]


def test_the_format_keeps_its_promises() -> None:
    check_backend(ArchiveBackend())


def test_a_range_is_three_deviations_wide() -> None:
    """By hand: 97 zeros, and 3 of four: mean 0.12, deviation 0.68."""
    low, high = three_sigma(statistics_of([0.0] * 97 + [4.0] * 3), Quantiser(PROFILE.activation))
    assert low == 0.0
    assert high == pytest.approx(0.12 + 3 * 0.6824, abs=0.005)


def test_other_steps_are_taken_where_the_weights_gain_by_them() -> None:
    """By hand: 1000 halves beside 127 lose 250 in steps of 1, and 230.4 + 6.5 in steps of 0.98."""
    rows = np.array([[127.0, *[0.5] * 1000], [127.0, *[1.0] * 1000]], np.float32)
    assert list(least_error(rows, np.ones(2, np.float32), 127)) == [np.float32(0.98), 1.0]


def test_the_rule_reads_the_share_of_integers() -> None:
    artifact = ArtifactReport("a.qzip", "archive", "int8", "", 1, int8_mac_coverage=0.93)
    assert MIN_INTEGER_SHARE.figure(artifact) == 0.93
    assert MIN_INTEGER_SHARE.shown.parsed("93%") == pytest.approx(0.93)

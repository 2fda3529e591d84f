"""Packages that qexport itself asks for, and which of those that are installed it was not tried with."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires
from typing import TYPE_CHECKING

from qexport.system.machine import version_of

if TYPE_CHECKING:
    from packaging.requirements import Requirement

DEVELOPMENT = "dev"
"""The extra whose packages no export needs."""


@dataclass(frozen=True)
class Misfit:
    """A distribution of another version than qexport asks for.

    Attributes:
        version: that is installed; None where it is missing and no format does without it.
        wanted: what qexport asks for, such as "ultralytics>=8.4.190,<8.5", as pip takes it.
    """

    package: str
    version: str | None
    wanted: str


def misfits() -> tuple[Misfit, ...]:
    """What is missing of the packages that every run needs, and what is installed of any in another version.

    Ranges are those of qexport's own metadata.
    """
    found: dict[str, Misfit] = {}
    for requirement in _requirements():
        installed, marker = version_of(requirement.name), requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if not always and (installed is None or (marker and marker.evaluate({"extra": DEVELOPMENT}))):
            continue
        if installed is None or not requirement.specifier.contains(installed, prereleases=True):
            found[requirement.name] = Misfit(requirement.name, installed, requirement.name + _range(requirement))
    return tuple(found.values())


def wanted_range(package: str) -> str:
    """The versions of a package that qexport asks for, "" for any."""
    return next((_range(each) for each in _requirements() if each.name == package), "")


def _range(requirement: Requirement) -> str:
    return ",".join(sorted(map(str, requirement.specifier), reverse=True))


def _requirements() -> list[Requirement]:
    from packaging.requirements import Requirement

    try:
        return [Requirement(line) for line in requires("qexport") or ()]
    except PackageNotFoundError:  # its source, not installed
        return []

"""`qexport formats`: what this installation can write, and what other packages bring."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from qexport.cli.output import say

if TYPE_CHECKING:
    from qexport.backends.installed import FormatState


def formats_command() -> None:
    """List the formats with what is installed for them, and the range estimators, passes and rules of plug-ins."""
    from qexport.backends.installed import format_states
    from qexport.plugins import BACKENDS, packages_by_name

    others = packages_by_name(BACKENDS)
    for state in format_states():
        say(f"{state.format}: {_format(state, others.get(state.format))}")
    for line in _besides():
        say(line)


def _format(state: FormatState, other: str | None) -> str:
    if not state.precisions:
        return f"broken ({state.problem}: {state.remedy})"
    of = f", a plug-in of {other}" if other else ""
    if state.problem:
        return f"not installed ({state.remedy}){of}"
    from qexport.backends.installed import unbuilt

    lacking = unbuilt(state)
    there = ", ".join(f"{package} {version}" for package, version in state.packages.items())
    return ", ".join(state.precisions) + (f" ({there})" if there else "") + of + (f"; {lacking}" if lacking else "")


def _besides() -> Iterator[str]:
    """What other packages register beside formats, each loaded once to see that it can be."""
    from qexport.errors import PluginError, UsageError
    from qexport.optimisation.registry import PASSES
    from qexport.planning.registry import RANGES
    from qexport.plugins import packages_by_name
    from qexport.reporting import rule

    kinds = ((RANGES.what, RANGES.group, RANGES.find), (PASSES.what, PASSES.group, PASSES.find))
    for what, group, find in (*kinds, ("rule", rule.GROUP, rule.find_rule)):
        for name, package in packages_by_name(group).items():
            try:
                find(name)
                yield f"{what} {name}: a plug-in of {package}"
            except (PluginError, UsageError) as error:
                yield f"{what} {name}: broken ({error})"

"""How a backend is found by its format's name; only the one that is asked for is imported."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from qexport.backends.protocol import Backend
from qexport.errors import UsageError
from qexport.planning.profile import RuntimeProfile
from qexport.system.machine import ANY
from qexport.vocabulary import FORMAT_ALIASES, OTHER_FORMATS, closest, plain

if TYPE_CHECKING:
    pass


GROUP = "qexport.backends"


def profile_for(backend: Backend, precision: str, cpu: str) -> RuntimeProfile:
    """The backend's profile for a calibrated precision on a kind of CPU."""
    kinds = backend.profiles[precision]
    return kinds.get(cpu, kinds[ANY])


def check_precision(backend: Backend, precision: str) -> None:
    """Refuse a precision that a backend cannot write.

    Raises:
        UsageError: with those that it can.
    """
    if precision not in backend.precisions:
        able = ", ".join(sorted(backend.precisions))
        raise UsageError(f"format {backend.name} cannot be written as {precision}", f"it can as {able}")


def available_formats() -> tuple[str, ...]:
    """Names of all registered backends, sorted; none of them is imported."""
    return tuple(sorted({entry.name for entry in entry_points(group=GROUP)}))


def formats_from_onnx() -> tuple[str, ...]:
    """Names of the formats that can be written from an ONNX file: those whose backend says `from_onnx = True`."""
    return tuple(name for name in available_formats() if getattr(find_class(name), "from_onnx", False))


def other_formats(name: str, precision: str) -> tuple[str, ...]:
    """Names of the formats that can be `precision` and do not share the code of the one called `name`."""
    own = find_class(name)
    others = {other: find_class(other) for other in available_formats()}
    related = {other for other, kind in others.items() if issubclass(kind, own) or issubclass(own, kind)}
    return tuple(other for other, kind in others.items() if other not in related and precision in kind.precisions)


def unknown_format(name: str) -> UsageError:
    """What is said of a name that no backend has."""
    formats = available_formats()
    if plain(name) in OTHER_FORMATS:
        return UsageError(f"format {name} has no backend in qexport", f"choose from {', '.join(formats)}")
    meant = closest(name, formats, FORMAT_ALIASES)
    return UsageError(
        f"unknown format {name}", f"choose from {', '.join(formats)}" + (f"; did you mean {meant}" if meant else "")
    )


def find_class(name: str) -> type[Backend]:
    """Import the class of the backend called `name`.

    Raises:
        UsageError: no such backend.
    """
    for entry in entry_points(group=GROUP):
        if entry.name == name:
            found: type[Backend] = entry.load()
            return found
    raise unknown_format(name)


def find_backend(name: str) -> Backend:
    """Return the backend called `name`.

    Raises:
        UsageError: no such backend.
        MissingExtraError: packages that it needs are not installed.
    """
    return find_class(name)()

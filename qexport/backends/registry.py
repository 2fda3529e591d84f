"""How a backend is found by its format's name; no runtime is imported."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from qexport.backends.device_fit import DeviceFit
from qexport.backends.info import BackendInfo
from qexport.backends.protocol import Backend, DeviceChecker
from qexport.errors import PluginError, UsageError
from qexport.plugins import BACKENDS, check_modules, lookup, names
from qexport.targets import TARGETS
from qexport.vocabulary import FORMAT_ALIASES, OTHER_FORMATS, guess, plain

ALL = ("all", "any", "every", "*")
"""What people write for every format: some are for devices, and two write the same files."""


def available_formats() -> tuple[str, ...]:
    """Names of all registered backends, sorted; none of them is imported."""
    return names(BACKENDS)


def find_class(name: str) -> type[Backend]:
    """Import the class of the backend called `name`, which imports no runtime.

    Raises:
        UsageError: no such backend.
        PluginError: the package that registers it is broken.
    """
    if name not in available_formats():
        raise unknown_format(name)
    found: Any = lookup(BACKENDS, name)
    info = getattr(found, "info", None)
    if not isinstance(found, type) or not isinstance(info, BackendInfo) or info.name != name:
        lacks = "has no BackendInfo of this name" if isinstance(found, type) else "is no class"
        raise PluginError(f"{name} in {BACKENDS}: {found!r} {lacks}", "repair or uninstall its package")
    kind: type[Backend] = found
    return kind


def find_info(name: str) -> BackendInfo:
    """What the format called `name` is. Raises as `find_class` does."""
    return find_class(name).info


def find_backend(name: str) -> Backend:
    """Return the backend called `name`.

    Raises:
        UsageError: no such backend.
        PluginError: the package that registers it is broken.
        MissingExtraError: packages that it needs are not installed.
    """
    kind = find_class(name)
    check_modules(f"format {name}", kind.info.modules, kind.info.install)
    return kind()


def infos() -> tuple[BackendInfo, ...]:
    """All formats by name, but for those whose package is broken: asking for such a one says so."""
    return known(available_formats())


def known(formats: Iterable[str]) -> tuple[BackendInfo, ...]:
    """Those of the formats that are registered, and whose package is not broken."""
    able = set(formats) & set(available_formats())
    found = []
    for name in sorted(able):
        with suppress(PluginError):
            found.append(find_info(name))
    return tuple(found)


def formats_from_onnx() -> tuple[str, ...]:
    """Names of the formats that can be written from an ONNX file."""
    return tuple(info.name for info in infos() if info.from_onnx)


def other_formats(name: str, precision: str) -> tuple[str, ...]:
    """Names of the formats that can be `precision` and do not share the code of the one called `name`."""
    own = find_info(name)
    return tuple(
        info.name
        for info in infos()
        if info.name != name and not (own.family and info.family == own.family) and precision in info.precisions
    )


def display_name(name: str) -> str:
    """A format's name as people read it; the name itself where no such format is installed."""
    try:
        return find_info(name).title
    except (UsageError, PluginError):
        return name


def reported_packages() -> tuple[str, ...]:
    """Distributions of all formats whose versions belong into a report."""
    return tuple(dict.fromkeys(package for info in infos() for package in info.packages))


def device_check(backend: Backend, target: str | None) -> Callable[[Path, Path], DeviceFit] | None:
    """What checks a backend's files for a device that is not here; None where there is no such device.

    It takes the file, and the place where it is going to be, beside which it may write.
    """
    device = TARGETS.get(target or "")
    if device and device.check:
        check: Callable[[Path, Path], DeviceFit] = resolve_name(device.check)
        return check
    return backend.fit if isinstance(backend, DeviceChecker) else None


def unknown_format(name: str) -> UsageError:
    """What is said of a name that no backend has."""
    formats = available_formats()
    if plain(name) in ALL:
        every = ",".join(info.name for info in infos() if info.engine is None)
        return UsageError(f"format {name} is none", f"name those that are meant, such as --format {every}")
    if plain(name) in OTHER_FORMATS:
        return UsageError(f"format {name} has no backend in qexport", f"choose from {', '.join(formats)}")
    return UsageError(
        f"unknown format {name}", f"choose from {', '.join(formats)}{guess(name, formats, FORMAT_ALIASES)}"
    )

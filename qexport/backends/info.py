"""What a format is: everything that can be asked of a backend without its runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qexport.errors import UnavailableError, UsageError
from qexport.lowering.request import Target
from qexport.planning.runtime_profiles import RuntimeProfile
from qexport.system.machine import ANY

if TYPE_CHECKING:
    from qexport.programs.program import Program


@dataclass(frozen=True)
class Option:
    """An option of one backend, in `Lowering.options` or in what `EngineBuilder.build` is given.

    Attributes:
        kind: type of its value; None is good, too, where it is the default.
        choices: values that it may have; empty for all.
    """

    name: str
    kind: type
    default: Any = None
    help: str = ""
    choices: tuple[Any, ...] = ()

    def checked(self, value: Any) -> Any:
        """Return a value that is good for this option, a number written as text included.

        Raises:
            UsageError: it is not.
        """
        if value is None or value == self.default:
            return self.default
        try:
            made = value if isinstance(value, self.kind) else self._made(value)
        except (TypeError, ValueError) as error:
            wanted = f"a value of type {self.kind.__name__}"
            raise UsageError(f"option {self.name} cannot be {value}", f"give {wanted}") from error
        if self.choices and made not in self.choices:
            raise UsageError(
                f"option {self.name} cannot be {value}", f"give one of {', '.join(map(str, self.choices))}"
            )
        return made

    def _made(self, value: Any) -> Any:
        """Make a value of text; every text but the empty one would be true."""
        if self.kind is not bool:
            return self.kind(value)
        if str(value).lower() not in SWITCH:
            raise ValueError(value)
        return SWITCH[str(value).lower()]


SWITCH = {"true": True, "false": False}
OPSET = Option("opset", int, None, "ONNX operator set; None for the one that suits the runtime")


@dataclass(frozen=True)
class Engine:
    """What is built from a format's files for one machine or device.

    Attributes:
        suffix: what its name ends with, behind the precision.
        runtime: what runs it where it was built; None if nothing does.
        builder: what builds it, a module that is imported or a program that is run.
        install: what adds the builder, as a command or an address.
    """

    suffix: str
    runtime: str | None = None
    builder: str = ""
    install: str = ""


def _no_float_weights(program: Program) -> Mapping[str, str]:
    return {}


@dataclass(frozen=True)
class BackendInfo:
    """One export format, and what the runtime that executes it can do.

    Attributes:
        name: as `--format` and entry points have it.
        title: as people read it.
        suffix: what an artifact's name ends with.
        runtime: what `Backend.runner` runs artifacts with: interpreter and kernels.
        precisions: what it can be written as.
        profiles: of the calibrated precisions, by kind of CPU (`qexport.system.machine`), "any" for those that are not
            listed.
        modules: what has to be importable for it to be written, run and read.
        packages: distributions whose versions belong into a report.
        install: what pip installs for it.
        options: its own; `options_from` reads them.
        engine: what is built from its files; None where they are run as they are.
        family: formats of one family share code, so that one fails where the other does; "" for none.
        dynamic: whether the number of images in a run can be left open.
        from_onnx: whether it can be written from an ONNX file.
        offloadable: whether writing it is slow and shares nothing with other formats, so that a worker may do it.
        timed: whether `runtime` is what its files are for, so that latency means something.
        half_scope: what FP16 files have in FP16: layers' "weights", all "constants", or the "arithmetic", too.
        float_weights: asked when "int8-dynamic" is planned: layers of a program that keep float weights, with the
            reason.
    """

    name: str
    title: str
    suffix: str
    runtime: str
    precisions: frozenset[str]
    profiles: Mapping[str, Mapping[str, RuntimeProfile]] = field(default_factory=dict)
    modules: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    install: str = ""
    options: tuple[Option, ...] = ()
    engine: Engine | None = None
    family: str = ""
    dynamic: bool = False
    from_onnx: bool = False
    offloadable: bool = False
    timed: bool = True
    half_scope: str = "arithmetic"
    float_weights: Callable[[Program], Mapping[str, str]] = _no_float_weights


def options_from(info: BackendInfo, given: Mapping[str, Any]) -> dict[str, Any]:
    """A backend's own options by name, its defaults for those that are not given; what is not its own is left out.

    Raises:
        UsageError: a value that cannot be.
    """
    return {option.name: option.checked(given.get(option.name)) for option in info.options}


def profile_for(info: BackendInfo, precision: str, cpu: str) -> RuntimeProfile:
    """The profile for a calibrated precision on a kind of CPU."""
    kinds = info.profiles[precision]
    return kinds.get(cpu, kinds[ANY])


def target_for(info: BackendInfo, precision: str, cpu: str = ANY) -> Target:
    """What is built in a precision, for a kind of CPU.

    Raises:
        UsageError: the format has no such precision.
    """
    check_precision(info, precision)
    return Target(info.name, precision, cpu, profile_for(info, precision, cpu) if precision in info.profiles else None)


def check_precision(info: BackendInfo, precision: str) -> None:
    """Raise `UnavailableError` where a format cannot be written in a precision."""
    if precision not in info.precisions:
        able = ", ".join(sorted(info.precisions))
        raise UnavailableError(f"format {info.name} cannot be written as {precision}", f"it can as {able}")

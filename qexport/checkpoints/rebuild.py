"""Make a model of what `unpickle` noted, once it is proven to be nothing but layers with data in them.

A layer's class is on the list (`allowed`); it was made by no call; what is set on it shadows no method and is a tensor,
a number, a string, a container of those or another such layer; it has no hooks. Then nothing runs but the library's own
code on numbers of the file's own. Constructors are not called, so that pruned models come out as they went in.
"""

from __future__ import annotations

import inspect
import math
import re
from collections import OrderedDict
from collections.abc import Callable
from keyword import iskeyword
from pathlib import PurePosixPath, PureWindowsPath
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.storage import TypedStorage, UntypedStorage

from qexport.checkpoints.allowed import BESIDE, DTYPE, LEFT_OUT, STORAGE, layer_class
from qexport.checkpoints.bounds import MAX_STEPS, MAX_STRANGE_KEYS, Allowance, inside, shortened, strange_keys
from qexport.checkpoints.model_yaml import evaluated
from qexport.checkpoints.unpickle import Noted, full_name
from qexport.system.given_files import ALWAYS_UNPACKED

PLAIN = (type(None), bool, int, float, complex, str, bytes)
LEFT_OUT_ATTRIBUTES = frozenset({"criterion", "transforms"})
"""What a training sets on a model and an export has no use for."""
MAX_VALUES = 1_000_000
"""In one list or dictionary, with all that is in what it holds."""
VIEWED = 4
"""Times their bytes that all tensors may have of the storages that they are views of."""
WORD = re.compile("[A-Za-z0-9_]+")
"""Of a layer, a parameter or another attribute: not all that Python takes for a name."""
MAX_PARTS = 100_000
"""Layers, parameters and buffers of a layer, each as often as there are paths to it: so torch walks them."""
MAX_BITS = 128
"""Of a whole number: what computes with larger ones may take for ever."""
NUMBERS = (type(None), bool, int, float)
PARTS = {"_modules": nn.Module, "_parameters": nn.Parameter, "_buffers": Tensor}
MISSING = object()


class UnprovenError(Exception):
    """A checkpoint holds something that is not known to be harmless; the message says what and where."""


def is_allowed(name: str) -> bool:
    """Whether a checkpoint may ask for a name."""
    if name in MAKERS or name == "builtins.getattr":
        return True
    return any(each.fullmatch(name) for each in (DTYPE, STORAGE, LEFT_OUT, BESIDE)) or layer_class(name) is not None


class Rebuilder:
    """Makes values of what was noted; what the pickle shares is shared again."""

    def __init__(self) -> None:
        self.made: dict[int, Any] = {}
        self.kept: list[Any] = []  # an id means something only as long as its object lives
        self.sizes: dict[int, int] = {}
        self.storages: set[int] = set()
        self.placed: set[int] = set()  # tensors that layers have; all live as long as what was made
        self.room = ALWAYS_UNPACKED
        self.copied: set[int] = set()
        self.steps = Allowance(MAX_STEPS, "values that are copied", UnprovenError)
        self.strange = Allowance(MAX_STRANGE_KEYS, "keys that are neither texts nor small numbers", UnprovenError)

    def value(self, noted: Any, place: str) -> Any:
        """The value that `noted` stands for.

        Args:
            place: where it is, for messages.

        Raises:
            UnprovenError: it is not made of layers and data.
        """
        kind = type(noted)
        if kind in PLAIN:
            if kind is int and noted.bit_length() > MAX_BITS:
                raise UnprovenError(f"{place} is a number of {noted.bit_length():,} bits")
            return noted
        if kind is type and issubclass(noted, Noted):
            return _constant(noted, place)
        if id(noted) not in self.made:
            made = self._layer_or_value(noted, place) if issubclass(kind, Noted) else self._container(noted, place)
            self._measure(made, place)
            self._keep(noted, made)
        return self.made[id(noted)]

    def _measure(self, made: Any, place: str) -> None:
        """Refuse lists in lists, and layers in layers, that are endless to walk, as each is in many places."""
        most = MAX_VALUES
        if isinstance(made, nn.Module):
            most = MAX_PARTS
            inside = [*made._modules.values(), *made._parameters.values(), *made._buffers.values()]
        elif isinstance(made, dict):
            inside = [*made.keys(), *made.values()]
        elif isinstance(made, list | tuple | set | frozenset):
            inside = list(made)
        else:
            return
        self.sizes[id(made)] = size = 1 + sum(self.sizes.get(id(each), 1) for each in inside)
        if size > most:
            raise UnprovenError(f"{place} stands for more than {most:,} values")

    def view(self, storage: UntypedStorage, wanted: int, place: str) -> None:
        """Count the bytes of a tensor; refuse it where all together are many times what is stored.

        Layers that share their weights are few, and what repeats one number (a stride of 0) is small.
        """
        if storage.data_ptr() not in self.storages:
            self.storages.add(storage.data_ptr())
            self.room += VIEWED * storage.nbytes()
        self.room -= wanted
        if self.room < 0:
            raise UnprovenError(f"{place} and others are of many times the bytes that are stored")

    def _keep(self, noted: Any, made: Any) -> None:
        self.made[id(noted)] = made
        self.kept.append(noted)

    def _container(self, noted: Any, place: str) -> Any:
        kind = type(noted)
        if kind is dict:
            return self._mapping(list(noted.items()), place)
        if kind in (list, tuple, set, frozenset):
            return kind(self.value(each, place) for each in noted)
        raise UnprovenError(f"{place} is a {kind.__name__}")

    def _mapping(self, pairs: list[tuple[Any, Any]], place: str) -> dict[Any, Any]:
        made = [(self.value(key, place), self.value(value, inside(place, key))) for key, value in pairs]
        self.strange.take(strange_keys(key for key, _ in made))
        return dict(made)

    def _layer_or_value(self, noted: Noted, place: str) -> Any:
        name = full_name(noted)
        if LEFT_OUT.fullmatch(name):
            return None
        if name in MAKERS:
            self._copy(noted)
            return MAKERS[name](self, noted, place)
        kind = layer_class(name)
        if kind is None:
            raise UnprovenError(f"{place} is a {name}")
        return self._layer(kind, noted, place)

    def _copy(self, noted: Noted) -> None:
        """Count what is made of arguments that something else was made of before."""
        for each in noted.args:
            if isinstance(each, str | bytes | list | tuple | dict | set | frozenset):
                self.steps.take(len(each) if id(each) in self.copied else 0)
                self.copied.add(id(each))

    def _layer(self, kind: type[nn.Module], noted: Noted, place: str) -> nn.Module:
        what = f"{place} ({kind.__name__})"
        if noted.called or noted.args or noted.kwargs or noted.items or noted.pairs:
            raise UnprovenError(f"{what} is made by a call")
        if type(noted.state) is not dict or not all(type(key) is str for key in noted.state):
            raise UnprovenError(f"{what} has a state of another kind than layers have")
        layer = object.__new__(kind)
        nn.Module.__init__(layer)
        self._keep(noted, layer)  # before its attributes: they may lead back to it
        state = {}
        for name, given in noted.state.items():
            value = self._attribute(kind, noted, name, given, place)
            if value is not MISSING:
                state[name] = value
        _set_state(layer, state, what)
        return layer

    def _attribute(self, kind: type[nn.Module], layer: Noted, name: str, given: Any, place: str) -> Any:
        """An attribute's value, `MISSING` where the class has a better one or nobody needs it."""
        what, inner = f"{place} ({kind.__name__})", inside(place, name)
        if name in PARTS:
            return self._parts(kind, name, given, place)
        if name == "forward":
            return self._fused_forward(kind, layer, given, what)
        if name in LEFT_OUT_ATTRIBUTES or (name == "detect" and _is_forward_of_a_class(given)):
            return MISSING
        value = self.value(given, inner)
        _check_name(kind, name, value, what)
        if "hook" in name:
            if value:
                raise UnprovenError(f"{what} has hooks ({shortened(name)})")
            return MISSING
        if name == "yaml":
            spoken = evaluated(value)
            if spoken:
                raise UnprovenError(f"{inner} has {spoken} in it, which would be run as code")
        return value

    def _parts(self, kind: type[nn.Module], name: str, given: Any, place: str) -> dict[str, Any]:
        """Layers, parameters or buffers of a layer, by name."""
        parts = self.value(given, place)
        wanted = PARTS[name]
        if not isinstance(parts, dict):
            raise UnprovenError(f"{place} ({kind.__name__}) has {name} that are no dictionary")
        for key, part in parts.items():
            if type(key) is not str or not (part is None or isinstance(part, wanted)):
                raise UnprovenError(f"{inside(place, key)} is no {wanted.__name__}")
            _check_name(kind, key, part, f"{place} ({kind.__name__})")
            if isinstance(part, Tensor):
                self._place(part, inside(place, key))
        return dict(parts)

    def _place(self, tensor: Tensor, place: str) -> None:
        """Count a tensor that more than one layer has as often: each makes one of its own where types change."""
        if id(tensor) in self.placed:
            self.view(tensor.untyped_storage(), tensor.nbytes, place)
        self.placed.add(id(tensor))

    def _fused_forward(self, kind: type[nn.Module], layer: Noted, given: Any, what: str) -> Any:
        """Ultralytics sets `forward` to the layer's own `forward_fuse` when it fuses it."""
        if isinstance(given, Noted) and full_name(given) == "builtins.getattr" and len(given.args) == 2:
            owner, name = given.args
            function = inspect.getattr_static(kind, "forward_fuse", None)
            if owner is layer and name == "forward":
                return MISSING
            if owner is layer and name == "forward_fuse" and type(function) is FunctionType:
                return MethodType(function, self.made[id(layer)])
        raise UnprovenError(f"{what} has a forward of its own")


def _set_state(layer: nn.Module, state: dict[str, Any], what: str) -> None:
    """Set a layer's attributes, those too that its class computes of others for older files.

    A class computes with what it finds: a list times a number is as long as both say. So it is shown numbers and parts.

    Raises:
        UnprovenError: the class needs another.
    """
    shown = {
        name: value if name in PARTS or type(value) in NUMBERS or isinstance(value, nn.Module) else None
        for name, value in state.items()
    }
    if type(layer).__setstate__ is not nn.Module.__setstate__:
        try:
            layer.__setstate__(shown)
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise UnprovenError(f"{what} has attributes of other types than its class computes with") from error
    nn.Module.__setstate__(layer, state)


def _check_name(kind: type[nn.Module], name: str, value: Any, what: str) -> None:
    """An attribute may hide nothing that is called, and its name is a word.

    torch writes a graph as Python code, the names of its layers and tensors in quotation marks, and runs that.

    Raises:
        UnprovenError: it would, or is none.
    """
    hidden, shown = inspect.getattr_static(kind, name, MISSING), shortened(name)
    if not WORD.fullmatch(name) or iskeyword(name):
        raise UnprovenError(f"{what} has an attribute {shown!r}, which is no name that a layer gives")
    if name.startswith("__"):
        raise UnprovenError(f"{what} has an attribute {shown}")
    if hidden is MISSING or isinstance(hidden, property):  # a property hides what lies under its name
        return
    if name == "type" and type(value) is str:  # Ultralytics keeps the name of the layer's class there
        return
    if callable(hidden) or hasattr(hidden, "__get__") or isinstance(value, nn.Module):
        raise UnprovenError(f"{what} has an attribute {shown} in place of its class's")


def _is_forward_of_a_class(given: Any) -> bool:
    """Whether it is what heads of 2023 kept to run the detector's `forward`, and today's no longer read."""
    return (
        isinstance(given, Noted)
        and full_name(given) == "builtins.getattr"
        and len(given.args) == 2
        and isinstance(given.args[0], type)
        and layer_class(full_name(given.args[0])) is not None
        and given.args[1] == "forward"
    )


def _constant(noted: type[Noted], place: str) -> Any:
    name = full_name(noted)
    if not DTYPE.fullmatch(name) or not isinstance(getattr(torch, noted.name, None), torch.dtype):
        raise UnprovenError(f"{place} is {name} itself")
    return getattr(torch, noted.name)


def _tensor(builder: Rebuilder, noted: Noted, place: str) -> Tensor:
    """A view of a storage, (storage, offset, size, stride, …), inside its bounds and without hooks."""
    storage, offset, size, stride, *extras = noted.args
    size, stride = builder.value(size, place), builder.value(stride, place)
    counts = [offset, *size, *stride]
    if type(storage) is not TypedStorage or not all(type(count) is int and count >= 0 for count in counts):
        raise UnprovenError(f"{place} is no plain tensor")
    untyped, dtype = vars(storage).get("_untyped_storage"), vars(storage).get("dtype")
    if type(untyped) is not UntypedStorage or type(dtype) is not torch.dtype or len(size) != len(stride):
        raise UnprovenError(f"{place} is no plain tensor")
    if any(builder.value(each, place) for each in extras[1:2]):
        raise UnprovenError(f"{place} has hooks")
    furthest = offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True)) + 1
    if 0 not in size and furthest * dtype.itemsize > untyped.nbytes():
        raise UnprovenError(f"{place} reaches beyond what is stored")
    builder.view(untyped, math.prod(size) * dtype.itemsize, place)
    with torch.no_grad():
        return torch.empty(0, dtype=dtype).set_(untyped, offset, tuple(size), tuple(stride))


def _parameter(builder: Rebuilder, noted: Noted, place: str) -> nn.Parameter:
    """(tensor, requires_grad, hooks, what was set on it): gradients and what was set on it are nothing to an export."""
    tensor = builder.value(noted.args[0], place)
    if not isinstance(tensor, Tensor) or any(builder.value(each, place) for each in noted.args[2:3]):
        raise UnprovenError(f"{place} is no plain parameter")
    return nn.Parameter(tensor, requires_grad=False)


def _ordered(builder: Rebuilder, noted: Noted, place: str) -> OrderedDict[Any, Any]:
    pairs = [*(noted.args[0] if noted.args else ()), *noted.pairs]
    return OrderedDict(builder._mapping([(key, value) for key, value in pairs], place))


def _set(builder: Rebuilder, noted: Noted, place: str) -> set[Any] | frozenset[Any]:
    items = [builder.value(each, place) for each in [*(noted.args[0] if noted.args else ()), *noted.items]]
    builder.strange.take(strange_keys(items))
    return set(items) if noted.name == "set" else frozenset(items)


def _namespace(builder: Rebuilder, noted: Noted, place: str) -> dict[str, Any]:
    state = builder.value(noted.state or {}, place)
    if not isinstance(state, dict):
        raise UnprovenError(f"{place} is no namespace")
    return state


def _encoded(_builder: Rebuilder, noted: Noted, place: str) -> bytes:
    """Bytes, as protocol 2 has them."""
    text, *encoding = noted.args
    if type(text) is not str or encoding not in (["latin1"], ["latin-1"]):
        raise UnprovenError(f"{place} is no plain bytes")
    return text.encode("latin1")


def _size(builder: Rebuilder, noted: Noted, place: str) -> torch.Size:
    return torch.Size(builder.value(noted.args[0] if noted.args else (), place))


def _device(_builder: Rebuilder, _noted: Noted, _place: str) -> torch.device:
    return torch.device("cpu")  # where storages are loaded


def _path(builder: Rebuilder, noted: Noted, place: str) -> str:
    kind = PureWindowsPath if noted.name == "WindowsPath" else PurePosixPath
    return str(kind(*(str(builder.value(part, place)) for part in noted.args)))


def _dtype(_builder: Rebuilder, noted: Noted, place: str) -> np.dtype[Any]:
    code = noted.args[0] if noted.args else None
    if type(code) is not str or code[:1] not in "biuf" or not code[1:].isdigit():
        raise UnprovenError(f"{place} is no plain number of NumPy's")
    return np.dtype(code)


def _scalar(builder: Rebuilder, noted: Noted, place: str) -> bool | int | float:
    dtype, data = (builder.value(each, place) for each in noted.args)
    if not isinstance(dtype, np.dtype) or type(data) is not bytes or len(data) != dtype.itemsize:
        raise UnprovenError(f"{place} is no plain number of NumPy's")
    number: bool | int | float = np.frombuffer(data, dtype)[0].item()
    return number


MAKERS: dict[str, Callable[[Rebuilder, Noted, str], Any]] = {
    "builtins.set": _set,
    "builtins.frozenset": _set,
    "collections.OrderedDict": _ordered,
    "_codecs.encode": _encoded,
    "torch.Size": _size,
    "torch.device": _device,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "ultralytics.utils.IterableSimpleNamespace": _namespace,
    "ultralytics.yolo.utils.IterableSimpleNamespace": _namespace,
    "types.SimpleNamespace": _namespace,
    "argparse.Namespace": _namespace,
    "pathlib.PosixPath": _path,
    "pathlib.WindowsPath": _path,
    "pathlib._local.PosixPath": _path,
    "pathlib._local.WindowsPath": _path,
    "numpy.dtype": _dtype,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
}

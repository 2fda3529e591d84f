"""Read a checkpoint's pickle as data: what it would make or call is noted down, and nothing is made or called.

Every name that the pickle asks for becomes a class of our own that only keeps what it is given. So the pickle machine
has nothing else to call, whatever the file holds. `rebuild` makes models of what was noted.
"""

from __future__ import annotations

import io
import pickle
import warnings
from functools import cache
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from qexport.compat.patches import TORCH_LOADERS, without_variable


class Noted:
    """A name that a pickle asks for (the class), and what it would make with it (an instance).

    Attributes:
        module, name: what the pickle calls it.
        dtype, dump_patches: torch reads them of what stands for the type of a storage, or of a layer in older files.
        args, kwargs: what it would be made of.
        called: made by a call, rather than by `__new__` alone as plain objects are.
        state: what would be set on it afterwards, None if nothing.
        items, pairs: what would be added to it, as to a list or a set, and as to a dictionary.
    """

    module: ClassVar[str] = ""
    name: ClassVar[str] = ""
    dtype: ClassVar[torch.dtype] = torch.uint8
    dump_patches: ClassVar[bool] = False
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    called: bool
    state: Any
    items: list[Any]
    pairs: list[tuple[Any, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Noted:
        """Keep what a constructor would get."""
        made = object.__new__(cls)
        made.args, made.kwargs, made.called = args, kwargs, False
        made.state, made.items, made.pairs = None, [], []
        return made

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self.called = True

    def __setstate__(self, state: Any) -> None:
        if self.state is not None:
            raise pickle.UnpicklingError("the state of one object is set twice")
        self.state = state

    def append(self, item: Any) -> None:
        """Keep what would be added to a list."""
        self.items.append(item)

    def extend(self, items: list[Any]) -> None:
        """Keep what would be added to a list."""
        self.items.extend(items)

    def add(self, item: Any) -> None:
        """Keep what would be added to a set."""
        self.items.append(item)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.pairs.append((key, value))


@cache
def _standing_for(module: str, name: str) -> type[Noted]:
    return type("Noted", (Noted,), {"module": module, "name": name})


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        # Protocol 2, which torch.save writes, has Python 2's name for it.
        return _standing_for("builtins" if module == "__builtin__" else str(module), str(name))


def _load(file: Any, **options: Any) -> Any:
    return _Unpickler(file, **options).load()


_AS_DATA = SimpleNamespace(Unpickler=_Unpickler, load=_load, __name__="pickle")


def unpickled(data: bytes) -> Any:
    """The content of a file that `torch.save` wrote: data, storages of tensors on the CPU, and `Noted`.

    Raises:
        Exception: of any kind: damaged files make torch and pickle raise whatever they like.
    """
    with warnings.catch_warnings(), without_variable(TORCH_LOADERS):
        warnings.simplefilter("ignore")  # about the sources of classes, which are not compared
        _refuse_script(data)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=False, pickle_module=_AS_DATA)


def _refuse_script(data: bytes) -> None:
    """Of a TorchScript archive `torch.load` would make something that runs; the reader that it asks is asked here."""
    if (
        data.startswith(b"PK\x03\x04")
        and "constants.pkl" in torch._C.PyTorchFileReader(io.BytesIO(data)).get_all_records()
    ):
        raise pickle.UnpicklingError("it is a TorchScript archive")


def full_name(noted: Noted | type[Noted]) -> str:
    """What the pickle calls it: module and name."""
    return f"{noted.module}.{noted.name}"


def names_in(content: Any) -> list[str]:
    """The names that a content asks for, each once, in the order of the pickle."""
    found: dict[str, None] = {}
    seen: set[int] = set()
    left = [content]
    while left:
        each = left.pop()
        kind = type(each)
        if kind is type and issubclass(each, Noted):
            found[full_name(each)] = None
        elif id(each) not in seen:
            seen.add(id(each))
            if issubclass(kind, Noted):
                found[full_name(each)] = None
                left += reversed([each.args, each.kwargs, each.state, each.items, each.pairs])
            elif kind is dict:
                left += reversed([*each.keys(), *each.values()])
            elif kind in (list, tuple, set, frozenset):
                left += reversed(list(each))
    return list(found)

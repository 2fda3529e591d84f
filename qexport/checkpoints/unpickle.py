"""Read a checkpoint's pickle as data: what it would make or call is noted down, and nothing is made or called.

Every name that the pickle asks for becomes a class of our own that only keeps what it is given. So the pickle machine
has nothing else to call, whatever the file holds. `rebuild` makes models of what was noted.
"""

from __future__ import annotations

import io
import pickle
import struct
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from qexport.checkpoints.bounds import MAX_NAME, MAX_STEPS, MAX_STRANGE_KEYS, Allowance, strange_keys
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


MAX_HASHED = 5000
"""Values that one tuple or set stands for."""
UNUSED = (pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER)
"""Operations that no file has: what a process has registered for itself, and buffers beside the pickle."""
Operation = Callable[[Any], None]
_PLAIN: dict[int, Operation] = dict(pickle._Unpickler.dispatch)


class _Unpickler(pickle._Unpickler):
    """Python's own pickle machine, with less that it can do; the compiled one makes room for any number that it reads.

    Attributes:
        room: bytes that storages may have yet.
        steps: operations, and values that they copy.
        strange: keys of dictionaries and items of sets whose hash the file can choose.
    """

    room = 0
    stack: list[Any]
    metastack: list[list[Any]]
    read: Callable[[int], bytes]

    def __init__(self, file: Any, **options: Any) -> None:
        super().__init__(file, **options)
        self.sizes: dict[int, int] = {}
        self.hashable: list[Any] = []  # an id means something only as long as its object lives
        self.keys: set[str] = set()
        self.steps = Allowance(MAX_STEPS, "operations", pickle.UnpicklingError)
        self.strange = Allowance(
            MAX_STRANGE_KEYS, "keys that are neither texts nor small numbers", pickle.UnpicklingError
        )

    def find_class(self, module: str, name: str) -> Any:
        if len(module) + len(name) > MAX_NAME:
            raise pickle.UnpicklingError(f"a name in it has {len(module) + len(name):,} characters")
        # Protocol 2, which torch.save writes, has Python 2's name for it.
        return _standing_for("builtins" if module == "__builtin__" else str(module), str(name))

    def _instantiate(self, kind: Any, arguments: list[Any]) -> None:
        _expect(_is_name(kind), "calls", kind)
        self.stack.append(kind(*arguments) if arguments else kind.__new__(kind))

    def _reduced(self) -> None:
        _expect(_is_name(self.stack[-2]), "calls", self.stack[-2])
        self._copied(self.stack[-1])
        _PLAIN[pickle.REDUCE[0]](self)

    def _made(self) -> None:
        _expect(_is_name(self.stack[-2]), "makes", self.stack[-2])
        self._copied(self.stack[-1])
        _PLAIN[pickle.NEWOBJ[0]](self)

    def _made_by_name(self) -> None:
        _expect(_is_name(self.stack[-3]), "makes", self.stack[-3])
        self._copied(self.stack[-2])
        _expect(type(self.stack[-1]) is dict, "makes something of", self.stack[-1])
        self.steps.take(len(self.stack[-1]))
        _PLAIN[pickle.NEWOBJ_EX[0]](self)

    def _built(self) -> None:
        _expect(isinstance(self.stack[-2], Noted), "changes", self.stack[-2])
        _PLAIN[pickle.BUILD[0]](self)

    def _set_item(self) -> None:
        _expect(isinstance(self.stack[-3], dict | Noted), "changes", self.stack[-3])
        self.strange.take(strange_keys(self.stack[-2:-1]))
        _PLAIN[pickle.SETITEM[0]](self)

    def _set_items(self) -> None:
        _expect(isinstance(self.metastack[-1][-1], dict | Noted), "changes", self.metastack[-1][-1])
        self.strange.take(strange_keys(self.stack[::2]))
        _PLAIN[pickle.SETITEMS[0]](self)

    def _dictionary(self) -> None:
        self.strange.take(strange_keys(self.stack[::2]))
        _PLAIN[pickle.DICT[0]](self)

    def _added(self) -> None:
        _expect(isinstance(self.metastack[-1][-1], set | Noted), "changes", self.metastack[-1][-1])
        self.strange.take(strange_keys(self.stack))
        _PLAIN[pickle.ADDITEMS[0]](self)

    def _copied(self, arguments: Any) -> None:
        """Arguments are copied by every call: one tuple may be those of many."""
        _expect(type(arguments) is tuple, "makes something of", arguments)
        self.steps.take(len(arguments))

    def _byte_array(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.stack.append(bytearray(self.read(size)))  # of what is there, where less is there

    def _stored(self) -> None:
        """A storage that is asked for: there as a whole, for torch makes room for it, under a key that is a text."""
        kind, key, count = _storage(self.stack[-1])
        if key not in self.keys:
            self.keys.add(key)
            self.room -= count * kind.itemsize
        if count < 0 or self.room < 0:
            raise pickle.UnpicklingError("its storages have more bytes than the file")
        _PLAIN[pickle.BINPERSID[0]](self)

    dispatch: ClassVar[dict[int, Operation]] = {
        code: run for code, run in _PLAIN.items() if code not in {each[0] for each in UNUSED}
    } | {
        pickle.REDUCE[0]: _reduced,
        pickle.NEWOBJ[0]: _made,
        pickle.NEWOBJ_EX[0]: _made_by_name,
        pickle.BUILD[0]: _built,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _dictionary,
        pickle.ADDITEMS[0]: _added,
        pickle.BYTEARRAY8[0]: _byte_array,
        pickle.BINPERSID[0]: _stored,
    }


def _expect(holds: bool, verb: str, given: Any) -> None:
    if not holds:
        raise pickle.UnpicklingError(f"it {verb} a {type(given).__name__}")


def _is_name(given: Any) -> bool:
    return type(given) is type and issubclass(given, Noted)


def _storage(given: Any) -> tuple[torch.dtype, str, int]:
    """What a pickle says of a storage: the type of its numbers, its key, and how many there are."""
    kind = getattr(given[1], "dtype", None) if type(given) is tuple and len(given) > 1 else None
    match given:
        case ("storage", _, str(key), str(), int(count)) if isinstance(kind, torch.dtype):
            return kind, key, count
        case ("storage", _, str(key), str(), int(count), None | (str(), int(), int())) if isinstance(kind, torch.dtype):
            return kind, key, count
        case ("module", _, str(), str()):  # older files have the source of each class
            return torch.uint8, "", 0
    raise pickle.UnpicklingError("it asks for a storage in another way than torch.save does")


def _limited(code: int) -> Operation:
    """An operation that leaves a tuple or a set, which is refused where it stands for very many values.

    Each may hold another twice: what hashes or compares the outermost does so for every path to the innermost.
    """

    def run(machine: Any) -> None:
        if code == pickle.FROZENSET[0]:
            machine.strange.take(strange_keys(machine.stack))
        _PLAIN[code](machine)
        made = machine.stack[-1]
        size = 1 + sum(machine.sizes.get(id(each), 1) for each in made)
        machine.sizes[id(made)] = size
        machine.hashable.append(made)
        if size > MAX_HASHED:
            raise pickle.UnpicklingError(f"a {type(made).__name__} in it stands for more than {MAX_HASHED:,} values")

    return run


_Unpickler.dispatch |= {
    code: _limited(code) for (code,) in (pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3, pickle.FROZENSET)
}


def _counted(run: Operation) -> Operation:
    """An operation that is counted."""

    def counted(machine: Any) -> None:
        machine.steps.take(1)
        run(machine)

    return counted


_Unpickler.dispatch |= {code: _counted(run) for code, run in _Unpickler.dispatch.items()}


def _as_data(room: int) -> SimpleNamespace:
    """What torch takes for the module `pickle`."""
    kind = type("Unpickler", (_Unpickler,), {"room": room})
    return SimpleNamespace(Unpickler=kind, load=lambda file, **options: kind(file, **options).load(), __name__="pickle")


def unpickled(data: bytes) -> Any:
    """The content of a file that `torch.save` wrote: data, storages of tensors on the CPU, and `Noted`.

    Raises:
        Exception: of any kind: damaged files make torch and pickle raise whatever they like.
    """
    with warnings.catch_warnings(), without_variable(TORCH_LOADERS):
        warnings.simplefilter("ignore")  # about the sources of classes, which are not compared
        plain = _packed_again(data) if data.startswith(b"PK\x03\x04") else data
        return torch.load(io.BytesIO(plain), map_location="cpu", weights_only=False, pickle_module=_as_data(len(plain)))


def _packed_again(data: bytes) -> bytes:
    """The members of an archive that torch asks for, in one without anything that its reader could take otherwise.

    So what was bounded is what is read: another reader may find other sizes, or other members under the same names. Of
    a TorchScript archive, too, nothing is left that torch would make something of that runs.
    """
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as archive, zipfile.ZipFile(stream, "w") as plain:
        root = archive.namelist()[0].partition("/")[0]
        for name in dict.fromkeys(archive.namelist()):
            inside = name.removeprefix(f"{root}/")
            if inside in RECORDS or inside.startswith("data/"):
                plain.writestr(f"archive/{inside}", archive.read(name))
    return stream.getvalue()


RECORDS = ("data.pkl", "version", "byteorder", ".data/version", ".format_version", ".storage_alignment")


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

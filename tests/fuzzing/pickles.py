"""Pickles that nobody's `save` writes: operations of a plain one changed, and streams of hostile operations."""

from __future__ import annotations

import pickle
import pickletools
import struct
from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from random import Random

NAMES = tuple(
    tuple(each.split(" "))
    for each in """
builtins eval|builtins exec|builtins getattr|builtins setattr|builtins __import__|builtins open|builtins map
builtins print|builtins type|builtins object|builtins dict|builtins bytearray|builtins compile|builtins globals
builtins vars|builtins set|builtins frozenset|builtins list|builtins tuple|builtins range|builtins complex
builtins super|builtins property|__builtin__ eval|__builtin__ getattr|os system|os popen|os execv|os _exit|os remove
os.path join|posix system|nt system|subprocess Popen|subprocess check_output|subprocess.Popen __init__|pty spawn
socket create_connection|shutil rmtree|sys exit|sys setrecursionlimit|sys modules|sys modules.os|code interact
runpy run_path|timeit timeit|pdb run|bdb Bdb|importlib import_module|importlib reload
importlib.util spec_from_file_location|pkgutil resolve_name|pydoc locate|functools partial|functools reduce
operator attrgetter|operator methodcaller|operator itemgetter|itertools starmap|codecs decode|codecs encode
_codecs encode|_codecs decode|_codecs register|marshal loads|types CodeType|types FunctionType|types SimpleNamespace
types MethodType|argparse Namespace|copyreg _reconstructor|copyreg __newobj__|copy_reg _reconstructor|pickle loads
pickle Unpickler|_pickle loads|dill._dill _create_function|cloudpickle loads|joblib load|shelve open
collections OrderedDict|collections defaultdict|collections Counter|collections namedtuple|collections deque
datetime datetime|pathlib PosixPath|pathlib WindowsPath|pathlib Path|uuid UUID|decimal Decimal|fractions Fraction
ctypes CDLL|ctypes cast|webbrowser open|urllib.request urlopen|tempfile mktemp|logging.config dictConfig|venv create
numpy load|numpy fromfile|numpy dtype|numpy ndarray|numpy.core.multiarray _reconstruct|numpy.core.multiarray scalar
numpy._core.multiarray scalar|numpy._core.multiarray _reconstruct|numpy.lib.npyio load
numpy.testing._private.utils runstring|numpy.f2py.crackfortran getlincoef|numpy.distutils.exec_command exec_command
numpy.random._pickle __randomstate_ctor|torch load|torch Tensor|torch Size|torch device|torch dtype|torch float32
torch uint8|torch FloatStorage|torch BFloat16Storage|torch UntypedStorage|torch QInt8Storage
torch ComplexDoubleStorage|torch.storage TypedStorage|torch.storage UntypedStorage|torch.storage _load_from_bytes
torch.storage _LegacyStorage|torch.nn.parameter Parameter|torch.nn.parameter Buffer|torch._utils _rebuild_tensor
torch._utils _rebuild_tensor_v2|torch._utils _rebuild_tensor_v3|torch._utils _rebuild_parameter
torch._utils _rebuild_parameter_with_state|torch._utils _rebuild_sparse_tensor|torch._utils _rebuild_qtensor
torch._utils _rebuild_nested_tensor|torch._utils _rebuild_meta_tensor_no_storage
torch._utils _rebuild_wrapper_subclass|torch._utils _rebuild_device_tensor_from_numpy
torch._tensor _rebuild_from_type_v2|torch._utils _set_obj_state|torch.jit._script unpackage_script_module
torch.jit load|torch.hub load|torch.utils.cpp_extension load_inline|torch.fx.graph_module reduce_graph_module
torch.fx.graph_module _forward_from_src|torch._dynamo.guards GuardManager|torch._inductor.codecache compile_file
torch.distributed.rpc.internal deserialize|torch.utils.collect_env run|torch.nn.modules.conv Conv2d
torch.nn.modules.container Sequential|torch.nn.modules.batchnorm BatchNorm2d|torch.nn Module
torch.nn.modules.module Module|torch.nn.modules.activation SiLU|torch.nn.modules.lazy LazyModuleMixin
torch.nn.modules.utils os|torch.nn.modules.linear LazyLinear|torch.nn.modules.module Module.__class__
torch.optim.adamw AdamW|torch.nn.modules.module warnings|ultralytics.nn.tasks DetectionModel
ultralytics.nn.tasks torch_safe_load|ultralytics.nn.tasks parse_model|ultralytics.nn.tasks os
ultralytics.nn.modules.conv Conv|ultralytics.nn.modules.block C2f|ultralytics.nn.modules.head Detect
ultralytics.nn.modules.head copy|ultralytics.utils IterableSimpleNamespace|ultralytics.utils.loss v8DetectionLoss
ultralytics.utils SafeClass|ultralytics.utils.downloads safe_download|ultralytics.utils.checks check_requirements
ultralytics.models.yolo.model YOLO|ultralytics.hub login|ultralytics.engine.model Model
torchvision.ops.misc Conv2dNormActivation|torchvision.models.resnet ResNet|torchvision.transforms.transforms Lambda
torchvision.transforms.transforms Compose|torchvision.datasets.utils download_url|models.yolo Model|__main__ Model
__main__ __builtins__|lightning.pytorch.core LightningModule|mmdet.models Detector
qexport.checkpoints.unpickle Noted|qexport.checkpoints.unpickle _load|qexport.compat.patches import_module|a.b c
x \u2028y
""".strip()
    .replace("\n", "|")
    .split("|")
)
"""Module and name: of what runs code, of what checkpoints are made of, and of what is near to that."""
TEXTS = ("", "0", "forward", "_modules", "_parameters", "__class__", "__reduce__", "__init__", "touch HIT", "latin1")
KEYS = ("model", "ema", "train_args", "state_dict", "qexport", "modelopt", "epoch", "optimizer")
COUNTS = (0, 1, 2, 3, 7, 255, 256, 65535, 2**20, 2**31 - 1, 2**31, 2**32 - 1, 2**33, 2**63 - 1, 2**63)


def changed(content: bytes, random: Random) -> bytes:
    """A plain pickle with a few of its operations, or of its bytes, taken out, repeated, moved or replaced."""
    parts = list(operations(content))
    for _ in range(random.choice((1, 1, 1, 2, 3, 8))):
        random.choice(CHANGES)(parts, random)
    made = b"".join(parts)
    return mutated(made, random) if random.random() < 0.2 else made


@lru_cache(8)
def operations(content: bytes) -> tuple[bytes, ...]:
    """The bytes of each operation of a pickle that is whole."""
    places = [place or 0 for _, _, place in pickletools.genops(content)] + [len(content)]
    return tuple(content[start:end] for start, end in pairwise(places))


def mutated(content: bytes, random: Random) -> bytes:
    """Bytes of any kind with some of them changed, taken out, put in or repeated, or cut short."""
    made = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 4, 16))):
        place, length = random.randrange(len(made) + 1), random.choice((1, 1, 2, 4, 8, 64))
        part = made[place : place + length]
        made[place : place + length] = random.choice(
            (
                lambda part=part: bytes(each ^ (1 << random.randrange(8)) for each in part),
                lambda part=part: random.randbytes(len(part)),
                lambda part=part: b"",
                lambda part=part: bytes(part) * random.choice((2, 3, 100)),
                lambda part=part: random.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * len(part),
                lambda part=part: struct.pack("<Q", random.choice(COUNTS))[: len(part)],
                lambda part=part: bytes(part) + random.randbytes(random.choice((1, 4, 40))),
            )
        )()
    return bytes(made[: random.randrange(len(made) + 1)] if random.random() < 0.1 else made)


def _cut(parts: list[bytes], random: Random) -> None:
    place = random.randrange(len(parts) or 1)
    del parts[place : place + random.choice((1, 1, 2, 10))]


def _repeat(parts: list[bytes], random: Random) -> None:
    place, length = random.randrange(len(parts) + 1), random.choice((1, 1, 5, 40))
    parts[place:place] = parts[place : place + length] * random.choice((1, 1, 2, 50))


def _move(parts: list[bytes], random: Random) -> None:
    start, length = random.randrange(len(parts) + 1), random.choice((1, 3, 20))
    taken = parts[start : start + length]
    del parts[start : start + length]
    place = random.randrange(len(parts) + 1)
    parts[place:place] = taken


def _insert(parts: list[bytes], random: Random) -> None:
    place = random.randrange(len(parts) + 1)
    parts[place:place] = [value(random, 3)]


def _replace(parts: list[bytes], random: Random) -> None:
    """One value by another, a name by another name most of all."""
    kind = random.choice((b"c", b"X", b"K", b"M", b"J", b"G", b"N", b"h", b"}", b"]", b")", b"t", b"Q", b"R", b"b"))
    places = [place for place, each in enumerate(parts) if each[:1] == kind]
    if places:
        place = random.choice(places)
        parts[place] = name(random) if kind == b"c" else value(random, random.choice((0, 0, 2)))


CHANGES: tuple[Callable[[list[bytes], Random], None], ...] = (_cut, _repeat, _move, _insert, *[_replace] * 4)


def hostile(random: Random) -> bytes:
    """A stream of operations as no pickler makes it, with calls of everything that could run code."""
    if random.random() < 0.25:
        return b"\x80\x02" + random.choice(BOMBS)(random) + b"."
    made = value(random, random.choice((2, 4, 6)))
    inside = random.random()
    if inside < 0.6:  # as a part of what a checkpoint has
        made = b"}(" + text(random.choice(KEYS)) + made + text("epoch") + b"K\x00u"
    return random.choice((b"\x80\x02", b"\x80\x02", b"\x80\x04", b"\x80\x05", b"")) + made + b"."


def text(word: str) -> bytes:
    """A text, as protocol 2 has it."""
    encoded = word.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def name(random: Random) -> bytes:
    """A name that is asked for, in one of the ways that there are."""
    module, kind = random.choice(NAMES)[:2] if random.random() < 0.97 else ("\n", "é")
    if random.random() < 0.7:
        return b"c" + f"{module}\n{kind}\n".encode()
    return text(module) + text(kind) + b"\x93"


def value(random: Random, depth: int) -> bytes:
    """Operations that leave one value on the stack, most of the time."""
    made = random.choice(DEEP if depth > 0 else FLAT)(random, depth)
    return made + b"q" + bytes([random.randrange(256)]) if random.random() < 0.3 else made


def _many(random: Random, depth: int) -> bytes:
    return b"".join(value(random, depth - 1) for _ in range(random.choice((0, 1, 1, 2, 3, 5))))


def _persistent(random: Random, depth: int) -> bytes:
    """What stands for a storage: its type, key, place, and how many numbers it has."""
    kind = b"ctorch\n" + random.choice((b"Float", b"Half", b"Byte", b"QInt8", b"No", b"ComplexDouble")) + b"Storage\n"
    parts = [
        text("storage"),
        kind,
        text(random.choice(("0", "1", "2", "data", "../x", "é"))),
        text(random.choice(("cpu", "cuda:0", "meta", "xla", "x"))),
        number(random),
    ]
    if random.random() < 0.4:
        parts[random.randrange(5)] = value(random, min(depth, 2))
    if random.random() < 0.1:
        del parts[random.randrange(5)]
    return b"(" + b"".join(parts) + b"tQ" if random.random() < 0.9 else b"P0\n"


def _tensor(random: Random, depth: int) -> bytes:
    sizes = b"".join(number(random) for _ in range(random.choice((0, 1, 1, 2, 4))))
    strides = b"".join(number(random) for _ in range(random.choice((0, 1, 1, 2, 4))))
    storage = _persistent(random, depth) if random.random() < 0.9 else value(random, depth - 1)
    call = random.choice((b"_tensor_v2", b"_tensor", b"_parameter", b"_qtensor", b"_sparse_tensor", b"_tensor_v3"))
    extras = b"\x89" + value(random, 1) if random.random() < 0.5 else b""
    return (
        b"ctorch._utils\n_rebuild" + call + b"\n(" + storage + number(random) + b"(" + sizes + b"t(" + strides + b"t"
        + extras + b"tR"
    )  # fmt: skip


def number(random: Random) -> bytes:
    """A whole number, small or beyond what anything holds."""
    if random.random() < 0.6:
        return b"K" + bytes([random.choice((0, 1, 2, 3, 16, 64, 255))])
    count = random.choice((*COUNTS, *(-each for each in COUNTS), 10**40))
    return pickle.dumps(count, 2)[2:-1]


FLAT: tuple[Callable[[Random, int], bytes], ...] = (
    lambda random, _: random.choice((b"N", b"\x88", b"\x89", b")", b"]", b"}", b"\x8f")),
    lambda random, _: number(random),
    lambda random, _: b"G" + struct.pack(">d", random.choice((0.0, -1.5, 1e308, float("inf"), float("nan")))),
    lambda random, _: text(random.choice((*TEXTS, *KEYS, "\ud800", "\0", "x" * 500))),
    lambda random, _: random.choice((b"h", b"g")) and b"h" + bytes([random.choice((0, 1, 2, 7, 200, 255))]),
    lambda random, _: name(random),
    lambda random, _: b"C" + bytes([4]) + random.randbytes(4),
    lambda random, _: b"(dp0\n" if random.random() < 0.5 else b"I01\n",
)
DEEP: tuple[Callable[[Random, int], bytes], ...] = (
    *FLAT,
    *[lambda random, depth: name(random) + b"(" + _many(random, depth) + b"tR"] * 3,
    lambda random, depth: value(random, depth - 1) + value(random, depth - 1) + b"R",
    lambda random, depth: name(random) + b")\x81" + value(random, depth - 1) + b"b",
    lambda random, depth: name(random) + b")\x81}(" + text("_modules") + value(random, depth - 1) + b"ub",
    lambda random, depth: name(random) + value(random, depth - 1) + b"\x81",
    lambda random, depth: name(random) + b")}(" + text("dtype") + value(random, depth - 1) + b"u\x92",
    lambda random, depth: b"(" + _many(random, depth) + b"i" + "\n".join(random.choice(NAMES)[:2]).encode() + b"\n",
    lambda random, depth: b"(" + name(random) + _many(random, depth) + b"o",
    lambda random, depth: b"(" + _many(random, depth) + random.choice((b"t", b"l", b"d", b"\x91")),
    lambda random, depth: b"}(" + _many(random, depth) + b"u",
    lambda random, depth: b"}" + value(random, depth - 1) + value(random, depth - 1) + b"s",
    lambda random, depth: value(random, depth - 1) + b"(" + _many(random, depth) + random.choice((b"e", b"u", b"\x90")),
    lambda random, depth: value(random, depth - 1) + value(random, depth - 1) + random.choice((b"b", b"a", b"\x86")),
    lambda random, depth: value(random, depth - 1) + random.choice((b"0", b"2", b"1", b"Q", b"\x85", b"\x94", b"\x93")),
    *[lambda random, depth: _persistent(random, depth)] * 2,
    *[lambda random, depth: _tensor(random, depth)] * 2,
    lambda random, _: bytes([random.randrange(256)]),
)


def _nested(random: Random, key: bytes) -> bytes:
    """Each tuple twice in the next one: 2**levels to hash, and to compare."""
    levels = random.choice((20, 30, 45, 60, 200))
    made = b"K\x01"
    for _ in range(levels):
        made += random.choice((b"2\x86", b"2\x86", b"2", b"q\x012\x86")) if random.random() < 0.02 else b"2\x86"
    return key.replace(b"@", made)


BOMBS: tuple[Callable[[Random], bytes], ...] = (
    lambda random: _nested(random, b"}@K\x01s"),
    lambda random: _nested(random, b"\x8f(@\x90"),
    lambda random: _nested(random, b"(@\x91"),
    lambda random: _nested(random, b"(" + text("storage") + b"ctorch\nFloatStorage\n@" + text("cpu") + b"K\x01tQ"),
    lambda random: _nested(random, b"}" + text("model") + b"ccollections\nOrderedDict\n)R@K\x01ss"),
    lambda random: _nested(random, b"}" + text("model") + b"c__builtin__\nset\n]@aR\x85Rs"),
    lambda random: _nested(random, b"}" + text("model") + b"c__builtin__\nset\n](@@e\x85Rs"),
    lambda random: _nested(random, b"}" + text("model") + b"@s"),
    lambda random: b"K\x01r" + struct.pack("<I", random.choice((2**24, 2**28, 2**30, 2**31 - 1, 2**32 - 1))),
    lambda random: b"K\x01" + f"p{random.choice((2**28, 2**31, 2**62, -1))}\n".encode(),
    lambda random: b"\x8b" + struct.pack("<i", random.choice((2**30, 2**31 - 1, -1))) + b"\xff" * 40,
    lambda random: b"B" + struct.pack("<I", random.choice((2**31, 2**32 - 1))) + b"x" * 40,
    lambda random: random.choice((b"\x8d", b"\x8e", b"\x96", b"\x95"))
    + struct.pack("<Q", random.choice((2**28, 2**31, 2**40, 2**63, 2**64 - 1))) + b"x" * 40,
    lambda random: b"L" + b"9" * random.choice((5000, 200_000)) + b"L\n",
    lambda random: b"(" * random.choice((1000, 1_000_000)) + b"K\x01",
    lambda random: b"]" + b"]a" * 10 + b"2a" * random.choice((10, 1000)),
    lambda random: random.choice((b"\x82\x01", b"\x83\x01\x01", b"\x84\x01\x00\x00\x00")) + b")R",
    lambda random: b"]q\x00" + b"]q\x00" * 10 + b"(" + b"h\x00" * 9 + b"e" + b"(" + b"h\x00" * 9 + b"e",
    lambda random: b"X\x01\x00\x00\x00x" + b"q\x00(" + b"h\x00" * 100_000 + b"t" + b"2\x86" * random.choice((3, 30)),
    lambda random: b"N" + b"\x85" * random.choice((1000, 100_000)),
    lambda random: b"}" + text("model") + b"]" * 3000 + b"a" * 2999 + b"s",
    lambda random: b"]" * 20_000 + b"a" * 19_999 + b"}" + b"K\x01" + b"K\x01s\x86",
)  # fmt: skip
"""Few bytes that stand for more than any memory holds, or for more steps than anybody waits for."""

"""Identify a file that cannot be loaded, from its first bytes and the names in its pickle, and say what helps.

Nothing here runs what a pickle says; its operations are only listed.
"""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path

from qexport.checkpoints.bounds import MAX_NAME
from qexport.errors import InputError
from qexport.system.given_files import exceeded, open_given

LEARNED = "qexport"
"""Key of a checkpoint whose bytes are this package's own."""
GIVE = "give the .pt file that a YOLO training wrote, or a float .onnx file"
ONNX = "export it there to ONNX and give the .onnx file"
AGAIN = "download it again, or give another .pt file"
TRUST = "pass --trust-checkpoint only if you trust where the file comes from: loading it can run any code"
OWN_SAVE = "write it with its own save(), as YOLO(…).save('model.pt') does"
UNPACKING = 16
"""Times its size that a checkpoint may unpack to: torch.save does not compress, but people pack files again."""
BEGINNING = 1024
"""Bytes that tell what a file is."""
LOOKED_AT = 200_000
"""Operations of a pickle that are looked at for names."""
ZIP, PICKLE = b"PK\x03\x04", b"\x80"
PROJECTS = {
    "models": ("the YOLOv5 repository, or of one made from it such as YOLOv7", ONNX),
    "yolov6": ("the YOLOv6 repository", ONNX),
    "yolox": ("YOLOX", ONNX),
    "damo": ("DAMO-YOLO", ONNX),
    "super_gradients": ("SuperGradients (YOLO-NAS)", ONNX),
    "mmengine": ("OpenMMLab", ONNX),
    "mmdet": ("OpenMMLab", ONNX),
    "mmyolo": ("OpenMMLab", ONNX),
    "detectron2": ("Detectron2", ONNX),
    "lightning": ("Lightning", ONNX),
    "pytorch_lightning": ("Lightning", ONNX),
    "fastai": ("fastai", ONNX),
    "modelopt": ("quantisation-aware training with ModelOpt's own layers", "give the float checkpoint it began with"),
}
"""First part of a class's module → whose checkpoints have it, and what helps."""
WRAPPERS = {
    "ultralytics.models.yolo.model.": ("a whole YOLO object", OWN_SAVE),
    "ultralytics.models.rtdetr.model.": ("a whole RTDETR object", OWN_SAVE),
    "torch.nn.parallel.": (
        "a model wrapped for several GPUs",
        "save what is in it: torch.save({'model': m.module}, …)",
    ),
    "torch._dynamo.eval_frame.": ("a compiled model", "save what is in it: torch.save({'model': m._orig_mod}, …)"),
}
"""How the name of a class begins that holds a model → what the file is, what helps."""
OTHER_FILES = (
    (re.compile(rb"version https://git-lfs"), "is a Git LFS pointer, not the file itself", "run git lfs pull"),
    (re.compile(rb"\s*<(!doctype|html|\?xml)", re.IGNORECASE), "is a web page that was saved as .pt", AGAIN),
    (re.compile(rb".{4}TFL3", re.DOTALL), "is a TFLite file", GIVE),
    (re.compile(rb"\x89HDF\r\n"), "is a Keras or HDF5 file", GIVE),
    (re.compile(rb"\x89PNG|\xff\xd8\xff|GIF8|BM.{4}\0\0\0\0", re.DOTALL), "is an image", GIVE),
    (
        re.compile(rb"\x1f\x8b|7z\xbc\xaf|Rar!|BZh|\xfd7zXZ"),
        "is a compressed archive",
        "unpack it and give the .pt file",
    ),
    (re.compile(rb"[^\x80].{256}ustar", re.DOTALL), "is a tar archive", "unpack it and give the .pt file"),
    (re.compile(rb".{4}\0{4}\{\"", re.DOTALL), "is a safetensors file: weights without their model", GIVE),
)
"""What files begin with → what they are, what helps."""


def refuse_other_files(data: bytes, path: Path) -> None:
    """Refuse what is not a file of `torch.save`, before anything reads it as one.

    Raises:
        InputError: that says what it is.
    """
    if not data:
        raise InputError(f"{path} is empty", AGAIN)
    if data.startswith(ZIP):
        _refuse_other_archives(data, path)
        return
    for beginning, what, remedy in OTHER_FILES:
        if beginning.match(data):
            raise InputError(f"{path} {what}", remedy)
    if not data.startswith(PICKLE):
        raise InputError(f"{path} is not a checkpoint", f"{GIVE}; this file begins with {data[:12]!r}")


def refuse_by_beginning(path: Path) -> None:
    """Refuse a file that is surely no checkpoint by its first bytes, before anything slow is imported.

    Raises:
        InputError: that says what it is.
    """
    try:
        with open_given(path) as stream:
            beginning = stream.read(BEGINNING)
    except OSError:  # said where it is read
        return
    if not beginning.startswith(ZIP):
        refuse_other_files(beginning, path)


def _refuse_other_archives(data: bytes, path: Path) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            inside = archive.namelist()
            bomb = exceeded(archive, len(data), UNPACKING)
    except Exception as error:  # of a damaged archive zipfile raises anything
        raise InputError(f"{path} is cut short: the end of the archive is missing", AGAIN) from error
    if bomb:
        raise InputError(f"{path} is no checkpoint: {bomb}", AGAIN)
    names = {name.rpartition("/")[2] for name in inside}
    if "constants.pkl" in names:
        raise InputError(f"{path} is a TorchScript archive", "give the .pt checkpoint that it was exported from")
    if "data.pkl" not in names:
        first = f", the first of its files is {inside[0]}" if inside else " of nothing"
        raise InputError(f"{path} is a zip archive without a checkpoint in it{first}", GIVE)


def holds_learned(path: Path) -> bool:
    """Whether a checkpoint says that training has left something in it, without reading what."""
    try:
        with open_given(path) as stream, zipfile.ZipFile(stream) as archive:
            if exceeded(archive, os.fstat(stream.fileno()).st_size, UNPACKING):
                return False
            inside = next((name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"), "")
            return bool(inside) and pickle.dumps(LEARNED, 2)[2:-3] in archive.read(inside)
    except Exception:  # of a damaged archive zipfile raises anything
        return False


def unreadable(data: bytes, path: Path, error: Exception, strange: Callable[[str], bool]) -> InputError:
    """The error for a file of `torch.save` that could not be read.

    Args:
        strange: whether a name in its pickle is a reason to refuse it.
    """
    names, whole = pickled_names(data)
    refusal = foreign(filter(strange, names), path)
    if refusal:
        return refusal
    reason = " ".join(f"{type(error).__name__} {error}".split())[:120]
    if not whole or "unexpected EOF" in reason:
        return InputError(f"{path} is cut short", AGAIN)
    if isinstance(error, RuntimeError) and "magic number" in reason:
        return InputError(f"{path} is a pickle, but no checkpoint that torch.save wrote", GIVE)
    return InputError(f"{path} is damaged ({reason})", AGAIN)


def foreign(names: Iterable[str], path: Path) -> InputError | None:
    """The error for a file that asks for these names, which are not on the list; None where there are none.

    A name that tells where the file is from goes before the first one.
    """
    found = list(names)
    known = of_a_project(found, path)
    if known or not found:
        return known
    return InputError(f"{path} wants to load {found[0]}, which is not on the allow-list", TRUST)


def of_a_project(names: Iterable[str], path: Path) -> InputError | None:
    """The error for a file whose names tell where it is from, None where they do not."""
    for name in names:
        if name.startswith("dill."):
            return InputError(
                f"{path} was pickled with dill, and wants to load {name}",
                "save it again with torch.save and without dill, in the environment that wrote it; or " + TRUST,
            )
        for beginning, (what, remedy) in WRAPPERS.items():
            if name.startswith(beginning):
                return InputError(f"{path} is {what}: it holds {name}", remedy)
        origin = PROJECTS.get(name.partition(".")[0])
        if origin:
            return InputError(f"{path} is a checkpoint of {origin[0]}: it holds {name}", origin[1])
    return None


def not_importable(error: ImportError | AttributeError, data: bytes, path: Path) -> InputError:
    """The error for a trusted file whose class is not here."""
    known = of_a_project(pickled_names(data)[0], path)
    if known:
        return known
    missing = re.search(r"[Cc]an't get attribute '([\w.]+)' on <module '([\w.]+)'", str(error))
    module = str(getattr(error, "name", None) or (missing.group(2) if missing else ""))
    name = f"{module}.{missing.group(1)}" if missing else f"the Python module {module}" if module else str(error)
    if module == "__main__":
        return InputError(
            f"{path} needs {name}, a class of the script that saved it, which cannot be imported",
            "move the class into a module of its own, save the model again and put the module on PYTHONPATH",
        )
    return InputError(
        f"{path} needs {name}, which cannot be imported here",
        "install the package that it is from, or put its folder on PYTHONPATH",
    )


def pickled_names(data: bytes) -> tuple[list[str], bool]:
    """Names that the pickles of a file ask for, and whether every pickle in it is whole."""
    if not data.startswith(ZIP):
        return _names(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        inside = next(name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl")
        try:
            return _names(archive.read(inside))
        except Exception:  # of a damaged archive zipfile raises anything
            return [], True


def _names(data: bytes) -> tuple[list[str], bool]:
    found: list[str] = []
    texts: list[str] = []
    stream, left = io.BytesIO(data), LOOKED_AT
    try:
        while left and stream.tell() < len(data) and data[stream.tell() : stream.tell() + 1] == PICKLE:
            for operation, argument, _ in islice(pickletools.genops(stream), left):
                left -= 1
                if operation.name in ("GLOBAL", "INST"):
                    found.append(".".join(str(argument)[:MAX_NAME].split(" ")).replace("__builtin__.", "builtins."))
                elif operation.name == "STACK_GLOBAL":
                    found.append(".".join(texts[-2:])[:MAX_NAME])
                elif isinstance(argument, str):
                    texts.append(argument)
    except (ValueError, IndexError, UnicodeError) as error:
        return found, not re.search(r"exhausted|expected \d+ bytes|not enough data|no newline", str(error))
    return found, True

"""Read a `.pt` checkpoint into a float module, running nothing that may hide in it.

A `.pt` file is a pickle, and loading one runs what it says. So the file's bytes are read once, by us, and unpickled
as data (`unpickle`); a model is made of that only where it is nothing but layers with data in them (`rebuild`).
Everything else is refused by name, unless the user trusts the file. No library ever sees the path: Ultralytics' loader
would look for another file under some names, download some, and take quotes and blanks out of all.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qexport.checkpoints.identify import LEARNED
from qexport.errors import InputError
from qexport.system.given_files import read_bytes
from qexport.tasks import TaskSpec

if TYPE_CHECKING:
    from qexport.checkpoints.modelopt import LayerRanges


@dataclass(frozen=True)
class Checkpoint:
    """A loaded model and what its file says about itself.

    Attributes:
        module: Ultralytics model in eval mode, float32; `split_head` consumes it. None for an ONNX file.
        task: "detect", "segment", …, as the head has it; "" for an ONNX file that does not say.
        names: class index to class name.
        stride: the largest stride in pixels; image sizes are multiples of it.
        imgsz: the size that the model was trained at, in pixels.
        fingerprint: SHA-256 of the bytes that were read.
        metadata: what an ONNX file says of itself besides; None for a checkpoint.
        single_class: trained with `single_cls`, where labels of all classes count as one.
        notes: what the file holds and an export does not use, for the report.
        learned: what quantisation-aware training has left beside the model, for `qexport.training.qat_file`.
        ranges: those of such a training with Ultralytics, None where there was none.
    """

    path: Path
    module: Any
    task: str
    names: dict[int, str]
    stride: int
    channels: int
    imgsz: int
    fingerprint: str
    metadata: dict[str, str] | None = None
    single_class: bool = False
    notes: tuple[str, ...] = ()
    learned: bytes = b""
    ranges: LayerRanges | None = None

    @property
    def trained(self) -> bool:
        """Whether quantisation-aware training has left ranges in it."""
        return bool(self.learned) or self.ranges is not None

    @property
    def task_spec(self) -> TaskSpec:
        """What labels have to fit."""
        layers = getattr(self.module, "model", None)  # an ONNX file has none
        shape = getattr(layers[-1], "kpt_shape", None) if layers is not None and self.task == "pose" else None
        points = tuple(int(size) for size in shape) if shape else None
        return TaskSpec(self.path, self.task, self.names, self.channels, points, self.single_class)


def load_checkpoint(path: Path, trust: bool = False) -> Checkpoint:
    """Load an Ultralytics checkpoint.

    Args:
        path: the `.pt` file.
        trust: unpickle whatever it holds (`--trust-checkpoint`).

    Raises:
        InputError: no such file, not a checkpoint, or one with something in it that is not known to be harmless.
    """
    from qexport.checkpoints.identify import refuse_other_files

    data = _read(path)
    refuse_other_files(data, path)
    content = _trusted(data, path) if trust else _proven(data, path)
    model = _model(content, path)
    fingerprint = hashlib.sha256(data).hexdigest()
    try:
        return _described(path, model, content if isinstance(content, dict) else {}, fingerprint)
    except InputError:
        raise
    except Exception as error:  # of attributes of other types than layers have
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{path} holds a model that cannot be described ({reason})", "train it again") from error


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except FileNotFoundError:
        raise InputError(f"no checkpoint at {path}", "check the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror})", "check its permissions") from error


def _proven(data: bytes, path: Path) -> Any:
    """The content with the model rebuilt from listed layers and data."""
    from qexport.checkpoints.identify import TRUST, foreign, unreadable
    from qexport.checkpoints.rebuild import Rebuilder, UnprovenError, is_allowed
    from qexport.checkpoints.unpickle import names_in, unpickled

    try:
        content = unpickled(data)
        quantised = content.pop("modelopt", None) if type(content) is dict else None
        learned = content.pop(LEARNED, None) if type(content) is dict else None
        names = names_in(content)
    except Exception as error:  # a damaged pickle can raise anything
        raise unreadable(data, path, error, lambda name: not is_allowed(name)) from error
    refusal = foreign((name for name in names if not is_allowed(name)), path)
    if refusal:
        raise refusal
    try:
        learned = _learned({LEARNED: Rebuilder().value(learned, LEARNED)}, path)
        made = Rebuilder().value(_wanted(content), "model")
    except InputError:
        raise
    except UnprovenError as error:
        raise InputError(f"{path} is no plain model: {error}", TRUST) from error
    except Exception as error:  # arguments of another number or kind than anything that was pickled has
        raise unreadable(data, path, error, lambda _: False) from error
    return {**made, "modelopt": quantised, LEARNED: learned} if isinstance(made, dict) else made


def _wanted(content: Any) -> Any:
    """What a model is made of; optimiser, figures and dates are not even looked at."""
    if type(content) is not dict:
        return content
    found = {key: content[key] for key in ("ema", "model", "train_args") if content.get(key) is not None}
    return found if found.keys() - {"train_args"} else {"state_dict": content.get("state_dict")}


def _trusted(data: bytes, path: Path) -> Any:
    """The content as it was pickled, whatever that runs."""
    import torch
    from ultralytics.nn.tasks import temporary_modules

    from qexport.checkpoints.allowed import FORMER_ATTRIBUTES, FORMER_MODULES
    from qexport.checkpoints.identify import not_importable, unreadable
    from qexport.checkpoints.unpickle import unpickled

    try:
        noted = unpickled(data)
    except Exception as error:  # a damaged pickle can raise anything
        raise unreadable(data, path, error, lambda _: False) from error
    try:
        with temporary_modules(modules=FORMER_MODULES, attributes=FORMER_ATTRIBUTES):
            loaded = torch.load(io.BytesIO(data), map_location="cpu", weights_only=False)
    except (ImportError, AttributeError) as error:
        raise not_importable(error, data, path) from error
    except Exception as error:  # the file's own code can raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{path} could not be loaded ({reason})", "load it with torch where it was saved") from error
    beside = type(loaded) is dict and type(noted) is dict and "modelopt" in noted
    return {**loaded, "modelopt": noted["modelopt"]} if beside else loaded


def _model(content: Any, path: Path) -> Any:
    """The model of a checkpoint, its averaged weights first; a file may also be nothing but the model.

    Raises:
        InputError: there is none of Ultralytics' in it.
    """
    import torch
    from torch import nn
    from ultralytics.nn.tasks import BaseModel

    from qexport.checkpoints.identify import of_a_project

    candidate = content
    if isinstance(content, dict):
        candidate = content.get("ema") if content.get("ema") is not None else content.get("model")
    layers = getattr(candidate, "model", None)
    if isinstance(candidate, BaseModel) and isinstance(layers, nn.Sequential) and len(layers):
        return candidate
    kind = type(candidate).__name__
    known = of_a_project([f"{type(candidate).__module__}.{kind}"], path)
    if known:
        raise known
    found = content if candidate is None else candidate
    values = list(found.values()) if isinstance(found, dict) else []
    values += [inner for each in values if isinstance(each, dict) for inner in each.values()]
    weights = any(isinstance(each, torch.Tensor) for each in values)
    other = ", only weights" if weights else f", but a {kind}" if candidate is not None else ""
    raise InputError(f"{path} holds no Ultralytics model{other}", "give the .pt file that a YOLO training wrote")


def _described(path: Path, model: Any, content: dict[str, Any], fingerprint: str) -> Checkpoint:
    from qexport.checkpoints.modelopt import UnreadableRangesError, read_ranges
    from qexport.checkpoints.repair import (
        architecture,
        channels_of,
        check_numbers,
        class_names,
        repair_strides,
        task_of,
        training_arguments,
        training_size,
    )

    module = model.float().eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    arguments = training_arguments(module, content)
    check_numbers(module)
    channels = channels_of(module)
    module.args, module.yaml = arguments, {**architecture(module), "channels": channels}
    ranges, notes = None, tuple[str, ...]()
    if content.get("modelopt"):
        try:
            ranges = read_ranges(content["modelopt"], module)
        except UnreadableRangesError as error:
            notes = (f"{UNREADABLE} ({error})",)
    return Checkpoint(
        path=path,
        module=module,
        task=task_of(module.model[-1], getattr(module, "task", None) or arguments.get("task")),
        names=class_names(getattr(module, "names", None), module),
        stride=repair_strides(module),
        channels=channels,
        imgsz=training_size(arguments.get("imgsz")),
        fingerprint=fingerprint,
        single_class=bool(arguments.get("single_cls")),
        notes=notes,
        learned=_learned(content, path),
        ranges=ranges,
    )


def _learned(content: dict[str, Any], path: Path) -> bytes:
    """What is kept for `qexport.training`, read as bytes and by nobody here."""
    found = content.get(LEARNED)
    if found is None:
        return b""
    if type(found) is not bytes:
        raise InputError(f"{path} has a {type(found).__name__} under {LEARNED}, not bytes", "train it again")
    return found


UNREADABLE = "the checkpoint was trained for quantisation (modelopt): its weights are used, its ranges cannot be read"
